"""Several changes of one customer, all or nothing, in one call."""

# Written by tools/unasync.py from src/omnistate/customer/_transaction.py: change that one.

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from inspect import iscoroutine
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast, overload

import msgspec

from omnistate.collection import Collection, Counter, List, Map, Set, SortedSet, UniqueCounter
from omnistate.customer._outcome import Outcome
from omnistate.errors import Conflict, InvalidInput, OperationIdReused, SessionExpired
from omnistate.session import session_part
from omnistate.state import (
    ABSENT,
    ANY,
    AnyState,
    Changed,
    Flat,
    Known,
    Part,
    Patch,
    Precondition,
    Remembered,
    Schema,
    Snapshot,
    State,
    Target,
    delete_part,
    expect_part,
    in_order,
    milliseconds_of,
    parse_change,
    precondition_of,
    read_outcome,
    schema_of,
    sums_of,
    write_part,
    write_refusal,
)
from omnistate.store import Command, Flow, Position, call, check_operation_id, digest_of, new_operation_id
from omnistate.sync._collection import CollectionHandle, Place, open_collection
from omnistate.sync._declares import Declares
from omnistate.sync._flow import pause, run, together
from omnistate.sync._guard import Guard
from omnistate.sync._session import Session
from omnistate.sync._state import StateHandle

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
H = TypeVar("H")
MAX_PARTS = 100
MAX_RACES = 100  # tries of `customer.update`
MAX_TURNS = 1000  # times that a transaction waits for other writers' turns


_Settled = tuple[Part, Callable[[bytes], None], Callable[[list[Any]], Exception]]


class _OthersTurn(Conflict):
    """A writer that has waited long is let through first: a matter of milliseconds."""


class _ReadAgain(Conflict):
    """A document has to be written as a whole, for which it must have been read as it is now."""

    def __init__(self, message: str, changes: DocumentChanges[Any]) -> None:
        super().__init__(message)
        self.changes = changes


