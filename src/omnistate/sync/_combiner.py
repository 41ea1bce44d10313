"""Writers of one document in the threads of one process share a write."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from omnistate.errors import AmbiguousWrite, InvalidInput
from omnistate.state import MAX_BATCH, Call, Known, Patch, Schema, Seen, Target, Written, apply
from omnistate.store import Durability, Position
from omnistate.sync._flow import run
from omnistate.sync._link import Executor


class _Seen(Seen):
    """Safe between threads."""

    def __init__(self, on_write: Callable[[bytes], None] | None) -> None:
        super().__init__(on_write)
        self._lock = threading.RLock()

    def take(self, key: bytes, schema: Schema[Any]) -> Known | None:
        with self._lock:
            return super().take(key, schema)

    def follow(self, key: bytes, patch: Patch, version: Position) -> None:
        with self._lock:
            super().follow(key, patch, version)

    def put(self, key: bytes, known: Known) -> None:
        with self._lock:
            super().put(key, known)

    def forget(self, key: bytes) -> None:
        with self._lock:
            super().forget(key)


class _Writer:
    """A caller in the queue of its document. One that waits is woken when its call is done, or when it is to lead."""

    __slots__ = ("batch", "is_done", "leads", "one", "queue", "schema", "target", "turn")

    def __init__(self, schema: Schema[Any], target: Target, one: Call) -> None:
        self.schema, self.target, self.one = schema, target, one
        self.queue: deque[_Writer] | None = None
        self.batch = [self]  # whom it writes for
        self.leads = self.is_done = False
        self.turn = threading.Lock()  # held until it is woken
        self.turn.acquire()


class Combiner:
    """Lets threads that write one document share a write. Documents do not wait for each other.

    The first writer goes alone and at once. Who comes meanwhile waits; the one who waits longest then writes for all of them,
    and hands on to the next. So functions may run in another caller's thread, in the context of their own.
    """

    def __init__(self, link: Executor, durability: Durability, on_write: Callable[[bytes], None] | None = None) -> None:
        self._link, self._durability = link, durability
        self._queues: dict[bytes, deque[_Writer]] = {}
        self._lock = threading.Lock()
        self.seen = _Seen(on_write)

    def update(self, schema: Schema[Any], target: Target, one: Call) -> Written[Any, Any]:
        """Stores what the call's function changes. Raises the function's own error, or the store's."""
        self._link.background.check()
        self.seen.calls += 1
        if one.digest:  # the caller's own operation id: its outcome must not depend on who else is here
            run(apply(schema, target, self.seen, [one]), self._link.execute)
            return one.written(schema, self._durability)
        writer = _Writer(schema, target, one)
        try:
            if self._is_first(writer) or self._is_to_lead(writer):
                self._serve(writer.batch)
        finally:  # also of one who was interrupted anywhere: the others must not wait for it
            self._leave(writer)
        return one.written(schema, self._durability)

    def close(self) -> None:
        """Nothing is left to do: the link tells whoever writes."""

    def _is_first(self, writer: _Writer) -> bool:
        with self._lock:
            queue = self._queues.get(writer.target.document)
            if queue is None:
                writer.leads, writer.queue = True, deque()
                self._queues[writer.target.document] = writer.queue
            else:
                writer.queue = queue
                queue.append(writer)
        return queue is None

    def _is_to_lead(self, writer: _Writer) -> bool:
        """Waits until another one has written for it, or it is to write; then for all who write in the same way."""
        writer.turn.acquire()
        if not writer.leads:
            return False
        queue, batch = cast("deque[_Writer]", writer.queue), writer.batch
        with self._lock:
            while queue and len(batch) < MAX_BATCH:
                if queue[0].schema is not writer.schema or queue[0].target.head != writer.target.head:
                    break
                batch.append(queue[0])
                queue.popleft()
        return True

    def _serve(self, batch: list[_Writer]) -> None:
        calls = [writer.one for writer in batch]
        try:
            run(apply(batch[0].schema, batch[0].target, self.seen, calls), self._link.execute)
        except AmbiguousWrite as error:
            for one in calls:
                one.error = error.of(one.operation_id)
        except Exception as error:
            if len(calls) > 1 and isinstance(error, InvalidInput):  # too large together: each on its own
                for writer in batch:
                    self._serve([writer])
                return
            for one in calls:
                one.error = error
        for writer in batch:
            writer.is_done = True

    def _leave(self, writer: _Writer) -> None:
        if not writer.leads:
            if not writer.is_done and writer.queue is not None:
                with self._lock, suppress(ValueError):  # another one may be writing for it
                    writer.queue.remove(writer)
            if not writer.leads:
                return
        for other in writer.batch[1:]:
            if not other.is_done:
                meta = other.target.log.meta
                other.one.error = AmbiguousWrite(other.one.operation_id, "its writer was interrupted", meta=meta)
            other.turn.release()
        self._hand_on(writer.target.document, cast("deque[_Writer]", writer.queue))

    def _hand_on(self, document: bytes, queue: deque[_Writer]) -> None:
        with self._lock:
            if not queue:
                del self._queues[document]
                return
            first = queue.popleft()
            first.leads = True
        first.turn.release()
