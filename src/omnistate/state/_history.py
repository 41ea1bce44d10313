"""The past of a document: who changed what and when, how it was, and taking changes back.

The server remembers, with each change, the fields as they were before it, and in whose hands. So the past is walked
backwards from the present document; nothing has to be kept from its beginning. Versions form a chain: where it is broken
(fields expired by themselves, or a process wrote without `history=`), the past ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from omnistate.errors import InvalidInput, PositionLost, SchemaMismatch
from omnistate.state._commands import Held, Patch, Target, held_of, parse_version
from omnistate.state._model import ABSENT
from omnistate.state._schema import Flat, Schema
from omnistate.store import Command, Position, merged_error


class FieldChange(msgspec.Struct, frozen=True):
    """One field, or one entry of a mapping field, before and after. Values are as JSON has them; `ABSENT` for none."""

    field: str
    key: str | None
    before: Any
    after: Any


class Revision(msgspec.Struct, frozen=True):
    """One change of a document. `version` is its place in the log; `deleted` when the document was removed."""

    version: Position
    time: datetime
    channel: str | None
    actor: str | None
    changes: list[FieldChange]
    deleted: bool = False

    def is_before(self, moment: Position | datetime) -> bool:
        """Whether the change was made before a time, or stands before a position of the same log."""
        if isinstance(moment, datetime):
            return self.time < moment
        return self.version.epoch == moment.epoch and self.version.offset < moment.offset


class Undone(msgspec.Struct, frozen=True):
    """What `undo` did: the changes that it made, those of the actor that were kept because others wrote over them, and the
    new version, None where there was nothing to do."""

    changes: list[FieldChange]
    kept: list[FieldChange]
    version: Position | None = None


class _Who(msgspec.Struct):
    channel: str | None = None
    actor: str | None = None


class _Step(msgspec.Struct):
    """A change as it is stored: the fields before it, all of them or those that it changed (None: it was not there)."""

    version: Position
    before: Position | None
    class_version: int
    time: int
    kind: str
    who: _Who
    fields: dict[bytes, bytes | None]


def check_moment(name: str, moment: Any) -> None:
    """Raises `InvalidInput` unless it is a moment of a document's past."""
    if not isinstance(moment, Position) and (not isinstance(moment, datetime) or moment.tzinfo is None):
        raise InvalidInput(
            f"{name} must be a Position of the log, or a datetime with a time zone, datetime.now(UTC): not {moment!r}"
        )


_decode_who = msgspec.json.Decoder(_Who).decode
_Reply = tuple[Held, Position, int, list[_Step]]


def read_history(target: Target) -> Command[_Reply]:
    """The document now, the log's position, the server's time, and the changes, newest last."""
    assert target.schema.history is not None

    def parse(reply: list[Any]) -> _Reply:
        if reply[0] == b"merged":
            raise merged_error(target.log, reply[1])
        position = Position(reply[1].decode(), int(reply[2]))
        try:
            steps = [parse_step(line) for line in reply[6]]
        except (ValueError, msgspec.MsgspecError) as error:
            raise SchemaMismatch(f"what {target.name} remembers of its past is damaged") from error
        return held_of(target, reply[3], reply[4]), position, int(reply[5]), steps

    arguments = (target.entry, target.schema.history.changes)
    return Command("state_history", (target.log.meta, *target.own), arguments, parse)


def parse_step(line: bytes) -> _Step:
    head, _, rest = line.partition(b"\n")
    offset, epoch, before_offset, before_epoch, class_version, time, kind, length = head.split(b" ")
    before = None if before_offset == b"-" else parse_version(before_offset + b" " + before_epoch)
    who, at = _decode_who(rest[: int(length)]), int(length)
    fields: dict[bytes, bytes | None] = {}
    while at < len(rest):
        name_length, value_length, _ = rest[at : at + 24].split(b" ", 2)
        at += len(name_length) + len(value_length) + 2
        name = rest[at : at + int(name_length)]
        at += int(name_length)
        size = max(int(value_length), 0)
        fields[name] = None if value_length == b"-1" else rest[at : at + size]
        at += size
    version = parse_version(offset + b" " + epoch)
    return _Step(version, before, int(class_version), int(time), kind.decode(), who, fields)


