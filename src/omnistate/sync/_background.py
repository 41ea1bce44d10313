"""The event loop of a synchronous client, in a thread of its own, and who may ask it for something."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from asyncio import _get_running_loop
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any, TypeVar

from omnistate.errors import CalledInEventLoop, NotConnected, OmnistateError, UsedAfterFork

T = TypeVar("T")
_FOR_LAST_WORDS = 1.0  # seconds
_alive: set[Background] = set()
_inherited: list[
    Background
] = []  # of the parent process: kept, as a loop that is collected touches what the parent uses


class Background:
    """Runs coroutines for callers in other threads. It lasts until `stop`, or the end of the process."""

    def __init__(self) -> None:
        refuse_in_event_loop()
        _watch_for_forks()
        self.ended: Callable[[], OmnistateError] | None = None  # why nobody may ask any more
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="omnistate", daemon=True)
        _alive.add(self)
        self._thread.start()

    def check(self) -> None:
        """Raises `CalledInEventLoop`, `NotConnected` after the end, `UsedAfterFork`. Costs nanoseconds."""
        if self.ended is not None:
            raise self.ended()
        if _get_running_loop() is not None:
            raise CalledInEventLoop

    def begin(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Starts it in the loop. Raises as `check` does."""
        try:
            with self._lock:  # nothing is begun once `stop` has begun
                self.check()
                return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except BaseException:
            coroutine.close()
            raise

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Its result. When the caller is interrupted, it is cancelled. Raises as `check` does."""
        return self.result(self.begin(coroutine))

    def result(self, future: concurrent.futures.Future[T]) -> T:
        """What was begun gives this. Raises `NotConnected` when the client was closed meanwhile."""
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise NotConnected from None
        except BaseException:
            future.cancel()
            raise

    def call(self, function: Callable[[], object]) -> None:
        """Calls it in the loop, some time soon; after the end not at all."""
        if self.ended is None:
            with contextlib.suppress(RuntimeError):  # it ended just now
                self._loop.call_soon_threadsafe(function)

    def stop(self, goodbye: Coroutine[Any, Any, None] | None = None) -> None:
        """Refuses new calls, runs the goodbye, cancels what is left, and ends the thread."""
        with self._lock:
            if self.ended is not None:
                if goodbye is not None:
                    goodbye.close()
                return
            self.ended = NotConnected
            last = asyncio.run_coroutine_threadsafe(self._wind_up(goodbye), self._loop)
        _alive.discard(self)
        try:
            last.result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    async def _wind_up(self, goodbye: Coroutine[Any, Any, None] | None) -> None:
        try:
            if goodbye is not None:
                await goodbye
        finally:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            if others:  # a call that was sent is to say so
                await asyncio.wait(others, timeout=_FOR_LAST_WORDS)
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()


def refuse_in_event_loop() -> None:
    """Raises `CalledInEventLoop` where the caller's thread runs one: it would stand still."""
    if _get_running_loop() is not None:
        raise CalledInEventLoop


@cache
def _watch_for_forks() -> None:
    os.register_at_fork(after_in_child=_leave_to_the_parent)


def _leave_to_the_parent() -> None:
    """The child has neither the threads nor a right to the connections: it must not even close them in order."""
    for one in _alive:
        one.ended = UsedAfterFork
    _inherited.extend(_alive)
    _alive.clear()
