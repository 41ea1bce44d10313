"""Commands on documents, and what they answer. No IO."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache, partial
from itertools import chain
from typing import Any, TypeVar

import msgspec

from omnistate.errors import InvalidValue, OperationIdReused, QuotaExceeded, SchemaMismatch, ValueTooLarge
from omnistate.state._model import ANY, Expect, Precondition
from omnistate.state._schema import Flat, Schema
from omnistate.state._seal import Keyring
from omnistate.store import DIGEST_SIZE, Argument, Command, Keys, LogKeys, Position, merged_error, spell_operation

T = TypeVar("T")
_INTEGER = re.compile(rb"-?\d{1,16}")
MAX_BYTES = 256 * 1024  # as in functions.lua
NEVER = b"9999999999999"  # in the place of a deadline, as in functions.lua
COLLECTION_KINDS = frozenset(("map", "list", "set", "sorted", "counter", "unique", "queue"))  # in headers
MAX_FIELDS = 2000  # hash fields of one document: server-side calls take them as arguments


@dataclass(frozen=True, slots=True)
class Target:
    """A document: its keys, its name, and what an event says of who writes it."""

    log: LogKeys
    document: bytes
    schema: Schema[Any]
    head: bytes  # the beginning of every event about it, a JSON object without its closing brace
    keys: Keys
    entry: str  # the field of its header
    keyring: Keyring | None = None
    origin: bytes = b"{}"  # who acts, as JSON
    own: tuple[bytes, ...] = ()  # the keys of the document itself: its own, that of its history

    @property
    def name(self) -> str:
        return self.schema.name


class Held(msgspec.Struct, frozen=True):
    """A document as it was read: its version (None: absent) and its hash fields. Never changed, always replaced."""

    version: Position | None
    flat: Flat  # in the shape of the class version that wrote it
    class_version: int = 1
    is_volatile: bool = False  # some of its fields have deadlines of their own
    damaged: dict[str, str] = {}  # fields that cannot be read, and why
    codec: str = ""


class Read(msgspec.Struct, frozen=True):
    held: Held
    position: Position
    left: float = 0.0  # seconds until it expires; 0: it does not


class Stored(msgspec.Struct, frozen=True):
    version: Position
    sum: int = 0  # of a step


class Refused(msgspec.Struct, frozen=True):
    """The precondition did not hold: this is the document now."""

    held: Held
    reason: str = "version"  # or "turn": another writer is next; or "class": it has the shape of another class version


class Done(msgspec.Struct, frozen=True):
    """Operation ids that were applied before, each with its result, or None where it was not."""

    results: list[Stored | None]


class Wait:
    """The precondition holds, and it is the turn of a writer that has waited long: try again in a moment."""


Reply = Stored | Refused | Done | Wait


class Patch(msgspec.Struct, frozen=True):
    """What a write changes: hash fields to set and to drop, and what to add to integers, each as field and amount."""

    sets: Flat
    drops: Sequence[bytes] = ()
    steps: Sequence[tuple[bytes, int]] = ()
    replace: bool = False
    rewrite: bool = False  # the same document as a whole, in another shape
    until: Sequence[tuple[bytes, int]] = ()  # deadlines of fields, in milliseconds from now; 0 takes one away
    indexes: Sequence[tuple[str, str]] = ()  # names and scores
    ttl_ms: int | None = None  # instead of the class's; -1 keeps the deadline that there is

    @property
    def asks_for_more(self) -> bool:
        """Whether it does anything but to set fields and to add to them."""
        return bool(self.drops or self.replace or self.rewrite or self.until or self.indexes) or self.ttl_ms is not None

    def applied(self, flat: Flat) -> tuple[Flat, list[int]]:
        """The fields after it, and the sums of its steps. Raises `InvalidValue`."""
        after = dict(self.sets) if self.replace else {**flat, **self.sets}
        for name in self.drops:
            after.pop(name, None)
        sums = []
        for name, amount in self.steps:
            held = after.get(name, b"0")
            if not _INTEGER.fullmatch(held) or abs(int(held) + amount) >= 2**53:
                raise InvalidValue(f"{name.decode()} is no integer, or the sum is beyond 2^53")
            sums.append(int(held) + amount)
            after[name] = b"%d" % sums[-1]
        return after, sums


def read(target: Target) -> Command[Read]:
    def parse(reply: list[Any]) -> Read:
        if reply[0] == b"merged":
            raise merged_error(target.log, reply[1])
        position = Position(reply[1].decode(), int(reply[2]))
        return Read(held_of(target, reply[3], reply[4]), position, _left(reply[3], int(reply[5])))

    return Command("state_read", (target.log.meta, target.document), (target.entry,), parse)


def write(
    target: Target,
    patch: Patch,
    *,
    ids: Sequence[str],
    expect: Precondition = ANY,
    digest: str = "",
    turn: str = "",
) -> Command[Reply]:
    """One write of one document. `turn` asks for the next turn if it is refused."""
    arguments: list[str | bytes] = [str(len(ids)), *map(spell_operation, ids), digest]
    arguments += (turn == "" and _one_change(target, patch, expect)) or _write_arguments(target, patch, expect, turn)
    return Command("state_write", target.keys, arguments, partial(_parse_write, target), ids[0])


def _one_change(target: Target, patch: Patch, expect: Precondition) -> list[str | bytes] | None:
    """What `_write_arguments` gives, at a third of its cost, where one field or entry changes and no more is asked for."""
    schema, sets, steps = target.schema, patch.sets, patch.steps
    if schema.how_one is None or len(sets) + len(steps) != 1 or patch.asks_for_more:
        return None
    if steps:
        ((name, amount),) = steps
        before, after = _around(name)
        return [target.entry, expected(expect), schema.how_one[1], target.head + before, name, b"%d" % amount, after]
    ((name, value),) = sets.items()
    before, after = _around(name)
    return [target.entry, expected(expect), schema.how_one[0], target.head + before + value + after, name, value]


def _parse_write(target: Target, reply: bytes | list[Any]) -> Reply:
    if isinstance(reply, bytes):
        return _stored(reply)
    word = reply[0]
    if word == b"wait":
        return Wait()
    if word in (b"large", b"full", b"not_integer", b"kind"):
        raise write_refusal(target, reply)
    return _not_written(target, reply)


def _write_arguments(target: Target, patch: Patch, expect: Precondition, turn: str = "") -> list[str | bytes]:
    schema, drops, steps = target.schema, patch.drops, patch.steps
    sets = schema.pack(patch.sets, target.document, target.keyring)
    if len(sets) + len(drops) + len(steps) > MAX_FIELDS:
        raise InvalidValue(
            f"{target.name} has more than {MAX_FIELDS:,} fields and entries: split it into several states"
        )
    event, *after = describe(schema, patch, sets).split(_HOLE) if steps else (describe(schema, patch, sets),)
    mode = "rewrite" if patch.rewrite else "replace" if patch.replace else "patch"
    ttl_ms = schema.ttl_ms if patch.ttl_ms is None else patch.ttl_ms
    how = schema.how(mode, len(sets), len(drops), len(steps), ttl_ms=ttl_ms, has_turn=turn != "")
    arguments: list[str | bytes] = [target.entry, expected(expect), how, target.head + event]
    for (field, amount), text in zip(in_order(steps), after, strict=True):
        arguments += (field, b"%d" % amount, text)
    arguments += chain.from_iterable(sets.items())
    arguments += drops
    for field, milliseconds in patch.until:
        arguments += ("until", field, b"%d" % milliseconds)
    for index, score in patch.indexes:
        arguments += ("index", index, score)
    if schema.history is not None:
        arguments += _history_arguments(target)
    if turn:
        arguments.append(turn)
    return arguments


def _history_arguments(target: Target) -> tuple[str | bytes, ...]:
    history = target.schema.history
    assert history is not None
    return ("history", b"%d" % history.changes, b"%d" % (history.age // timedelta(milliseconds=1)), target.origin)


def write_part(target: Target, patch: Patch, expect: Precondition = ANY) -> Part:
    """A write as a part of a call that changes several things."""
    return Part("write", target.own, _write_arguments(target, patch, expect))


def expect_part(target: Target, expect: Precondition) -> Part:
    """That a document is as it was, as a part of a call."""
    return Part("expect", target.own, (target.entry, expected(expect)))


def write_refusal(target: Target, reply: list[Any]) -> Exception:
    """What the refusal of a write means, but for a version that was not the expected one."""
    match reply[0]:
        case b"large":
            return ValueTooLarge(target.name, size=int(reply[1]), limit=MAX_BYTES)
        case b"full":
            return QuotaExceeded(reply[1].decode(), limit=int(reply[2]))
        case b"kind":
            name, kind = target.name, reply[1].decode()
            return SchemaMismatch(f"{name} is the name of a {kind} here: give one of the two another name")
        case _:
            return InvalidValue(f"{target.name}.{reply[1].decode()} is no integer, or the sum is beyond 2^53")


def delete(target: Target, *, operation_id: str, expect: Precondition = ANY) -> Command[Reply | None]:
    """None: there was no document."""

    def parse(reply: bytes | list[Any]) -> Reply | None:
        if isinstance(reply, bytes):
            position = split_results(reply)[-1]
            return _stored(position) if position else None
        if reply[0] == b"part" and reply[2] == b"kind":
            raise write_refusal(target, reply[2:])
        return _not_written(target, reply[2:] if reply[0] == b"part" else reply)

    return change(target.log, [delete_part(target, expect)], [operation_id], parse)


def delete_part(target: Target, expect: Precondition = ANY) -> Part:
    event = target.head.replace(b"state.changed", b"state.deleted", 1)
    arguments: tuple[Argument, ...] = (target.entry, expected(expect), event)
    if target.schema.history is not None:
        arguments += _history_arguments(target)
    return Part("delete", target.own, arguments)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a call that changes several things at once; the first argument is the entry of its header.

    `intention` tells it apart under an operation id: what is changed and how, not who acts, nor what a declaration says of
    its life, which a release may change, nor how a value is sealed, which differs each time.
    """

    name: str
    keys: Sequence[bytes]
    arguments: Sequence[Argument]
    intention: Sequence[Argument] = ()

    def expecting(self, expect: Precondition) -> Part:
        """The same under a precondition, which is its second argument."""
        return replace(self, arguments=(self.arguments[0], expected(expect), *self.arguments[2:]))