class Past:
    """A document now, and the way back."""

    def __init__(self, target: Target, held: Held, position: Position, now: int, steps: list[_Step]) -> None:
        if held.damaged:
            raise SchemaMismatch.of_fields(target.name, held.damaged)
        self._target, self._held, self._steps = target, held, steps
        self.position, self.version, self._now = position, held.version, now

    @property
    def flat(self) -> Flat:
        return self._target.schema.upgrade(self._held.flat, self._held.class_version)

    def _walk(self) -> Iterator[tuple[_Step, Flat, Flat, Iterable[bytes]]]:
        """Each change, newest first, with the document before and after it as the present class has them, and the names of
        what may differ: a walk through a large document looks at what was changed.

        Ends where the chain of versions is broken; whoever wants to go further raises `PositionLost`.
        """
        schema = self._target.schema
        flat, class_version, version = self._held.flat, self._held.class_version, self.version
        for step in reversed(self._steps):
            is_next = version is None if step.kind == "deleted" else step.version == version
            if not is_next:
                return
            before, before_class = self._before(step, flat, class_version)
            if before_class == class_version == schema.version and step.kind == "fields":
                yield step, before, flat, step.fields
            else:
                older, newer = schema.upgrade(before, before_class), schema.upgrade(flat, class_version)
                yield step, older, newer, older.keys() | newer.keys()
            flat, class_version, version = before, before_class, step.before

    def _before(self, step: _Step, after: Flat, class_version: int) -> tuple[Flat, int]:
        target = self._target
        stored = {name: value for name, value in step.fields.items() if value is not None and not name.startswith(b"!")}
        flat, damaged = target.schema.unpack(stored, target.document, target.keyring)
        if damaged:
            raise SchemaMismatch.of_fields(f"the past of {target.name}", damaged)
        if step.kind != "fields":
            return flat, step.class_version or target.schema.version
        before = dict(after)
        for name in step.fields:
            before.pop(name, None)
        before.update(flat)
        return before, class_version

    def revisions(self) -> Iterator[Revision]:
        for step, before, after, names in self._walk():
            changes = changes_between(self._target.schema, before, after, names)
            time = datetime.fromtimestamp(step.time / 1000, UTC)
            yield Revision(step.version, time, step.who.channel, step.who.actor, changes, step.kind == "deleted")

    def at(self, moment: Position | datetime) -> tuple[Flat, Position | None]:
        """The document and its version at a moment. Raises `PositionLost`, `InvalidInput`."""
        check_moment("a moment", moment)
        is_after = self._judge(moment)
        flat, version = self.flat, self.version
        if not self._steps and version is None:
            return flat, version
        last = None
        for step, before, _, _ in self._walk():
            last = step
            if not is_after(step):
                return flat, version
            flat, version = before, step.before
        # Everything that could be walked is newer: is this where it begins, or only where the memory ends?
        history = self._target.schema.history
        assert history is not None
        if version is None:
            is_known = last is self._steps[0] and len(self._steps) < history.changes
        else:
            is_known = isinstance(moment, Position) and moment.offset >= version.offset
        if not is_known:
            raise self._forgotten(moment)
        return flat, version

    def _forgotten(self, moment: Position | datetime) -> PositionLost:
        asked = moment if isinstance(moment, Position) else self.position
        return PositionLost(asked, current=self.position, past=f"what {self._target.name} remembers")

    def _judge(self, moment: Position | datetime) -> Any:
        """Whether a step came after the moment."""
        if isinstance(moment, Position):
            if moment.epoch != self.position.epoch:
                raise self._forgotten(moment)
            return lambda step: step.version.offset > moment.offset
        milliseconds = moment.timestamp() * 1000
        history = self._target.schema.history
        assert history is not None
        if milliseconds < self._now - history.age.total_seconds() * 1000:
            raise self._forgotten(moment)
        return lambda step: step.time > milliseconds

    def undo(self, actor: str, since: Position | datetime) -> tuple[Patch | None, Undone]:
        """The write that takes back what the actor changed last, and what of theirs was written over since."""
        self.at(since)  # what is remembered reaches back that far
        is_after = self._judge(since)
        restored: dict[bytes, bytes | None] = {}
        settled: set[bytes] = set()  # names whose run of changes by this actor, seen from now, is over
        kept: dict[bytes, tuple[bytes | None, bytes | None]] = {}
        deadlines: dict[bytes, int] = {}  # of what is restored, in milliseconds since 1970
        for step, before, after, names in self._walk():
            if not is_after(step):
                break
            for name in names:
                if before.get(name) == after.get(name):
                    continue
                if step.who.actor != actor:
                    settled.add(name)
                elif name not in settled:
                    restored[name] = before.get(name)
                    if step.kind != "fields" or b"!" + name in step.fields:
                        deadlines[name] = int(step.fields.get(b"!" + name) or 0)
                elif name not in restored:
                    kept[name] = (before.get(name), after.get(name))
        now, schema = self.flat, self._target.schema
        wanted = {
            name: value
            for name, value in restored.items()
            if now.get(name) != value and not 0 < deadlines.get(name, 0) <= self._now
        }
        until = [
            (name, deadlines[name] - self._now)
            for name, value in wanted.items()
            if value is not None and name not in now and deadlines.get(name)
        ]
        sets = {name: value for name, value in wanted.items() if value is not None}
        after = {name: value for name, value in {**now, **wanted}.items() if value is not None}
        undone = Undone(
            changes_between(schema, now, after),
            [_change(schema, name, *values) for name, values in sorted(kept.items())],
        )
        if not wanted:
            return None, undone
        return Patch(sets, [name for name, value in wanted.items() if value is None], until=until), undone


def changes_between(
    schema: Schema[Any], before: Flat, after: Flat, names: Iterable[bytes] | None = None
) -> list[FieldChange]:
    """What is different, field by field and entry by entry; `names` of what may be, where they are known."""
    candidates = before.keys() | after.keys() if names is None else names
    changed = sorted(name for name in candidates if before.get(name) != after.get(name))
    return [_change(schema, name, before.get(name), after.get(name)) for name in changed]


def _change(schema: Schema[Any], name: bytes, before: bytes | None, after: bytes | None) -> FieldChange:
    field, entry, key = name.decode().partition(":")

    def value(encoded: bytes | None) -> Any:
        if encoded is None:
            return ABSENT
        try:
            return msgspec.json.decode(schema.event_value(name, encoded))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SchemaMismatch(f"a value of {schema.name}.{field}, or of its past, is damaged: {error}") from error

    return FieldChange(field, key if entry else None, value(before), value(after))