class DocumentChanges(Generic[AnyState]):
    """What a transaction does to one document. The verbs only note it: nothing is sent before the block ends."""

    def __init__(self, handle: StateHandle[AnyState]) -> None:
        self._handle = handle
        self._schema: Schema[AnyState] = handle.schema
        self._target: Target = handle.target
        self._expect: Precondition = ANY
        self._sets: Flat = {}
        self._drops: dict[bytes, None] = {}
        self._steps: dict[bytes, int] = {}
        self._outcomes: list[tuple[bytes, Outcome[int]]] = []
        self._until: dict[bytes, int] = {}
        self._replace = self._delete = False
        self._read: Snapshot[AnyState] | None = None
        self._known: Known | None = None  # where another version of the class wrote it, or is to read it
        self._sums: dict[bytes, int] = {}  # of steps that the server is not asked to do

    def expect(self, expect: Precondition | Snapshot[Any]) -> None:
        """The transaction is refused with `Conflict` unless the document is absent (`ABSENT`), or still at this version."""
        self._expect = precondition_of(expect)

    def patch(self, **fields: Any) -> None:
        """Sets these fields and leaves the others."""
        self._set(self._schema.plain(fields))

    def put(self, field: str, key: Any, value: Any, *, ttl: timedelta | None = None) -> None:
        """Sets one entry of a mapping field; with `ttl` it is gone after that time."""
        name, encoded = self._schema.entry(field, key, value)
        self._set({name: encoded})
        if ttl is not None:
            self._until[name] = milliseconds_of("ttl", ttl)

    def expire(self, field: str, key: Any = None, *, after: timedelta | None) -> None:
        """Gives a field, or an entry of a mapping field, a deadline of its own; None takes it away."""
        name = self._schema.deadline_name(field, key)
        self._until[name] = 0 if after is None else milliseconds_of("after", after)

    def remove(self, field: str, key: Any) -> None:
        """Removes one entry of a mapping field; it need not be there."""
        name = self._schema.entry_name(field, key)
        self._sets.pop(name, None)
        self._steps.pop(name, None)
        self._drops[name] = None

    def increment(self, field: str, key: Any = None, *, by: int = 1) -> Outcome[int]:
        """Adds to an integer field, or to an entry of a mapping of integers; the outcome is the sum."""
        name = self._schema.counter(field, key)
        self._schema.check_step(field, by)
        if name in self._sets or name in self._drops or self._replace or self._delete:
            self._set({name: b"%d" % (int(self._sets.get(name, b"0")) + by)})
        else:
            self._steps[name] = self._steps.get(name, 0) + by
        outcome = Outcome(int)
        self._outcomes.append((name, outcome))
        return outcome

    def set(self, value: AnyState) -> None:
        """Replaces the whole document."""
        encoded = self._schema.encode(value)
        self._schema.validate(encoded)
        self._forget()
        self._replace, self._sets = True, self._schema.split(encoded)

    def delete(self) -> None:
        """Removes the document."""
        self._forget()
        self._delete = True

    def _save(self) -> None:
        """Notes what was changed in the value that was read, where nothing else was said of it."""
        if self._read is None or self._replace or self._delete:
            return
        encoded = self._schema.encode(self._read.value)
        self._schema.validate(encoded)
        before = self._schema.encode(self._schema.decode(self._read.encoded))
        sets, drops = self._schema.diff(self._schema.split(before), self._schema.split(encoded))
        said = self._sets.keys() | self._drops.keys() | self._steps.keys()
        self._sets.update({name: value for name, value in sets.items() if name not in said})
        self._drops.update({name: None for name in drops if name not in said})

    def _set(self, sets: Flat) -> None:
        if self._delete:  # it is gone first, and begins anew
            self._delete, self._replace = False, True
        for name, value in sets.items():
            self._drops.pop(name, None)
            self._steps.pop(name, None)
            self._sets[name] = value

    def _forget(self) -> None:
        self._replace = self._delete = False
        self._sets, self._drops, self._steps, self._until = {}, {}, {}, {}

    def _load(self) -> None:
        """Reads the document, where it must be known for what is to be done to it. One round trip or none."""
        if self._schema.rewrites and self._known is None and self._read is None and not self._delete:
            self._load_again()

    def _load_again(self) -> None:
        _, self._known = self._handle.known()

    def _part(self) -> Part | None:
        self._save()
        if self._delete:
            return delete_part(self._target, self._expect)
        if self._sets or self._drops or self._steps or self._until or self._replace:
            drops, steps, until = list(self._drops), list(self._steps.items()), list(self._until.items())
            patch = Patch(self._sets, drops, steps, self._replace, until=until)
            if self._known is None:
                return write_part(self._target, self._indexed(patch), self._expect)
            whole, sums = self._known.whole(patch)
            self._sums = {} if whole.steps else dict(zip(self._steps, sums, strict=True))
            return write_part(self._target, whole, (self._known.version or ABSENT) if self._is_blind else self._expect)
        return expect_part(self._target, self._expect) if self._expect is not ANY else None

    @property
    def _is_blind(self) -> bool:
        """Whether the caller does not care which version is changed."""
        return self._expect is ANY

    def _indexed(self, patch: Patch) -> Patch:
        schema = self._schema
        if not schema.indexes.names:
            return patch
        if self._replace or self._read is not None:
            held = schema.split(self._read.encoded) if self._read is not None else {}
            entries = schema.indexes_of(patch.applied(held)[0])
        elif schema.indexes.has_computed:
            raise InvalidInput(
                f"{schema.name} has an index that is computed from its value: tx.get({schema.name}) first"
            )
        else:
            entries = schema.indexes.of_changes(patch.sets, patch.drops, patch.steps)
        return msgspec.structs.replace(patch, indexes=entries)

    def _said(self) -> list[Any]:
        """What was asked for, whatever its encryption makes of it."""
        return [
            self._target.entry,
            self._replace,
            self._delete,
            *(one for field in sorted(self._sets.items()) for one in field),
            *sorted(self._drops),
            *(f"{name!r} {amount}" for name, amount in sorted(self._steps.items())),
            *(f"{name!r} {ms}" for name, ms in sorted(self._until.items())),
        ]

    def _settle(self, result: bytes) -> None:
        names = [name for name, _ in in_order(list(self._steps.items()))]
        sums = self._sums or dict(zip(names, sums_of(result), strict=False))
        for name, outcome in self._outcomes:
            outcome.settle(b"%d" % sums[name] if name in sums else self._sets.get(name, b"0"))

    def _refusal(self, reply: list[Any]) -> Exception:
        if reply[0] == b"conflict":
            said = f"{self._target.name} was changed by another writer: nothing of the transaction was applied"
            is_ours = reply[3] == b"class" or (self._known is not None and self._is_blind)
            return _ReadAgain(said, self) if is_ours else Conflict(said)
        if reply[0] == b"wait":
            return _OthersTurn(
                f"{self._target.name} is written by too many others: call again, or write to it less often"
            )
        return write_refusal(self._target, reply)


