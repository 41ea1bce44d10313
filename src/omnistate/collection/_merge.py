"""Moving what a collection holds: to the customer that its own was merged into, from a file, under another key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from omnistate.collection._api import Place
from omnistate.collection._apply import integer
from omnistate.collection._commands import Target, Whose
from omnistate.collection._model import Collection
from omnistate.errors import Conflict
from omnistate.state import ABSENT, ANY, Part, Precondition, parse_change, read_outcome
from omnistate.store import Argument, Flow, OwnOperationId, call, digest_of, new_operation_id

_AT_ONCE = 500
_MOST_BYTES = 1024 * 1024
_MOST_RACES = 100
_Call = tuple[str, bytes, list[Argument]]


def merge_collection(
    declaration: Collection[Any, Any],
    place: Whose,
    theirs: list[Any],
    *,
    origin: Whose,
    names: tuple[str, ...],
) -> Flow[None]:
    """Adds the collection of another customer, at `origin`, to this one, once for all calls with these names of the merge.

    Sets become their union and counters their sum; a map keeps this customer's entries and gets the others, with their
    deadlines; a sorted set keeps the higher score of a member in both; a list gets the other's values as its oldest, as
    many as its limit allows; a queue gets the other's items, and those that are leased or delayed when that ends. Nothing
    is refused for the number of entries.
    """
    target = Target(declaration, place)
    opened = open_values(declaration, origin, theirs)
    for index, part in enumerate(_parts(target, opened)):
        # A merge that goes on later may find fewer entries, as some have expired: then this is not the same call.
        operation_id = OwnOperationId("merge", *names, str(index), digest_of(part.intention))
        yield from call(parse_change(place.log, [part], operation_id, lambda _, reply: target.refusal(reply)))


async def load_collection(
    declaration: Collection[Any, Any],
    place: Place,
    values: list[Any],
    *,
    names: tuple[str, ...],
    overwrite: bool = False,
) -> None:
    """Makes a collection of what another one held, opened, once for all calls with these names.

    Raises `Conflict` when it is there, unless it is to be overwritten.
    """
    target = Target(declaration, place)
    if overwrite:
        # What an earlier call with these names has begun to load is not to be removed: its first part tells.
        begun = await place.services.link.execute(read_outcome(place.log.meta, OwnOperationId("load", *names, "0")))
        if begun is None:
            clear = parse_change(
                place.log, [target.delete()], new_operation_id(), lambda _, reply: target.refusal(reply)
            )
            await place.services.link.execute(clear)
    for index, part in enumerate(_parts(target, values, expect=ABSENT)):
        operation_id = OwnOperationId("load", *names, str(index))
        command = parse_change(place.log, [part], operation_id, lambda _, reply: _refusal(target, reply))
        await place.services.link.execute(command)


async def reseal_collection(declaration: Collection[Any, Any], place: Place, *, dry_run: bool = False) -> bool:
    """Seals all values with the current key, or opens them where the declaration no longer says so; whether any was not so.

    Their deadlines stay. It goes on beside other writers: what they change is looked at again. Raises `SchemaMismatch`.
    """
    target, execute, changed = Target(declaration, place), place.services.link.execute, False
    for _ in range(_MOST_RACES):
        found = await execute(target.read("all" if declaration.kind == "list" else "moving"))
        version = found.version
        wrong = [(name, opened) for name, opened, is_right in _named(target, found.values) if not is_right]
        if version is None or not wrong or dry_run:
            return changed or bool(wrong)
        changed = True
        try:
            for some in _portions(wrong):
                part = target.reseal(some, version)
                command = parse_change(place.log, [part], new_operation_id(), lambda _, reply: _refusal(target, reply))
                version = (await execute(command)).position or version
        except Conflict:
            continue
        return True
    raise Conflict(f"{declaration.name} was changed by others {_MOST_RACES} times in a row: run it again")


def _portions(values: list[tuple[Argument, bytes]]) -> Iterator[list[tuple[Argument, bytes]]]:
    """As many at once as do not hold up the server for long."""
    some, size = [], 0
    for one in values:
        some.append(one)
        size += len(one[1])
        if size > _MOST_BYTES or len(some) == _AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some


def _named(target: Target, stored: list[Any]) -> Iterator[tuple[Argument, bytes, bool]]:
    """Index, key or id of each value; what it is, opened; whether it is stored as it is declared now."""
    kind, values = target.collection.kind, target.values
    if kind == "list":
        yield from ((index, values.open(value), values.is_as_declared(value)) for index, value in enumerate(stored))
    elif kind == "map":
        for key, value, _ in _triples(stored):
            yield key, values.open(value, key), values.is_as_declared(value)
    else:
        for id_, item, _ in _triples(stored):
            payload = item.partition(b" ")[2]
            yield id_, values.open(payload), values.is_as_declared(payload)


def open_values(declaration: Collection[Any, Any], place: Whose, values: list[Any]) -> list[Any]:
    """What was read to be moved, without encryption. Raises `SchemaMismatch`, `EncryptionKeyMissing`."""
    if not declaration.can_be_encrypted:
        return values
    return _with_each(declaration.kind, values, Target(declaration, place).values.open)


def _with_each(kind: str, values: list[Any], change: Callable[[bytes, bytes], bytes]) -> list[Any]:
    """What is moved, with each value (and its key in a map) changed."""
    match kind:
        case "list":
            return [change(value, b"") for value in values]
        case "map":
            return list(chain.from_iterable((key, change(value, key), end) for key, value, end in _triples(values)))
        case _:
            found = []
            for id_, item, end in _triples(values):
                attempts, _, payload = item.partition(b" ")
                found += [id_, attempts + b" " + change(payload, b""), end]
            return found


def _refusal(target: Target, reply: list[Any]) -> Exception:
    return Conflict(f"{target.collection.name} is there already") if reply[0] == b"conflict" else target.refusal(reply)


def _parts(target: Target, values: list[Any], *, expect: Precondition = ANY) -> Iterator[Part]:
    """The changes that add what another collection holds, opened; `expect` is for the first of them."""
    one = target.collection
    drops = one.kind == "list" or one.limit_argument.endswith("st")  # keep="highest", "lowest"
    stored = _with_each(one.kind, values, target.values.seal) if one.is_encrypted else values
    for stored_call, (_, _, plain) in zip(_calls(one.kind, stored), _calls(one.kind, values), strict=True):
        operation, event, arguments = stored_call
        yield target.part(operation, event, arguments, expect, None if drops else "0", plain)
        expect = ANY


def _chunks(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for at in range(0, len(values), size):
        yield values[at : at + size]


def _triples(theirs: list[Any]) -> list[tuple[Any, Any, Any]]:
    return list(zip(theirs[::3], theirs[1::3], theirs[2::3], strict=True))


def _calls(kind: str, theirs: list[Any]) -> Iterator[_Call]:  # noqa: C901 - one case for each kind
    if not theirs:
        return
    match kind:
        case "counter":
            yield "add", b"", [integer(theirs[0]), "", ""]
        case "unique":
            yield "absorb", b"", [theirs[0]]
        case "set":
            for values in _chunks(sorted(theirs), _AT_ONCE):  # a server that was restarted has another order
                yield "add", b',"values":[' + b",".join(values) + b"]", list(values)
        case "list":
            for values in reversed(list(_chunks(theirs, _AT_ONCE))):
                yield "prepend", b"", list(values)
        case "map":
            for some in _chunks(sorted(_triples(theirs)), _AT_ONCE):
                yield "fill", b"", list(chain.from_iterable(some))
        case "sorted":
            for pairs in _chunks(theirs, 2 * _AT_ONCE):
                flipped = [one for at in range(0, len(pairs), 2) for one in (pairs[at + 1], pairs[at])]
                yield "put", b"", ["higher", *flipped]
        case _:
            items = sorted(_triples(theirs), key=lambda item: int(item[0]))
            for some in _chunks(items, _AT_ONCE):
                yield "fill", b"", list(chain.from_iterable(item[1:] for item in some))
