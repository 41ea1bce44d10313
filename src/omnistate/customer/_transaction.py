"""Several changes of one customer, all or nothing, in one call."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Generator, Iterable, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

import msgspec

from omnistate.collection import Collection, Place, open_collection
from omnistate.errors import Conflict, InvalidInput, SessionExpired
from omnistate.session import Session, session_part
from omnistate.state import (
    ANY,
    AnyState,
    Changed,
    Flat,
    Part,
    Patch,
    Precondition,
    Schema,
    Snapshot,
    State,
    StateHandle,
    Target,
    delete_part,
    expect_part,
    parse_change,
    precondition_of,
    schema_of,
    sums_of,
    write_part,
    write_refusal,
)
from omnistate.store import Command, Position, check_operation_id, new_operation_id

T = TypeVar("T")
H = TypeVar("H")
MAX_PARTS = 100
MAX_RACES = 100  # tries of `customer.update`
MAX_TURNS = 1000  # times that a transaction waits for other writers' turns
_NOT_YET = object()


class _OthersTurn(Conflict):
    """A writer that has waited long is let through first: a matter of milliseconds."""


class Outcome(Generic[T]):
    """What a change inside a transaction gives: await it, or ask for its `value`, once the transaction is over."""

    __slots__ = ("_judge", "_value")

    def __init__(self, judge: Callable[[bytes], T]) -> None:
        self._judge = judge
        self._value: Any = _NOT_YET

    @property
    def value(self) -> T:
        if self._value is _NOT_YET:
            raise InvalidInput("the transaction is not over: its results are there after the `async with` block")
        return cast("T", self._value)

    def __await__(self) -> Generator[Any, None, T]:
        yield from ()
        return self.value

    def _settle(self, result: bytes) -> None:
        self._value = self._judge(result)


class DocumentChanges(Generic[AnyState]):
    """What a transaction does to one document. The verbs only note it: nothing is sent before the block ends."""

    def __init__(self, schema: Schema[AnyState], target: Target) -> None:
        self._schema, self._target = schema, target
        self._expect: Precondition = ANY
        self._sets: Flat = {}
        self._drops: dict[bytes, None] = {}
        self._steps: dict[bytes, int] = {}
        self._outcomes: list[tuple[bytes, Outcome[int]]] = []
        self._replace = self._delete = False
        self._read: Snapshot[AnyState] | None = None

    def expect(self, expect: Precondition | Snapshot[Any]) -> None:
        """The transaction is refused with `Conflict` unless the document is absent (`ABSENT`), or still at this version."""
        self._expect = precondition_of(expect)

    def patch(self, **fields: Any) -> None:
        """Sets these fields and leaves the others."""
        self._set(self._schema.plain(fields))

    def put(self, field: str, key: Any, value: Any) -> None:
        """Sets one entry of a mapping field."""
        name, encoded = self._schema.entry(field, key, value)
        self._set({name: encoded})

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
        if name in self._sets or name in self._drops or self._replace:
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

    def _save(self, snapshot: Snapshot[AnyState], value: AnyState) -> None:
        """What makes the value of what was read."""
        encoded = self._schema.encode(value)
        self._schema.validate(encoded)
        sets, drops = self._schema.diff(self._schema.split(snapshot.json), self._schema.split(encoded))
        self._set(sets)
        for name in drops:
            self._sets.pop(name, None)
            self._drops[name] = None

    def _set(self, sets: Flat) -> None:
        self._delete = False
        for name, value in sets.items():
            self._drops.pop(name, None)
            self._steps.pop(name, None)
            self._sets[name] = value

    def _forget(self) -> None:
        self._replace = self._delete = False
        self._sets, self._drops, self._steps = {}, {}, {}

    def _part(self) -> Part | None:
        if self._delete:
            return delete_part(self._target, self._expect)
        if self._sets or self._drops or self._steps or self._replace:
            patch = Patch(self._sets, list(self._drops), list(self._steps.items()), self._replace)
            return write_part(self._target, self._indexed(patch), self._expect)
        return expect_part(self._target, self._expect) if self._expect is not ANY else None

    def _indexed(self, patch: Patch) -> Patch:
        schema = self._schema
        if not schema.indexes.names:
            return patch
        if self._replace or self._read is not None:
            held = schema.split(self._read.json) if self._read is not None else {}
            entries = schema.indexes_of(patch.applied(held)[0])
        elif schema.indexes.has_computed:
            raise InvalidInput(
                f"{schema.name} has an index that is computed from its value: await tx.get({schema.name}) first"
            )
        else:
            entries = schema.indexes.of_changes(patch.sets, patch.drops, patch.steps)
        return msgspec.structs.replace(patch, indexes=entries)

    def _settle(self, result: bytes) -> None:
        sums = dict(zip(self._steps, sums_of(result), strict=False))
        for name, outcome in self._outcomes:
            outcome._settle(b"%d" % sums[name] if name in sums else self._sets.get(name, b"0"))

    def _refusal(self, reply: list[Any]) -> Exception:
        if reply[0] == b"conflict":
            return Conflict(
                f"{self._target.name} was changed by another writer: nothing of the transaction was applied"
            )
        if reply[0] == b"wait":
            return _OthersTurn(
                f"{self._target.name} is written by too many others: call again, or write to it less often"
            )
        return write_refusal(self._target, reply)


class Transaction:
    """`async with customer.transaction() as tx:` - notes changes, and applies all of them or none when the block ends.

    What you `get` or `read` inside is a precondition: when somebody changed it meanwhile, the block ends with `Conflict`
    and nothing has changed; `customer.update(function, ...)` tries again by itself. An exception inside the block leaves
    everything as it was. One round trip at the end of the block, and one for each reading. Only one customer can be in a
    transaction; what concerns two is done in steps that can be repeated, each under an operation id, as `merge` does.
    """

    def __init__(self, place: Place, operation_id: str | None = None, digest: str | None = None) -> None:
        if operation_id is not None:
            check_operation_id(operation_id)
        self._place, self._operation_id, self._digest = place, operation_id, digest
        self._documents: dict[bytes, DocumentChanges[Any]] = {}
        self._others: list[tuple[Part, Outcome[Any], Callable[[list[Any]], Exception]]] = []
        self._read: dict[bytes, Snapshot[Any]] = {}
        self._is_over = False
        self.position: Position | None = None
        self.repeated = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        if kind is None:
            await self._commit()

    async def get(self, kind: type[AnyState] | StateHandle[AnyState]) -> AnyState:
        """The value now, which must still be the present one when the transaction is applied. One round trip."""
        return (await self.read(kind)).value

    async def read(self, kind: type[AnyState] | StateHandle[AnyState]) -> Snapshot[AnyState]:
        """The document now, which must still be the present one when the transaction is applied. One round trip."""
        changes, handle = self._of(kind)
        snapshot = await handle.read()
        changes.expect(snapshot)
        changes._read = snapshot
        self._read[handle.target.document] = snapshot
        return snapshot

    def save(self, value: State) -> None:
        """Stores what was changed in a value that `get` or `read` gave in this transaction."""
        changes, handle = self._of(type(value))
        snapshot = self._read.get(handle.target.document)
        if snapshot is None:
            raise InvalidInput(
                f"save stores what was read in this transaction: await tx.get({type(value).__name__}) first"
            )
        changes._save(snapshot, value)

    def state(self, kind: type[AnyState] | StateHandle[AnyState]) -> DocumentChanges[AnyState]:
        """The customer's document of this class, or one of this customer's by its handle, to be changed."""
        return self._of(kind)[0]

    def collection(self, declaration: Collection[H]) -> H:
        """The customer's collection, whose changes belong to the transaction and give an `Outcome`. One change of each.

        Its readings are answered at once and are no precondition.
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
        part = session_part(name, self._place.log, session.id, reason)
        self._add(part, Outcome(bytes), lambda _: SessionExpired("the session ended or its idle deadline passed"))

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
            changes = self._documents[handle.target.document] = DocumentChanges(handle.schema, handle.target)
        return changes, handle

    def _record(self, target: Any, part: Part, judge: Callable[[bytes], T]) -> Outcome[T]:
        if any(part.arguments[0] == other.arguments[0] for other, _, _ in self._others if other.keys):
            name = target.collection.name
            raise InvalidInput(f"a transaction changes each collection once: give all values of {name} to one call")

        def refusal(reply: list[Any]) -> Exception:
            if reply[0] == b"conflict":
                return Conflict(f"{target.collection.name} was changed by another writer: nothing was applied")
            return cast("Exception", target.refusal(reply))

        return self._add(part, Outcome(judge), refusal)

    def _add(self, part: Part, outcome: Outcome[T], refusal: Callable[[list[Any]], Exception]) -> Outcome[T]:
        if self._is_over:
            raise InvalidInput(_OVER)
        self._others.append((part, outcome, refusal))
        return outcome

    async def _commit(self) -> None:
        documents = [(changes._part(), changes) for changes in self._documents.values()]
        settles: list[tuple[Part, Callable[[bytes], None], Callable[[list[Any]], Exception]]] = [
            (part, changes._settle, changes._refusal) for part, changes in documents if part is not None
        ]
        settles += [(part, outcome._settle, refusal) for part, outcome, refusal in self._others]
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
            "" if self._operation_id is None else self._digest or _digest(part.arguments for part in parts),
        )
        try:
            changed = await self._execute(command)
        finally:
            for document in self._documents:
                self._place.services.combiner.seen.forget(document)
        self.position, self.repeated = changed.position, changed.repeated
        if self._digest is None:
            for (_, settle, _), result in zip(settles, changed.results, strict=True):
                settle(result)

    async def _execute(self, command: Command[Changed]) -> Changed:
        for _ in range(MAX_TURNS):
            try:
                return await self._place.services.link.execute(command)
            except _OthersTurn:
                await asyncio.sleep(random.random() * 0.002)
        return await self._place.services.link.execute(command)


