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
from typing import Any, TypeAlias

from omnistate.errors import AmbiguousWrite, Conflict, InvalidInput, InvalidValue, SchemaMismatch
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
            self.result = self.context.run(self.function, value)
            if inspect.iscoroutine(self.result):
                self.result.close()
                self.error = InvalidInput("the function given to update must not be async: it may run several times")
                return
            self.after = schema.encode(value)
        except Exception as error:  # the caller's own: handed back to the caller
            self.error = error

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

    Either `flat` holds it as hash fields, or `value` does, which nobody else holds; both as this class writes them, so that
    what a newer class has put inside a field is no change. `stored` is what is there, where that may differ.
    """

    __slots__ = ("encoded", "flat", "is_of_other_shape", "is_volatile", "schema", "stored", "value", "version")

    def __init__(
        self, schema: Schema[Any], version: Position | None, encoded: bytes, flat: Flat | None, value: Any = None
    ) -> None:
        self.schema, self.version, self.encoded, self.flat, self.value = schema, version, encoded, flat, value
        self.stored: Flat | None = None
        self.is_volatile = False  # parts of it may expire: it must be read again before each change
        self.is_of_other_shape = False  # another version of the class wrote it

    @classmethod
    def read(cls, schema: Schema[Any], held: Held) -> Known:
        if held.damaged:
            raise SchemaMismatch.of_fields(schema.name, held.damaged, then=", so nothing is changed")
        stored = schema.upgrade(held.flat, held.class_version)
        value = schema.decode(schema.join(stored))
        encoded = schema.encode(value)
        known = cls(schema, held.version, encoded, None, value)
        if not schema.compares:
            known.flat = schema.split(encoded)
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
        return self.schema.diff(self.flat, self.schema.split(encoded))

    def successor(self, version: Position, encoded: bytes, value: Any) -> Known:
        if self.schema.compares:
            return Known(self.schema, version, encoded, None, value)
        return Known(self.schema, version, encoded, self.schema.split(encoded))


class Seen:
    """The documents this process saw last: where `update` starts from. Bounded; being out of date costs one retry."""

    MAX_DOCUMENTS = 16_384
    MAX_BYTES = 32 * 1024 * 1024

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Known] = OrderedDict()
        self._bytes = 0

    def take(self, key: bytes, schema: Schema[Any]) -> Known | None:
        """Removes it, until what it becomes is known."""
        known = self._known.pop(key, None)
        if known is None:
            return None
        self._bytes -= len(known.encoded)
        return known if known.schema is schema else None

    def put(self, key: bytes, known: Known) -> None:
        self.forget(key)
        self._known[key] = known
        self._bytes += len(known.encoded)
        while self._bytes > self.MAX_BYTES or len(self._known) > self.MAX_DOCUMENTS:
            _, dropped = self._known.popitem(last=False)
            self._bytes -= len(dropped.encoded)

    def forget(self, key: bytes) -> None:
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
        after, value = _run_all(schema, waiting, known.encoded)
        patch = known.patch(after, value)
        if (waiting[0].error is not None or patch is None) and (yield from _was_done(schema, target, waiting[0])):
            return None
        if patch is None or any(one.error for one in waiting):
            if not fresh:
                known = None  # neither an error nor "nothing to do" may rest on a document that may be out of date
                continue
            if patch is None:
                return _settle(waiting, known.version)
        live = [one for one in waiting if one.error is None]
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
            if not known.is_volatile and not schema.rewrites:
                seen.put(target.document, known.successor(reply.version, after, value))
            return _settle(waiting, reply.version)
        if isinstance(reply, Refused):
            known = Known.read(schema, reply.held)
            if race >= _PATIENCE:
                turn = turn or new_operation_id()  # whoever lost so often is let through next
            if reply.reason == "turn":
                yield Pause(random.random() * 0.001)
            continue
        assert isinstance(reply, Done)  # a write that names a version is never told to wait
        waiting = yield from _find_done(schema, target, waiting, live, reply)
        if not waiting:
            return None
        known = None
    raise Conflict(
        f"{target.name} was changed by others {MAX_RACES} times in a row: call again, or write to it less often"
    )


def _run_all(schema: Schema[Any], calls: Sequence[Call], encoded: bytes) -> tuple[bytes, Any]:
    """Runs each function on a copy of its own, one after the other; returns the last document, as JSON and as a value
    that no function has seen."""
    value = schema.decode(encoded)
    for one in calls:
        one.run(schema, value, encoded)
        if one.error is None and one.after != encoded:
            try:
                value = schema.validate(one.after)
            except InvalidValue as error:
                one.error, one.after = error, encoded
            else:
                encoded = one.after
                continue
        value = schema.decode(encoded)
    return encoded, value


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


_Queue: TypeAlias = "deque[tuple[Schema[Any], Target, Call, asyncio.Future[None]]]"


class Combiner:
    """Lets writers of one document in one process share a write. Documents do not wait for each other."""

    def __init__(self, link: Executor, durability: Durability) -> None:
        self._execute, self._durability = link.execute, durability
        self._queues: dict[bytes, _Queue] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.seen = Seen()

    async def update(self, schema: Schema[Any], target: Target, one: Call) -> Written[Any, Any]:
        """Stores what the call's function changes. Raises the function's own error, or the store's."""
        queue = self._queues.get(target.document)
        if one.digest:  # the caller's own operation id: its outcome must not depend on who else is here
            await run(apply(schema, target, self.seen, [one]), self._execute)
        elif queue is not None:
            future = asyncio.get_running_loop().create_future()
            queue.append((schema, target, one, future))
            await future
        else:
            await self._lead(schema, target, one)
        return one.written(schema, self._durability)

    async def _lead(self, schema: Schema[Any], target: Target, one: Call) -> None:
        """The first writer goes alone and at once; who comes meanwhile is served together by a task of its own."""
        queue: _Queue = deque()
        self._queues[target.document] = queue
        try:
            await run(apply(schema, target, self.seen, [one]), self._execute)
        finally:
            if queue:
                task = asyncio.create_task(self._drain(target.document, queue))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                del self._queues[target.document]

    async def _drain(self, document: bytes, queue: _Queue) -> None:
        batch: list[tuple[Call, asyncio.Future[None]]] = []
        try:
            while queue:
                schema, target, _, _ = queue[0]
                batch = []
                while queue and len(batch) < MAX_BATCH and queue[0][0] is schema and queue[0][1].head == target.head:
                    _, _, one, future = queue.popleft()
                    if not future.done():  # cancelled before its turn: it never ran
                        batch.append((one, future))
                if batch:
                    await self._serve(schema, target, batch)
                await asyncio.sleep(0)  # who was served and writes again at once is in the next batch
        finally:
            for _, future in batch:
                future.cancel()
            for _, _, _, future in queue:
                future.cancel()
            del self._queues[document]

    async def _serve(self, schema: Schema[Any], target: Target, batch: list[tuple[Call, asyncio.Future[None]]]) -> None:
        calls = [one for one, _ in batch]
        try:
            await run(apply(schema, target, self.seen, calls), self._execute)
        except AmbiguousWrite as error:
            for one in calls:
                one.error = error.of(one.operation_id)
        except Exception as error:
            if len(calls) > 1 and isinstance(error, InvalidInput):  # too large together: each on its own
                for pair in batch:
                    await self._serve(schema, target, [pair])
                return
            for one in calls:
                one.error = error
        for _, future in batch:
            if not future.done():
                future.set_result(None)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
