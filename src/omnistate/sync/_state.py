"""The handle on one document."""

# Written by tools/unasync.py from src/omnistate/state/_api.py: change that one.

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

import msgspec

from omnistate.errors import Conflict, InvalidDeclaration, InvalidInput, PositionLost
from omnistate.state._arguments import Origin, digest_under, json_of, milliseconds_of, precondition_of, target_of
from omnistate.state._commands import (
    Done,
    Held,
    Patch,
    Read,
    Refused,
    Reply,
    Stored,
    Wait,
    delete,
    held_of,
    read,
    write,
)
from omnistate.state._events import GONE, Followed, decode_event
from omnistate.state._history import FieldChange, Past, Revision, Undone, changes_between, check_moment, read_history
from omnistate.state._known import Known
from omnistate.state._model import ABSENT, ANY, AnyState, Change, Expect, Precondition, Snapshot, Written, schema_of
from omnistate.state._near import look_up
from omnistate.state._schema import Flat, Schema
from omnistate.state._seal import Keyring
from omnistate.state._update import MAX_RACES, Call, apply, in_turn
from omnistate.store import (
    ACCEPTED,
    Command,
    Durability,
    Entry,
    Flow,
    LogKeys,
    Page,
    Position,
    check_operation_id,
    check_position,
    encode_id,
    new_operation_id,
)
from omnistate.sync._combiner import Combiner
from omnistate.sync._feed import Feed, Inbox
from omnistate.sync._flow import run
from omnistate.sync._link import Executor
from omnistate.sync._near import NearCache

P = ParamSpec("P")
R = TypeVar("R")


class Services:
    """What handles work with: one set per client and durability."""

    __slots__ = ("combiner", "durability", "feed", "keyring", "link", "near")

    def __init__(
        self,
        link: Executor,
        feed: Feed,
        keyring: Keyring | None,
        durability: Durability = ACCEPTED,
        near: NearCache | None = None,
    ) -> None:
        self.link, self.feed, self.keyring, self.durability, self.near = link, feed, keyring, durability, near
        self.combiner = Combiner(link, durability, near.written if near is not None else None)


