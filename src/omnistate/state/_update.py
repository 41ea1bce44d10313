"""`update(fn)`: run functions on a document and store what they changed, without losing anybody's update.

Optimistic: the functions run on the document as it was last seen, and the write is refused when it has changed since.
The refusal brings the present document, so another try costs one round trip. Functions of several callers run one after
the other on the same document and share one write; each keeps its own result, error and operation id.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any, cast

from omnistate.errors import (
    AmbiguousWrite,
    Conflict,
    InvalidInput,
    InvalidValue,
    Overloaded,
    SchemaMismatch,
    StoreUnavailable,
)
from omnistate.state._commands import (
    Done,
    Held,
    Patch,
    Refused,
    Stored,
    Target,
    read,
    read_outcome,
    write,
)
from omnistate.state._model import ABSENT, Written
from omnistate.state._schema import Flat, Schema
from omnistate.store import Durability, Executor, Flow, Pause, Position, call, new_operation_id, run

MAX_RACES = 100  # tries before `update` gives up with Conflict
MAX_BATCH = 128  # callers that share one write
MAX_WAITING = 50_000  # callers of a client that wait for their turn
_PATIENCE = 10  # races that are simply tried again; then a turn is asked for
_NOWHERE = Position("", 0)


class Call:
    """One caller's function, and what came of it: `after` is the document once it ran, as JSON."""

    __slots__ = ("after", "context", "digest", "error", "function", "operation_id", "repeated", "result", "version")

    def __init__(self, function: Callable[[Any], Any], operation_id: str, digest: str = "") -> None:
        self.function, self.operation_id, self.digest = function, operation_id, digest
        self.context = copy_context()
        self.result: Any = None
        self.error: Exception | None = None
        self.after = b""
        self.version: Position | None = None
        self.repeated = False

    def run(self, schema: Schema[Any], value: Any, encoded: bytes) -> None:
        """Runs the function on `value`, which is private to it and was decoded from `encoded`."""
        self.error, self.after = None, encoded
        try:
            self.result = result = self.context.run(self.function, value)
            if result is not None and inspect.iscoroutine(result):
                result.close()
                self.error = InvalidInput("the function given to update must not be async: it may run several times")
                return
            self.after = schema.encode(value)
        except Exception as error:  # the caller's own: handed back to the caller
            self.error = error

    def fail(self, error: StoreUnavailable) -> bool:
        """The write that it was to share has failed; whether it may be made again, as nothing of this caller was sent."""
        is_unknown = isinstance(error, AmbiguousWrite)
        is_sent = is_unknown and self.error is None  # what its function has refused was not
        if is_sent:
            self.error = cast("AmbiguousWrite", error).of(self.operation_id)
        elif is_unknown:  # it may have refused what another caller had made of the document, and that is unknown
            self.error = StoreUnavailable(f"what the function was run on was not stored in time: {error}")
        else:
            self.error = error
        return not is_sent

    def written(self, schema: Schema[Any], durability: Durability) -> Written[Any, Any]:
        """What the caller is given. Raises the function's own error."""
        if self.error is not None:
            raise self.error
        position = self.version or _NOWHERE
        return Written(
            schema,
            self.after,
            self.version,
            position,
            self.result,
            self.operation_id,
            durability,
            repeated=self.repeated,
        )


