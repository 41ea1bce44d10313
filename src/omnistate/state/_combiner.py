"""Writers of one document in one event loop share a write."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from omnistate.errors import InvalidInput, Overloaded, StoreUnavailable
from omnistate.state._commands import Target
from omnistate.state._known import Seen
from omnistate.state._model import Written
from omnistate.state._schema import Schema
from omnistate.state._update import MAX_BATCH, Call, apply
from omnistate.store import Durability, Executor, run

MAX_WAITING = 50_000  # callers of a client that wait for their turn


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