class Transaction:
    """`with customer.transaction() as tx:` - notes changes, and applies all of them or none when the block ends.

    What you `get`, `read` or `get_all` inside is a precondition: when somebody changed it meanwhile, the block ends with
    `Conflict` and nothing has changed; `customer.update(function, ...)` tries again by itself. An exception inside the
    block leaves everything as it was. One round trip at the end of the block, and one for each reading. Only one customer
    can be in a transaction; what concerns two is done in steps that can be repeated, each under an operation id.
    """

    def __init__(self, place: Place, operation_id: str | None = None, digest: str | None = None) -> None:
        if operation_id is not None:
            check_operation_id(operation_id)
        self._place, self._operation_id, self._digest = place, operation_id, digest
        self._first_read: str | None = None  # the only thing that a repeated block that reads does again for certain
        self._earlier: Remembered | None = None
        self._documents: dict[bytes, DocumentChanges[Any]] = {}
        self._others: list[tuple[Part, Outcome[Any], Callable[[list[Any]], Exception]]] = []
        self._expected: dict[str, tuple[Precondition, Part, str]] = {}
        self._ended: list[Session] = []
        self._is_over = False
        self.position: Position | None = None
        self.repeated = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        if kind is None:
            self._commit()

    def get(self, kind: type[AnyState] | StateHandle[AnyState]) -> AnyState:
        """The value now, which must still be the present one when the transaction is applied. One round trip.

        What you change in it belongs to the transaction.
        """
        return (self.read(kind)).value

    def read(self, kind: type[AnyState] | StateHandle[AnyState]) -> Snapshot[AnyState]:
        """`get` with the version: what you change in the snapshot's `value` belongs to the transaction. One round trip."""
        handle = self._of(kind)[1]  # what belongs to a session is read through it
        return run(self.reading(handle), handle.services.link.execute)

    def reading(self, kind: type[AnyState] | StateHandle[AnyState]) -> Flow[Snapshot[AnyState]]:
        """For `customer.update`: `read`, to be done together with others."""
        changes, handle = self._of(kind)
        if changes._read is None:
            is_first = self._notes_first(handle.target.entry)
            changes._read, changes._known = yield from handle.knowing()
            changes.expect(changes._read)
            if is_first:
                yield from self._look_up()
        return changes._read

    @overload
    def get_all(self, declaration: List[T]) -> list[T]: ...
    @overload
    def get_all(self, declaration: Set[T]) -> set[T]: ...
    @overload
    def get_all(self, declaration: Map[K, V]) -> dict[K, V]: ...
    @overload
    def get_all(self, declaration: SortedSet[T]) -> dict[T, float]: ...
    @overload
    def get_all(self, declaration: Counter | UniqueCounter[Any]) -> int: ...

    def get_all(self, declaration: Collection[Any, Any]) -> Any:
        """All that is in a collection, which must still be so when the transaction is applied. A round trip of its size.

        Of a `Counter` its value, of a `UniqueCounter` its count. A `WorkQueue` is refused with `InvalidInput`.
        """
        handle: CollectionHandle[Any, Any] = open_collection(declaration, self._place)
        if declaration.kind == "queue":
            raise InvalidInput(f"{declaration.name} is a WorkQueue, of which nothing can be read: claim its items")
        is_first = self._notes_first(handle.entry)
        value, version = handle.snapshot()
        self._expected[handle.entry] = (version or ABSENT, handle.expect_part(version or ABSENT), declaration.name)
        if is_first:
            run(self._look_up(), self._place.services.link.execute)
        return value

    def state(self, kind: type[AnyState] | StateHandle[AnyState]) -> DocumentChanges[AnyState]:
        """The customer's document of this class, or one of this customer's by its handle, to be changed."""
        return self._of(kind)[0]

    def collection(self, declaration: Declares[H]) -> H:
        """The customer's collection, whose changes belong to the transaction and give an `Outcome`. One change of each.

        Its readings are answered at once and are no precondition; `get_all` is one.
        """
        return open_collection(declaration, self._place, self._record)

    def require(self, session: Session) -> None:
        """The transaction is refused with `SessionExpired` unless this session lives."""
        self._session("session_expect", session)

    def touch(self, session: Session) -> None:
        """Moves the session's idle deadline; refused with `SessionExpired` unless it lives."""
        self._session("session_touch", session)

    def end(self, session: Session, *, reason: str = "logout") -> None:
        """Ends the session; refused with `SessionExpired` unless it lives."""
        self._session("session_end", session, reason)

    def _session(self, name: str, session: Session, reason: str = "") -> None:
        if session.customer_id != self._customer_id:
            raise InvalidInput(_ELSEWHERE)
        if any(session.is_same(other) for other in self._ended):
            raise InvalidInput("this session is ended earlier in the same transaction")
        self._add(session.part(name, reason), Outcome(bytes), lambda _: SessionExpired(_NO_SESSION))
        if name == "session_end":
            self._ended.append(session)

    @property
    def _customer_id(self) -> str:
        return self._place.log.id

    def _of(
        self, kind: type[AnyState] | StateHandle[AnyState]
    ) -> tuple[DocumentChanges[AnyState], StateHandle[AnyState]]:
        if self._is_over:
            raise InvalidInput(_OVER)
        if isinstance(kind, StateHandle):
            handle = kind
        else:
            handle = StateHandle(self._place.services, kind, self._place.log, self._place.origin)
        if handle.target.log != self._place.log:
            raise InvalidInput(_ELSEWHERE)
        changes = self._documents.get(handle.target.document)
        if changes is None:
            changes = self._documents[handle.target.document] = DocumentChanges(handle)
        elif changes._schema is not handle.schema:
            raise InvalidInput(f"two classes are called {handle.schema.name}: use one of them in a transaction")
        return changes, handle

    def _record(self, target: Any, part: Part, judge: Callable[[bytes], T]) -> Outcome[T]:
        if any(part.arguments[0] == other.arguments[0] for other, _, _ in self._others if other.keys):
            name = target.collection.name
            raise InvalidInput(f"a transaction changes each collection once: give all values of {name} to one call")

        def refusal(reply: list[Any]) -> Exception:
            if reply[0] == b"conflict":
                return _changed_meanwhile(target.collection.name)
            return cast("Exception", target.refusal(reply))

        return self._add(part, Outcome(judge), refusal)

    def _add(self, part: Part, outcome: Outcome[T], refusal: Callable[[list[Any]], Exception]) -> Outcome[T]:
        if self._is_over:
            raise InvalidInput(_OVER)
        self._others.append((part, outcome, refusal))
        return outcome

    def _parts(self) -> list[_Settled]:
        documents = [(changes._part(), changes) for changes in self._documents.values()]
        found: list[_Settled] = [
            (part, changes._settle, changes._refusal) for part, changes in documents if part is not None
        ]
        found += self._session_parts([changes for part, changes in documents if part is not None])
        for part, outcome, refusal in self._others:
            expected_now = self._expected.get(str(part.arguments[0]))
            found.append((part if expected_now is None else part.expecting(expected_now[0]), outcome.settle, refusal))
        changed = {str(part.arguments[0]) for part, _, _ in self._others}
        for entry, (_, part, name) in self._expected.items():
            if entry in changed:
                continue
            found.append((part, lambda _: None, lambda _, name=name: _changed_meanwhile(name)))  # type: ignore[misc]
        return found

    def _session_parts(self, documents: list[DocumentChanges[Any]]) -> list[_Settled]:
        """The sessions to which documents belong must live."""
        links = (changes._handle.services.link for changes in documents)
        needed = {link.access: session_part("session_expect", link.access) for link in links if isinstance(link, Guard)}
        return [(part, lambda _: None, lambda _: SessionExpired(_NO_SESSION)) for part in needed.values()]

    def _notes_first(self, entry: str) -> bool:
        """Whether nothing was read before, so that an operation id is yet to be looked up."""
        if self._first_read is not None:
            return False
        self._first_read = entry
        return self._operation_id is not None and self._digest is None

    def _look_up(self) -> Flow[None]:
        """Whether the block was applied before. After reading: what was read before it was applied is no precondition then."""
        assert self._operation_id is not None
        intention = self._intention()
        self._earlier = yield from call(read_outcome(self._place.log.meta, self._operation_id, intention))
        self.repeated = self._earlier is not None

    def _intention(self) -> str:
        """What a block that reads is known by, whatever it makes of what it reads."""
        return digest_of(("reads", self._first_read))

    def _settle_earlier(self, earlier: Remembered) -> None:
        self.position, self.repeated = earlier.changed.position, True
        with suppress(InvalidInput):  # what it would do now is not to be done
            settles = self._parts()
            if earlier.digest == self._digest_of([part for part, _, _ in settles]):
                self._settle(settles, earlier.changed)

    def _settle(self, settles: list[_Settled], changed: Changed) -> None:
        for (_, settle, _), result in zip(settles, changed.results, strict=True):
            settle(result)

    def _commit(self) -> None:
        if self._earlier is not None:
            self._settle_earlier(self._earlier)
            return
        for changes in self._documents.values():
            changes._load()
        for _ in range(MAX_RACES):
            try:
                self._send()
                return
            except _ReadAgain as refused:
                conflict = Conflict(str(refused))
                pause(random.random() * 0.002)  # it may be another writer's turn
                refused.changes._load_again()
        raise conflict

    def _send(self) -> None:
        settles = self._parts()
        if not settles:
            return
        if len(settles) > MAX_PARTS:
            raise InvalidInput(f"a transaction changes up to {MAX_PARTS} things, not {len(settles)}: split it")
        parts = [part for part, _, _ in settles]
        command = parse_change(
            self._place.log,
            parts,
            self._operation_id or new_operation_id(),
            lambda index, reply: settles[index][2](reply),
            "" if self._operation_id is None else self._digest or self._digest_of(parts),
        )
        try:
            changed = self._execute(command)
        except OperationIdReused:
            if self._first_read is None or self._digest is not None:
                raise
            run(
                self._look_up(), self._place.services.link.execute
            )  # the same block, which found things otherwise, was applied since this one read
            if self._earlier is None:
                raise
            self._settle_earlier(self._earlier)
            return
        finally:
            for document in self._documents:
                self._place.services.combiner.seen.forget(document)
        self.position, self.repeated = changed.position, changed.repeated
        if self._digest is None:
            self._settle(settles, changed)

    def _digest_of(self, parts: list[Part]) -> str:
        """Tells what is done under one operation id apart. What rests on what was read differs each time, rightly so."""
        if self._first_read is not None:
            return self._intention() + digest_of(f"{part.name} {part.arguments[0]!r}" for part in parts)
        said = [
            *(changes._said() for changes in self._documents.values()),
            *(part.intention for part, _, _ in self._others),
        ]
        return digest_of(digest_of(one) for one in said)

    def _execute(self, command: Command[Changed]) -> Changed:
        for _ in range(MAX_TURNS):
            try:
                return self._place.services.link.execute(command)
            except _OthersTurn:
                pause(random.random() * 0.002)
        return self._place.services.link.execute(command)