class Known:
    """A document as this process knows it: to run functions on, and to tell what they changed.

    `value` is one that nobody else holds. Where values cannot be compared, `flat` holds the document as hash fields, and
    `value` may be None. Both as this class writes them, so that what a newer class has put inside a field is no change.
    `stored` is what is there, where that may differ.
    """

    __slots__ = (
        "after",
        "encoded",
        "flat",
        "is_of_other_shape",
        "is_volatile",
        "later",
        "schema",
        "stored",
        "value",
        "version",
    )

    def __init__(
        self, schema: Schema[Any], version: Position | None, encoded: bytes, flat: Flat | None, value: Any = None
    ) -> None:
        self.schema, self.version, self.encoded, self.flat, self.value = schema, version, encoded, flat, value
        self.stored: Flat | None = None
        self.later: list[Patch] = []  # changes that came after `encoded`, up to `version`
        self.after: Flat = {}  # what `diff` has made of the other document
        self.is_volatile = False  # parts of it may expire: it must be read again before each change
        self.is_of_other_shape = False  # another version of the class wrote it

    @classmethod
    def read(cls, schema: Schema[Any], held: Held) -> Known:
        if held.damaged:
            raise SchemaMismatch.of_fields(schema.name, held.damaged, then=", so nothing is changed")
        stored = schema.upgrade(held.flat, held.class_version)
        value = schema.decode(schema.join(stored))
        encoded = schema.encode(value)
        known = cls(schema, held.version, encoded, None if schema.compares else schema.split(encoded), value)
        known.stored = stored
        known.is_volatile = held.is_volatile
        known.is_of_other_shape = held.version is not None and held.class_version != schema.writes
        return known

    def patch(self, encoded: bytes, value: Any) -> Patch | None:
        """What makes the other document, given as JSON and as a value, of this one; None when nothing does."""
        sets, drops = self.diff(encoded, value)
        if not sets and not drops:
            return None
        indexes = self.schema.indexes.of(value) if self.schema.indexes.names else ()
        if not self.is_of_other_shape and not self.schema.rewrites:
            return Patch(sets, drops, indexes=indexes)
        assert self.stored is not None  # what is of another shape was read for this very change
        whole = {name: one for name, one in self.stored.items() if name not in drops} | sets
        return Patch(self.schema.downgrade(whole), rewrite=True, indexes=indexes)

    def whole(self, patch: Patch) -> tuple[Patch, list[int]]:
        """A patch applied here, where the document has to be brought into another shape as a whole; the sums of its steps.

        Sums that the other shape has too stay steps, so that the server remembers them under the operation id.
        """
        assert self.stored is not None
        flat, sums = patch.applied(self.stored)
        sets = self.schema.downgrade(flat)
        steps = [(name, total) for (name, _), total in zip(patch.steps, sums, strict=True)]
        if not all(sets.get(name) == b"%d" % total for name, total in steps):
            steps = []
        counted = dict(steps)
        whole = Patch(
            {name: value for name, value in sets.items() if name not in counted},
            steps=steps,
            replace=patch.replace,
            rewrite=not patch.replace,
            until=patch.until,
            indexes=self.schema.indexes_of(flat),
            ttl_ms=patch.ttl_ms,
        )
        return whole, sums

    def diff(self, encoded: bytes, value: Any) -> tuple[Flat, Sequence[bytes]]:
        """What makes the other document, given as JSON and as a value, of this one."""
        if self.flat is None:
            return self.schema.diff_values(self.value, value)
        self.after = self.schema.split(encoded)
        return self.schema.diff(self.flat, self.after)

    def successor(self, version: Position, encoded: bytes, value: Any) -> Known:
        """What it is once the difference to this value has been stored."""
        return Known(self.schema, version, encoded, None if self.flat is None else self.after, value)

    def caught_up(self) -> Known | None:
        """With the changes that came later; None where they do not give a value of the class."""
        schema = self.schema
        flat = schema.split(self.encoded)
        try:
            for patch in self.later:
                flat, _ = patch.applied(flat)
            value = schema.decode(schema.join(flat))
            encoded = schema.encode(value)
        except (InvalidValue, SchemaMismatch):
            return None
        return Known(schema, self.version, encoded, None if schema.compares else schema.split(encoded), value)

    def spare(self) -> Any:
        """A value to run a function on, None where it has to be decoded: the document itself may be needed to compare."""
        copier = self.schema.copier
        if self.flat is None:
            return copier(self.value) if copier is not None and self.schema.copies else None
        value, self.value = self.value, None
        return value


class Seen:
    """The documents this process saw last: where `update` starts from. Bounded; being out of date costs one retry."""

    MAX_DOCUMENTS = 16_384
    MAX_BYTES = 32 * 1024 * 1024
    MOST_LATER = 8  # changes of one document that are kept beside it, until an `update` needs them,
    MOST_LATER_BYTES = 512  # and the bytes of each

    def __init__(self, on_write: Callable[[bytes], None] | None = None) -> None:
        self._known: OrderedDict[bytes, Known] = OrderedDict()
        self._bytes = 0
        self._on_write = on_write  # is told which documents this process has written
        self.calls = self.writes = self.conflicts = 0  # what became of updates

    def take(self, key: bytes, schema: Schema[Any]) -> Known | None:
        """Removes it, until what it becomes is known."""
        known = self._known.pop(key, None)
        if known is None:
            return None
        self._bytes -= len(known.encoded)
        if known.schema is not schema:
            return None
        return known.caught_up() if known.later else known

    def follow(self, key: bytes, patch: Patch, version: Position) -> None:
        """What becomes of it by a change that was no `update`. Positions are dense: with the next one, nothing came between."""
        if self._on_write is not None:
            self._on_write(key)
        known = self._known.get(key)
        if known is None:
            return
        before = known.version
        is_next = before is not None and version.epoch == before.epoch and version.offset == before.offset + 1
        is_small = len(known.later) < self.MOST_LATER and sum(map(len, patch.sets.values())) <= self.MOST_LATER_BYTES
        if not is_next or not is_small or patch.replace or patch.rewrite or patch.until:
            self.forget(key)
        else:
            known.later.append(patch)
            known.version = version

    def put(self, key: bytes, known: Known) -> None:
        """It was written, and is this now."""
        self.forget(key)
        self._known[key] = known
        self._bytes += len(known.encoded)
        while self._bytes > self.MAX_BYTES or len(self._known) > self.MAX_DOCUMENTS:
            _, dropped = self._known.popitem(last=False)
            self._bytes -= len(dropped.encoded)

    def forget(self, key: bytes) -> None:
        """It was written, and what it is now is not known."""
        if self._on_write is not None:
            self._on_write(key)
        old = self._known.pop(key, None)
        if old is not None:
            self._bytes -= len(old.encoded)