def change(
    log: LogKeys, parts: Sequence[Part], ids: Sequence[str], parse: Callable[[Any], T], digest: str = ""
) -> Command[T]:
    """All of the parts, or none of them, in one call."""
    keys: list[bytes] = [*log.written]
    arguments: list[Argument] = [len(ids), *map(spell_operation, ids), digest, len(parts)]
    for part in parts:
        keys += part.keys
        arguments += (part.name, len(part.keys), len(part.arguments), *part.arguments)
    return Command("change", keys, arguments, parse, ids[0])


def parse_change(
    log: LogKeys,
    parts: Sequence[Part],
    operation_id: str,
    refusal: Callable[[int, list[Any]], Exception],
    digest: str = "",
) -> Command[Changed]:
    """What came of the parts, also when they were applied before. `refusal`: the error for a part that was refused."""

    def parse(reply: bytes | list[Any]) -> Changed:
        if isinstance(reply, bytes):
            return _changed(reply)
        word = reply[0]
        if word == b"part":
            if reply[2] == b"full" and reply[3] != b"entries":
                raise QuotaExceeded(reply[3].decode(), limit=int(reply[4]))
            raise refusal(int(reply[1]), reply[2:])
        if word == b"done":
            return _changed(reply[1], repeated=True)
        if word == b"reused":
            raise OperationIdReused(reply[1].decode().removeprefix("op:"))
        raise merged_error(log, reply[1])

    return change(log, parts, [operation_id], parse, digest)