class StateHandle(Generic[AnyState]):
    """One document of one owner. Building it costs nothing; each verb says what it costs."""

    __slots__ = ("_near", "_owner", "_services", "schema", "target")

    def __init__(
        self,
        services: Services,
        kind: type[AnyState],
        log: LogKeys,
        origin: Origin,
        owner: tuple[str, str] | None = None,
    ) -> None:
        self._services = services
        self._owner = f"{owner[0]}:{encode_id(owner[1])}" if owner else ""
        self.schema: Schema[AnyState] = schema_of(kind)
        self.target = target_of(log, self.schema, origin, owner, services.keyring)
        self._near = services.near if self.schema.is_near else None

    def __repr__(self) -> str:
        return f"<StateHandle {self.target.document.decode()}>"

    @property
    def services(self) -> Services:
        """For the slices on top: what it works with."""
        return self._services

    def get(self, *, fresh: bool = False) -> AnyState:
        """The value now; the class's default where nothing was written. One round trip.

        Of a class with `near_cache` it comes from memory where it can, without a round trip, and is then as late as an event
        is on its way here; with `fresh` it comes from the server. Raises `SchemaMismatch` when a part of it cannot be
        read; `read(partial=True)` gives the rest.
        """
        near = self._near
        if near is not None and not fresh:
            kept = near.kept.get(
                self.target.document
            )  # as `NearCache.find`, without a call: a hit is a third of a microsecond
            if kept is not None and kept.schema is self.schema and not (kept.until and kept.is_over()):
                kept.hits += 1
                return cast("AnyState", kept.value if kept.copier is None else kept.copier(kept.value))
        return (self.read(fresh=True)).value

    def read(self, *, partial: bool = False, fresh: bool = False) -> Snapshot[AnyState]:
        """The value with its version and the log's position of the same moment. One round trip, or none as with `get`.

        With `partial`, fields that cannot be read (damaged, of another type, encrypted with a key that is not here) have
        their defaults, and the snapshot's `unreadable` says which and why. They stay as they are until you write them.
        """
        if self._near is not None and not fresh and not partial and (kept := self._near.find(self.target)) is not None:
            return kept.snapshot()
        if self._near is not None:
            found = self._near.read(self.target)
        else:
            found = run(look_up(self.target), self._services.link.execute)
        held = found.held
        if not partial:
            return Snapshot(self.schema, Followed(self.target, held).encoded(), held.version, found.position)
        flat, unreadable = self.schema.salvage(self.schema.upgrade(held.flat, held.class_version))
        snapshot = Snapshot(self.schema, self.schema.join(flat), held.version, found.position)
        snapshot.unreadable = {**held.damaged, **unreadable}
        return snapshot

    def reading(self) -> Flow[Snapshot[AnyState]]:
        """For the slices on top: `read`, to be done together with others."""
        held, position = yield from self._reading()
        return Snapshot(self.schema, Followed(self.target, held).encoded(), held.version, position)

    def knowing(self) -> Flow[tuple[Snapshot[AnyState], Known | None]]:
        """For the slices on top: what `read` gives, and the document to write as a whole, where it has to be."""
        held, position = yield from self._reading()
        snapshot = Snapshot(self.schema, Followed(self.target, held).encoded(), held.version, position)
        is_other = self.schema.rewrites or (held.version is not None and held.class_version != self.schema.writes)
        return snapshot, Known.read(self.schema, held) if is_other else None

    def known(self) -> tuple[Snapshot[AnyState], Known | None]:
        """For the slices on top: `knowing`, alone."""
        return run(self.knowing(), self._services.link.execute)

    def value_of(self, header: bytes, fields: list[bytes]) -> AnyState:
        """For the slices on top: the value that was read by other means. Raises `SchemaMismatch`."""
        return self.schema.decode(Followed(self.target, held_of(self.target, header, fields)).encoded())

    def json_of(self, header: bytes, fields: list[bytes]) -> tuple[bytes, Flat]:
        """The same as JSON, and apart from it the fields that the class does not know. Raises `SchemaMismatch`."""
        followed, schema = Followed(self.target, held_of(self.target, header, fields)), self.schema
        encoded = followed.encoded()
        schema.decode(encoded)  # what is damaged is no JSON
        flat = schema.upgrade(followed.flat, followed.class_version)
        others = {name: value for name, value in flat.items() if name.partition(b":")[0] not in schema.known}
        if not others:
            return schema.to_json(encoded), {}
        return schema.to_json(schema.join({name: value for name, value in flat.items() if name not in others})), others

    def update(
        self,
        function: Callable[Concatenate[AnyState, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Written[AnyState, R]:
        """Runs `function(value, *args, **kwargs)` and stores what it changed; nobody's update is lost.

        The function may run again when another writer was first, so it must not do anything else. Its own errors are
        raised here and nothing is stored. What it returns is the `result`. Raises `Conflict` after 100 lost races,
        `InvalidValue`, `ValueTooLarge`. Usually one round trip: it starts from the document as this process saw it last.
        """
        one = Call(lambda value: function(value, *args, **kwargs), new_operation_id())
        return cast("Written[AnyState, R]", self._services.combiner.update(self.schema, self.target, one))

    def updating(self, function: Callable[[AnyState], R]) -> Flow[Written[AnyState, R]]:
        """For the slices on top: `update`, to be done together with those of other documents."""
        one, combiner = Call(function, new_operation_id()), self._services.combiner
        yield from apply(self.schema, self.target, combiner.seen, [one])
        return cast("Written[AnyState, R]", one.written(self.schema, self._services.durability))

    def update_once(
        self,
        operation_id: str,
        function: Callable[Concatenate[AnyState, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Written[AnyState, R | None]:
        """`update` under an operation id of yours: called again with it, nothing happens and `repeated` is true.

        An id is remembered for a day (at least two minutes for a customer with over 100,000 writes a day), when the call
        changed something. Raises `OperationIdReused` when the function or its arguments differ from the first call's, and what
        `update` raises. Round trips as `update`; it does not share a write with others.
        """
        check_operation_id(operation_id)
        said = json_of((getattr(function, "__qualname__", ""), args, kwargs))
        digest = digest_under(operation_id, b"update", self.target.document, said)
        one = Call(lambda value: function(value, *args, **kwargs), operation_id, digest)
        return cast("Written[AnyState, R | None]", self._services.combiner.update(self.schema, self.target, one))

    def load(
        self,
        value: AnyState,
        *,
        others: dict[str, bytes],
        deadline: int,
        deadlines: Mapping[str, int],
        now: int,
        overwrite: bool = False,
    ) -> Position:
        """`set` as an import needs it: deadlines of the document (0: none) and its fields are milliseconds since 1970.

        `others` are fields that the class does not know, as JSON.
        """
        encoded = self.schema.encode(value)
        patch = Patch(
            self.schema.split(encoded) | self.schema.check_others(others),
            replace=True,
            indexes=self.schema.indexes.of(value),
            ttl_ms=deadline - now if deadline else 0,
            until=[(name.encode(), max(one - now, 1)) for name, one in deadlines.items()],
        )
        return self._write(patch, ANY if overwrite else ABSENT)

    def set(
        self,
        value: AnyState,
        *,
        expect: Precondition | Snapshot[Any] = ANY,
        operation_id: str | None = None,
    ) -> Position:
        """Replaces the whole document; returns its version. One round trip.

        `expect`: `ANY`, `ABSENT`, or the snapshot that must still be the present one. Raises `Conflict` otherwise.
        """
        encoded = self.schema.encode(value)
        self.schema.validate(encoded)
        flat = self.schema.split(encoded)
        digest = digest_under(operation_id, b"set", self.target.document, encoded)
        patch = Patch(flat, replace=True, indexes=self.schema.indexes.of(value))
        return self._write(patch, expect, operation_id, digest=digest)

    def delete(self, *, expect: Precondition | Snapshot[Any] = ANY, operation_id: str | None = None) -> bool:
        """Removes the document; false when there was none. One round trip. Raises `Conflict`."""
        if operation_id is not None:
            check_operation_id(operation_id)
        command = delete(self.target, operation_id=operation_id or new_operation_id(), expect=precondition_of(expect))
        reply: Reply | None = self._services.link.execute(command)
        self._services.combiner.seen.forget(self.target.document)
        if isinstance(reply, Refused):
            raise self._conflict(reply)
        return reply is not None

    def patch(self, **fields: Any) -> Position:
        """Sets these fields and leaves the others, without reading. Never conflicts. One round trip.

        Two, here and in `put`, `remove`, `expire` and `increment`, where the document has to be read first: for an index that
        is computed, for a document of another version, and under `writes=`. Raises `InvalidValue`, `ValueTooLarge` (256 KiB),
        `QuotaExceeded`, `SchemaMismatch`, `CustomerMerged`.
        """
        flat = self.schema.plain(fields)
        return self._write(Patch(flat))

    def put(self, field: str, key: Any, value: Any, *, ttl: timedelta | None = None) -> Position:
        """Sets one entry of a mapping field, without reading. Never conflicts. One round trip.

        With `ttl` the entry is gone after that time, whatever becomes of its value, unless `expire` says otherwise.
        """
        name, encoded = self.schema.entry(field, key, value)
        return self._write(Patch({name: encoded}, until=[] if ttl is None else [(name, milliseconds_of("ttl", ttl))]))

    def expire(self, field: str, key: Any = None, *, after: timedelta | None) -> Position | None:
        """Gives a field, or an entry of a mapping field, a deadline of its own; None takes it away. One round trip.

        What is gone then has its default again, and an event says so. A field that is not there gets no deadline. None where
        there is no document.
        """
        name = self.schema.deadline_name(field, key)
        patch = Patch({}, until=[(name, 0 if after is None else milliseconds_of("after", after))])
        try:
            return (self._store(patch, Expect.PRESENT)).version
        except Conflict:
            return None

    def remove(self, field: str, key: Any) -> Position:
        """Removes one entry of a mapping field; it need not be there. Never conflicts. One round trip."""
        drops = [self.schema.entry_name(field, key)]
        return self._write(Patch({}, drops))

    def increment(self, field: str, key: Any = None, *, by: int = 1, operation_id: str | None = None) -> int:
        """Adds to an integer field, or to an entry of a mapping of integers; returns the sum. One round trip.

        What is absent counts as 0. Never conflicts. Raises `InvalidValue` beyond 2^53.
        """
        name = self.schema.counter(field, key)
        self.schema.check_step(field, by)
        digest = (
            ""
            if operation_id is None
            else digest_under(operation_id, b"increment", self.target.document, name, b"%d" % by)
        )
        return (self._store(Patch({}, steps=[(name, by)]), ANY, operation_id, digest)).sum

    def history(self, *, limit: int = 100, before: Position | datetime | None = None) -> list[Revision]:
        """Who changed what and when, the newest first; with `before`, only changes before that position, or time.

        The class must have `history=`. One round trip that costs what is remembered.
        """
        if type(limit) is not int or limit < 1:
            raise InvalidInput(f"limit must be a number of changes, 1 or more, not {limit!r}")
        if before is not None:
            check_moment("before", before)
        past = self._past()
        return list(islice((one for one in past.revisions() if before is None or one.is_before(before)), limit))

    def at(self, moment: Position | datetime) -> Snapshot[AnyState]:
        """The document as it was at a position of the log, or at a time (by the server's clock).

        Raises `PositionLost` when what is remembered does not reach back that far, or when fields expired since. One round
        trip that costs what is remembered.
        """
        past = self._past()
        flat, version = past.at(moment)
        return Snapshot(self.schema, self.schema.join(flat), version, past.position)

    def diff(self, before: Position | datetime, after: Position | datetime | None = None) -> list[FieldChange]:
        """What is different between two moments, or between one and now. Raises as `at` does. One round trip."""
        past = self._past()
        older, _ = past.at(before)
        newer = past.flat if after is None else past.at(after)[0]
        return changes_between(self.schema, older, newer)

    def undo(self, *, actor: str, since: Position | datetime, operation_id: str | None = None) -> Undone:
        """Takes back what `actor` changed after a position or a time: what only that actor touched last becomes what it was.

        What somebody else has changed since is kept, and named in the result. The undoing is a change like every other, by
        you. Raises `PositionLost` when what is remembered does not reach back that far. Two round trips.
        """
        if operation_id is not None:
            check_operation_id(operation_id)
        check_moment("since", since)
        for _ in range(MAX_RACES):
            past = self._past()
            patch, undone = past.undo(actor, since)
            if patch is None:
                return undone
            expect = past.version or ABSENT
            digest = digest_under(operation_id, b"undo", self.target.document, actor.encode(), str(since).encode())
            try:
                stored = self._store(patch, expect, operation_id, digest)
            except Conflict:
                continue
            return msgspec.structs.replace(undone, version=stored.version)
        raise Conflict(f"{self.target.name} was changed by others {MAX_RACES} times in a row: call again")

    def _past(self) -> Past:
        if self.schema.history is None:
            raise InvalidDeclaration(
                f"{self.schema.name} remembers no past: declare it, class ...(State, history=1000)"
            )
        reply = self._services.link.execute(read_history(self.target))
        return Past(self.target, *reply)

    def rewrite(self, *, force: bool = False, dry_run: bool = False) -> bool:
        """Stores the document as the class says now: its version, codec, indexes; with `force` also when nothing differs.

        Neither its value nor its deadlines change. False where there is nothing to do. Raises `SchemaMismatch` when it
        cannot be read. With `dry_run` nothing is written. Two round trips.
        """
        for _ in range(MAX_RACES):
            found: Read = self._services.link.execute(read(self.target))
            held, schema = found.held, self.schema
            is_right = held.class_version == schema.writes and held.codec == schema.packing.name
            if held.version is None or (is_right and not force):
                return False
            flat = Known.read(schema, held).stored
            assert flat is not None
            schema.decode(schema.join(flat))
            indexes = [(name, "+now" if score == "now" else score) for name, score in schema.indexes_of(flat)]
            patch = Patch(schema.downgrade(flat), rewrite=True, indexes=indexes, ttl_ms=-1)
            if dry_run:
                return True
            reply = self._execute(write(self.target, patch, ids=[new_operation_id()], expect=held.version))
            if not isinstance(reply, Refused):
                self._written(reply)
                return True
        raise Conflict(f"{self.target.name} was changed by others {MAX_RACES} times in a row: call again")

    def watch(self, *, after: Position | None = None) -> Generator[Change[AnyState], None, None]:
        """The value now, then every change, as long as you iterate.

        With `after` (a position you have seen) it starts with what happened since, and yields nothing for the present
        when that is nothing; it raises `PositionLost` when the log no longer reaches back that far. Where that happens later
        (you fell more than 1,000 events behind, or a failover lost some), the next change is the value as it is then, and has
        no `patches`. Three round trips to start, none per change.
        """
        if after is not None:
            check_position("after", after)
        inbox = Inbox()
        leave = self._services.feed.join(self.target.log, inbox)
        try:
            change, held = self._catch_up(inbox, after)
            if change is not None:
                yield change
            position = change.position if change is not None else cast("Position", after)
            while True:
                try:
                    entries = inbox.take(self._services.link, self.target.log, position)
                except PositionLost:
                    change, held = self._present()
                    position = change.position
                    yield change
                    continue
                position = Position(position.epoch, entries[-1].offset)
                patches = [entry for entry in entries if self._concerns(entry)]
                for entry in patches:
                    held.apply(decode_event(entry.event))
                if patches:
                    yield self._change(held, patches, position)
        finally:
            leave()

    def _present(self) -> tuple[Change[AnyState], Followed]:
        held, position = self._read()
        followed = Followed(self.target, held)
        return Change(self.schema, followed.encoded(), held.version, position, ()), followed

    def _catch_up(self, inbox: Inbox, after: Position | None) -> tuple[Change[AnyState] | None, Followed]:
        link = self._services.link
        if after is None:
            return self._present()
        found: Read = link.execute(read(self.target))
        page: Page = inbox.missed(link, self.target.log, after)
        entries = [entry for entry in page.entries if self._concerns(entry)]
        followed = Followed(self.target, found.held)
        for entry in entries:
            if entry.offset > found.position.offset:
                followed.apply(decode_event(entry.event))
        if not entries:
            return None, followed
        return self._change(followed, entries, page.position), followed

    def _concerns(self, entry: Entry) -> bool:
        if b'"state.' not in entry.event[:20]:
            return False
        event = decode_event(entry.event)
        return event.state == self.target.name and event.owner == self._owner

    def _change(self, held: Followed, entries: list[Entry], position: Position) -> Change[AnyState]:
        deleted = decode_event(entries[-1].event).type in GONE
        version = None if deleted else Position(position.epoch, entries[-1].offset)
        return Change(self.schema, held.encoded(), version, position, tuple(entry.event for entry in entries))

    def _read(self) -> tuple[Held, Position]:
        return run(self._reading(), self._services.link.execute)

    def _reading(self) -> Flow[tuple[Held, Position]]:
        found = yield from look_up(self.target)
        return found.held, found.position

    def _write(
        self,
        patch: Patch,
        expect: Precondition | Snapshot[Any] = ANY,
        operation_id: str | None = None,
        *,
        digest: str = "",
    ) -> Position:
        return (self._store(patch, precondition_of(expect), operation_id, digest)).version

    def _store(
        self, patch: Patch, expect: Precondition = ANY, operation_id: str | None = None, digest: str = ""
    ) -> Stored:
        ids, schema = [operation_id or new_operation_id()], self.schema
        if not schema.rewrites and (patch.indexes or not schema.indexes.has_computed):
            if schema.indexes.names and not patch.indexes:
                scores = schema.indexes.of_changes(patch.sets, patch.drops, patch.steps)
                patch = msgspec.structs.replace(patch, indexes=scores)
            reply = self._execute(write(self.target, patch, ids=ids, expect=expect, digest=digest))
            if isinstance(reply, Stored):
                self._services.combiner.seen.follow(self.target.document, patch, reply.version)
                return reply
            if not (isinstance(reply, Refused) and reply.reason == "class"):
                return self._written(reply)
        return self._store_whole(patch, expect, ids, digest)

    def _store_whole(self, patch: Patch, expect: Precondition, ids: list[str], digest: str) -> Stored:
        """The patch applied here, where the document has to be brought into another shape as a whole."""
        for _ in range(MAX_RACES):
            found: Read = self._services.link.execute(read(self.target))
            known = Known.read(self.schema, found.held)
            whole, sums = known.whole(patch)
            wanted = known.version or ABSENT if expect in (ANY, Expect.PRESENT) else expect
            if expect is Expect.PRESENT and known.version is None:
                raise Conflict(f"{self.target.name} does not exist")
            reply = self._execute(write(self.target, whole, ids=ids, expect=wanted, digest=digest))
            if isinstance(reply, Refused) and expect in (ANY, Expect.PRESENT):
                continue
            stored = self._written(reply)
            return stored if whole.steps or not sums else Stored(stored.version, sums[0])
        raise Conflict(f"{self.target.name} was changed by others {MAX_RACES} times in a row: call again")

    def _execute(self, command: Command[Reply]) -> Reply:
        reply = self._services.link.execute(command)
        return reply if not isinstance(reply, Wait) else run(in_turn(self.target, command), self._services.link.execute)

    def _written(self, reply: Reply) -> Stored:
        self._services.combiner.seen.forget(self.target.document)
        if isinstance(reply, Stored):
            return reply
        if isinstance(reply, Refused):
            raise self._conflict(reply)
        assert isinstance(reply, Done)
        stored = reply.results[0]
        assert stored is not None
        return stored

    def _conflict(self, reply: Refused) -> Conflict:
        version = reply.held.version
        now = "does not exist" if version is None else f"is at version {version.offset}"
        return Conflict(f"{self.target.name} {now}, not what was expected: read it again and decide", position=version)