def apply(  # noqa: C901 - the turns that an optimistic write may take, in one place
    schema: Schema[Any], target: Target, seen: Seen, calls: Sequence[Call]
) -> Flow[None]:
    """Runs the calls' functions in order and stores their changes in one write; what came of it is in the calls.

    Raises what concerns all of them: the store's errors, `SchemaMismatch`, `Conflict` after too many races.
    """
    known, waiting, turn = seen.take(target.document, schema), calls, ""
    for race in range(MAX_RACES):
        fresh = known is None
        if known is None:
            known = Known.read(schema, (yield from call(read(target))).held)
        after, value = _run_all(schema, waiting, known)
        patch = known.patch(after, value)
        if (waiting[0].error is not None or patch is None) and (yield from _was_done(schema, target, waiting[0])):
            return None
        live = [one for one in waiting if one.error is None]
        if patch is None or len(live) < len(waiting):
            if not fresh:
                known = None  # neither an error nor "nothing to do" may rest on a document that may be out of date
                continue
            if patch is None:
                return _settle(waiting, known.version)
        reply = yield from call(
            write(
                target,
                patch,
                ids=[one.operation_id for one in live],
                expect=known.version or ABSENT,
                digest=live[0].digest,
                turn=turn,
            )
        )
        if isinstance(reply, Stored):
            seen.writes += 1
            if not known.is_volatile and not schema.rewrites:
                seen.put(target.document, known.successor(reply.version, after, value))
            else:
                seen.forget(target.document)
            return _settle(waiting, reply.version)
        if isinstance(reply, Refused):
            seen.conflicts += 1
            known = Known.read(schema, reply.held)
            if race >= _PATIENCE:
                turn = turn or new_operation_id()  # whoever lost so often is let through next
            if reply.reason == "turn":
                yield Pause(random.random() * 0.001)
            continue
        assert isinstance(reply, Done)  # a write that names a version is never told to wait
        seen.forget(target.document)
        waiting = yield from _find_done(schema, target, waiting, live, reply)
        if not waiting:
            return None
        known = None
    raise Conflict(
        f"{target.name} was changed by others {MAX_RACES} times in a row: call again, or write to it less often"
    )


def _run_all(schema: Schema[Any], calls: Sequence[Call], known: Known) -> tuple[bytes, Any]:
    """Runs each function on a copy of its own, one after the other; returns the last document, as JSON and as a value
    that no function has seen."""
    encoded, value = known.encoded, known.spare()
    for one in calls:
        one.run(schema, schema.decode(encoded) if value is None else value, encoded)
        value = None
        if one.error is None and one.after != encoded:
            try:
                value = schema.validate(one.after)
            except InvalidValue as error:
                one.error, one.after = error, encoded
            else:
                encoded = one.after
    if value is None:
        value = known.value if encoded == known.encoded else None
    return encoded, schema.decode(encoded) if value is None else value


def _settle(calls: Sequence[Call], version: Position | None) -> None:
    for one in calls:
        one.version = version


def _find_done(
    schema: Schema[Any], target: Target, waiting: Sequence[Call], live: Sequence[Call], done: Done
) -> Flow[list[Call]]:
    """Some of these operations had been applied: their versions are known; returns the calls that are still to do.

    With an id that omnistate made, it was this very write, its answer lost: what the function has made of the document stands.
    With the caller's own id it may have been an earlier call, so there is no result to give but the document as it is.
    """
    results = dict(zip((one.operation_id for one in live), done.results, strict=True))
    left = []
    for one in waiting:
        stored = results.get(one.operation_id)
        if stored is None:
            left.append(one)
            continue
        one.version = stored.version
        if one.digest:
            yield from _read_again(schema, target, one)
    return left