class Changed(msgspec.Struct, frozen=True):
    """What came of a call: a result for each part, and the position of the last, None if nothing has changed."""

    results: list[bytes]
    position: Position | None
    repeated: bool = False


def _changed(reply: bytes, *, repeated: bool = False) -> Changed:
    *results, last = split_results(reply)
    return Changed(results, parse_version(last) if last else None, repeated)


def split_results(reply: bytes) -> list[bytes]:
    """The results of the parts of a call."""
    results = []
    at = 0
    while at < len(reply):
        colon = reply.index(b":", at)
        at = colon + 1 + int(reply[at:colon])
        results.append(reply[colon + 1 : at])
    return results


def expected(expect: Precondition) -> str:
    return expect.value if isinstance(expect, Expect) else f"{expect.offset} {expect.epoch}"


def parse_version(text: bytes) -> Position:
    """A position as the server spells it: "<offset> <epoch>"."""
    offset, _, epoch = text.partition(b" ")
    return Position(epoch.decode(), int(offset))


def in_order(steps: Sequence[tuple[bytes, int]]) -> Sequence[tuple[bytes, int]]:
    """Steps in the order in which an event has their sums: plain fields, then the entries of each mapping."""
    return steps if len(steps) < 2 else sorted(steps, key=lambda step: step[0].partition(b":")[:2][::-1])


def sums_of(result: bytes) -> list[int]:
    """The sums of a write's steps, as `in_order` has them."""
    return [int(one) for one in result.partition(b"\n")[2].split()]


def _stored(reply: bytes) -> Stored:
    version, _, sums = reply.partition(b"\n")
    offset, _, epoch = version.partition(b" ")
    return Stored(Position(epoch.decode(), int(offset)), int(sums.partition(b" ")[0]) if sums else 0)


class Remembered(msgspec.Struct, frozen=True):
    """What is known of an operation id that was applied."""

    digest: str  # of what was asked for; '' for an id that was made for the caller
    result: bytes

    @property
    def changed(self) -> Changed:
        """Of a call with several parts: what came of them."""
        return _changed(self.result, repeated=True)