_OVER = "the transaction is over: begin another one with customer.transaction()"
_ELSEWHERE = (
    "this belongs to another customer, and a transaction changes one: do it in steps that can be repeated, each under an "
    "operation id (docs/transactions.md, 'Two customers')"
)


def _digest(calls: Iterable[Sequence[Any]]) -> str:
    """Tells what is done under one operation id apart, but for what is expected of a document, each second argument."""
    digest = hashlib.blake2b(digest_size=8)
    for arguments in calls:
        for index, argument in enumerate(arguments):
            said = b"" if index == 1 else argument if isinstance(argument, bytes) else str(argument).encode()
            digest.update(len(said).to_bytes(4, "big") + said)
    return digest.hexdigest()


async def update_several(
    place: Place, function: Callable[..., T], kinds: tuple[type[State], ...], operation_id: str | None
) -> tuple[T, Transaction]:
    """Runs the function on the values of several documents and stores what it changed, again until nobody interferes."""
    digest = _digest([(getattr(function, "__qualname__", ""), "", *(schema_of(kind).name for kind in kinds))])
    for race in range(MAX_RACES):
        transaction = Transaction(place, operation_id, digest)
        values = await asyncio.gather(*(transaction.get(kind) for kind in kinds))
        result = function(*values)
        if asyncio.iscoroutine(result):
            result.close()
            raise InvalidInput("the function given to update must not be async: it may run several times")
        for value in values:
            transaction.save(value)
        try:
            async with transaction:
                pass
        except Conflict:
            await asyncio.sleep(random.random() * min(0.05, 0.001 * 2**race))
            continue
        return result, transaction
    names = ", ".join(kind.__name__ for kind in kinds)
    raise Conflict(
        f"{names} were changed by others {MAX_RACES} times in a row: call again, or write to them less often"
    )