def _was_done(schema: Schema[Any], target: Target, one: Call) -> Flow[bool]:
    """Whether a call under the caller's own id, whose function now refuses or changes nothing, had been applied before."""
    outcome = None
    if one.digest:
        outcome = yield from call(read_outcome(target.log.meta, one.operation_id, one.digest))
    if outcome is None:
        return False
    yield from _read_again(schema, target, one)
    return True


def _read_again(schema: Schema[Any], target: Target, one: Call) -> Flow[None]:
    """A call that repeats another one gives the document as it is, value and version."""
    present = (yield from call(read(target))).held
    one.error, one.result, one.repeated = None, None, True
    one.version, one.after = present.version, schema.join(schema.upgrade(present.flat, present.class_version))


class _Waiter:
    """A caller whose turn it is not yet, since a moment of the loop's clock."""

    __slots__ = ("call", "done", "schema", "since", "target")

    def __init__(self, schema: Schema[Any], target: Target, one: Call) -> None:
        loop = asyncio.get_running_loop()
        self.schema, self.target, self.call, self.since = schema, target, one, loop.time()
        self.done: asyncio.Future[None] = loop.create_future()

    def goes_with(self, other: _Waiter) -> bool:
        return self.schema is other.schema and self.target.head == other.target.head


class Combiner:
    """Lets writers of one document in one process share a write. Documents do not wait for each other."""

    def __init__(self, link: Executor, durability: Durability, on_write: Callable[[bytes], None] | None = None) -> None:
        self._execute, self._timeout, self._durability = link.execute, link.timeout, durability
        self.seen = Seen(on_write)
        self._queues: dict[bytes, deque[_Waiter]] = {}
        self._waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def update(self, schema: Schema[Any], target: Target, one: Call) -> Written[Any, Any]:
        """Stores what the call's function changes. Raises the function's own error, or the store's."""
        self.seen.calls += 1
        queue = self._queues.get(target.document)
        if one.digest:  # the caller's own operation id: its outcome must not depend on who else is here
            await self._apply(schema, target, [one], asyncio.get_running_loop().time())
        elif queue is not None:
            await self._wait(queue, _Waiter(schema, target, one))
        else:
            await self._lead(schema, target, one)
        return one.written(schema, self._durability)

    async def _apply(self, schema: Schema[Any], target: Target, calls: Sequence[Call], since: float) -> None:
        await run(apply(schema, target, self.seen, calls), self._execute, started=since)

    async def _wait(self, queue: deque[_Waiter], waiter: _Waiter) -> None:
        if self._waiting >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING:,} writers already wait for their turn: slow down and call again")
        self._waiting += 1
        queue.append(waiter)
        try:
            await waiter.done
        finally:
            self._waiting -= 1

    async def _lead(self, schema: Schema[Any], target: Target, one: Call) -> None:
        """The first writer goes alone and at once; who comes meanwhile is served together by a task of its own."""
        queue: deque[_Waiter] = deque()
        self._queues[target.document] = queue
        try:
            await self._apply(schema, target, [one], asyncio.get_running_loop().time())
        finally:
            if queue:
                task = asyncio.create_task(self._drain(target.document, queue))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                del self._queues[target.document]

    async def _drain(self, document: bytes, queue: deque[_Waiter]) -> None:
        batch: list[_Waiter] = []
        try:
            while queue:
                first, batch = queue[0], []
                while queue and len(batch) < MAX_BATCH and queue[0].goes_with(first):
                    waiter = queue.popleft()
                    if not waiter.done.done():  # cancelled before its turn: it never ran
                        batch.append(waiter)
                if batch:
                    queue.extendleft(reversed(await self._serve(batch)))
                await asyncio.sleep(0)  # who was served and writes again at once is in the next batch
        finally:
            for waiter in (*batch, *queue):
                waiter.done.cancel()
            del self._queues[document]

    async def _serve(self, batch: list[_Waiter]) -> list[_Waiter]:
        """One write for all of them, within the time of who waits longest; returns whose own time goes on after it failed."""
        calls, left = [waiter.call for waiter in batch], []
        try:
            await self._apply(batch[0].schema, batch[0].target, calls, batch[0].since)
        except StoreUnavailable as error:
            late = asyncio.get_running_loop().time() - self._timeout
            may_go_on = batch[0].since <= late  # else it was not for want of time
            left = [one for one in batch if one.call.fail(error) and may_go_on and one.since > late]
        except Exception as error:
            if len(calls) > 1 and isinstance(error, InvalidInput):  # too large together: each on its own
                return [again for waiter in batch for again in await self._serve([waiter])]
            for one in calls:
                one.error = error
        for waiter in batch:
            if (not left or waiter not in left) and not waiter.done.done():
                waiter.done.set_result(None)
        return left

    async def close(self) -> None:
        """Call it when the link is closed: who waits is told by it."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