def read_outcome(meta: bytes, operation_id: str, digest: str = "") -> Command[Remembered | None]:
    """What is remembered of an operation id, None where it was not applied.

    Raises `OperationIdReused` unless the digests agree, as far as the caller's tells intentions apart (`DIGEST_SIZE`).
    """

    def parse(record: bytes) -> Remembered | None:
        said, _, result = record.partition(b":")
        if said and digest and said[:DIGEST_SIZE] != digest[:DIGEST_SIZE].encode():
            raise OperationIdReused(operation_id)
        return Remembered(said.decode(), result) if record else None

    return Command(
        "log_outcome", (meta, meta.removesuffix(b"meta") + b"older"), (spell_operation(operation_id),), parse
    )


def _last_result(result: bytes) -> bytes:
    """A write is stored as it is, a part of a call with its length."""
    return split_results(result)[-1] if b":" in result.split(b" ", 1)[0] else result


def _not_written(target: Target, reply: list[Any]) -> Reply:
    word = reply[0]
    if word == b"conflict":
        return Refused(held_of(target, reply[1], reply[2]), reply[3].decode())
    if word == b"done":
        return Done([_stored(_last_result(result)) if result else None for result in reply[1:]])
    if word == b"reused":
        raise OperationIdReused(reply[1].decode().removeprefix("op:"))
    raise merged_error(target.log, reply[1])


def _left(header: bytes, now: int) -> float:
    """Seconds that a document has left, by its header and the server's milliseconds."""
    deadline = header[:13]
    return 0.0 if deadline in (b"", NEVER) else max(int(deadline) - now, 1) / 1000


def held_of(target: Target, header: bytes, fields: list[bytes]) -> Held:
    """A document as its header and its hash fields say."""
    if not header:
        return Held(None, {}, target.schema.version)
    kind = header.split(b" ", 6)[5].decode()
    if kind in COLLECTION_KINDS:
        raise SchemaMismatch(f"{target.name} is the name of a {kind} here: give one of the two another name")
    _, _, offset, epoch, _, codec, version, *more = header.split(b" ")
    stored = dict(zip(fields[::2], fields[1::2], strict=True))
    is_volatile = any(one.startswith(b"next=") for one in more)
    if is_volatile:
        stored = {name: value for name, value in stored.items() if not name.startswith(b"!")}
    flat, damaged = target.schema.unpack(stored, target.document, target.keyring)
    return Held(Position(epoch.decode(), int(offset)), flat, int(version), is_volatile, damaged, codec.decode())


_json = msgspec.json.Encoder().encode
_HOLE = b"\0"  # where the server writes a sum: JSON never holds this byte


def describe(schema: Schema[Any], patch: Patch, stored: Flat) -> bytes:
    """A patch as members of an event: `set` and `unset` whole fields, `put` and `drop` entries of mapping fields."""
    whole: list[bytes] = []
    unset: list[bytes] = []
    puts: dict[bytes, list[bytes]] = {}
    gone: dict[bytes, list[bytes]] = {}
    changes: Iterable[tuple[bytes, bytes]] = patch.sets.items()
    if not schema.packing.is_plain:
        changes = _for_events(schema, patch.sets, stored)
    if patch.steps:
        changes = (*changes, *((field, _HOLE) for field, _ in in_order(patch.steps)))
    for name, value in changes:
        field, entry, key = name.partition(b":")
        if entry:
            puts.setdefault(field, []).append(_json(key.decode()) + b":" + value)
        else:
            whole.append(b'"' + field + b'":' + value)
    for name in patch.drops:
        field, entry, key = name.partition(b":")
        if entry:
            gone.setdefault(field, []).append(_json(key.decode()))
        else:
            unset.append(b'"' + field + b'"')
    members = b',"replace":true' if patch.replace or patch.rewrite else b""
    if schema.writes != 1:
        members += b',"schema":%d' % schema.writes
    if whole:
        members += b',"set":{' + b",".join(whole) + b"}"
    if unset:
        members += b',"unset":[' + b",".join(unset) + b"]"
    if puts:
        members += b',"put":{' + b",".join(b'"%b":{%b}' % (f, b",".join(p)) for f, p in sorted(puts.items())) + b"}"
    if gone:
        members += b',"drop":{' + b",".join(b'"%b":[%b]' % (f, b",".join(g)) for f, g in gone.items()) + b"}"
    return members


@lru_cache(maxsize=4096)
def _around(name: bytes) -> list[bytes]:
    """The event of one field or entry that has another value: what is before the value, and after it."""
    field, entry, key = name.partition(b":")
    if entry:
        return [b',"put":{"%b":{%b:' % (field, _json(key.decode())), b"}}"]
    return [b',"set":{"%b":' % field, b"}"]


def _for_events(schema: Schema[Any], sets: Flat, stored: Flat) -> Iterator[tuple[bytes, bytes]]:
    """Values as events have them: what is encrypted stays so."""
    for name, value in sets.items():
        if schema.packing.is_sealed(name):
            yield name, b'{"$sealed":"%b"}' % b64encode(stored[name])
        else:
            yield name, schema.event_value(name, value)