def _changed_meanwhile(name: str) -> Conflict:
    return Conflict(
        f"{name} is not as expected, or was changed by another writer: nothing of the transaction was applied"
    )


_NO_SESSION = "the session ended or a deadline of it passed: nothing of the transaction was applied"
_OVER = "the transaction is over: begin another one with customer.transaction()"
_ELSEWHERE = (
    "this belongs to another customer, and a transaction changes one: do it in steps that can be repeated, each under an "
    "operation id (docs/transactions.md, 'Two customers')"
)


def _was_done(place: Place, operation_id: str, digest: str) -> bool:
    return (place.services.link.execute(read_outcome(place.log.meta, operation_id, digest))) is not None


def update_several(
    place: Place, function: Callable[..., T], kinds: tuple[type[State], ...], operation_id: str | None
) -> tuple[T, Transaction]:
    """Runs the function on the values of several documents and stores what it changed, again until nobody interferes."""
    digest = digest_of((getattr(function, "__qualname__", ""), *(schema_of(kind).name for kind in kinds)))
    for race in range(MAX_RACES):
        transaction = Transaction(place, operation_id, digest)
        read = together(map(transaction.reading, kinds), place.services.link)
        try:
            result = function(*(one.value for one in read))
        except Exception:
            if operation_id is not None and (_was_done(place, operation_id, digest)):
                transaction.repeated = True
                return cast("T", None), transaction
            raise
        if iscoroutine(result):
            result.close()
            raise InvalidInput("the function given to update must not be async: it may run several times")
        try:
            with transaction:
                pass
        except Conflict:
            pause(random.random() * min(0.05, 0.001 * 2**race))
            continue
        return result, transaction
    names = ", ".join(kind.__name__ for kind in kinds)
    raise Conflict(
        f"{names} were changed by others {MAX_RACES} times in a row: call again, or write to them less often"
    )
