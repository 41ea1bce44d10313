"""The way to one server: connects, logs in, loads the library, and keeps one automatically pipelined connection."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakSet

from omnistate.errors import NotConnected, StoreUnavailable
from omnistate.store._command import pack
from omnistate.store._connection import Connection, ConnectionLost, open_connection
from omnistate.store._greeting import Exchange, arriving, converse, greeting, loading, logging_in, said
from omnistate.store._library import Library
from omnistate.store._url import Endpoint

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5
Locate = Callable[[], Awaitable[Endpoint]]


class Node:
    """One server. Its `connection` is replaced when it fails; whoever sends looks whether it is open.

    `locate` tells where it is, anew for each connection. With `primary` it must not be a replica. `stall`: a connection
    whose oldest reply is this many seconds late is given up.
    """

    def __init__(
        self,
        locate: Locate,
        library: Library,
        *,
        stall: float,
        primary: bool,
        check_server: Callable[[], None] = lambda: None,
    ) -> None:
        self._locate, self._library, self.stall, self._is_primary = locate, library, stall, primary
        self._check_server = check_server  # raises when the embedded server has given up for good
        self._connecting: asyncio.Task[Connection] | None = None
        self._waiting = 0
        self._opened = asyncio.Event()
        self._dialed: WeakSet[Connection] = WeakSet()
        self._dialing: set[asyncio.Timeout] = set()
        self._on_drop: list[Callable[[], None]] = []
        self.is_retired = False
        self.connection: Connection | None = None
        self.last_error = "not connected yet"

    async def connected(self, deadline: float) -> Connection:
        """The connection, as soon as it is open. Raises `TimeoutError` at the deadline (of the loop's clock), `NotConnected`
        when the node is no longer in use, and what waiting does not mend."""
        if self.is_retired:
            raise NotConnected
        if self.connection is not None and self.connection.is_open:
            return self.connection
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._reconnect())
            self._connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        task, self._waiting = self._connecting, self._waiting + 1
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(task)
        except asyncio.CancelledError:
            if self.is_retired:
                raise NotConnected from None
            raise
        finally:
            self._waiting -= 1

    async def dial(self, *, greet: bool = False, stall: float | None = None) -> Connection:
        """A further connection, logged in. Raises `OSError` or `StoreError`.

        With `greet` it is one for commands: the server has the library, and is not a replica where it must not be.
        """
        endpoint = await self.locate()
        connection = await self._open(endpoint, stall or self.stall)
        self._dialed.add(connection)
        try:
            await converse(connection, self.greeting(endpoint) if greet else logging_in(endpoint))
        except BaseException:
            connection.close()
            raise
        return connection

    async def locate(self) -> Endpoint:
        """Where the server is now, for who dials. Raises `OSError` or `StoreError`."""
        if self.is_retired:
            raise StoreUnavailable("the server is no longer in use")
        return await self._locate()

    def greeting(self, endpoint: Endpoint) -> Exchange[None]:
        """What is said on a connection for commands before it is used."""
        yield from logging_in(endpoint)
        yield from greeting(self._library, primary=self._is_primary)

    def on_drop(self, listener: Callable[[], None]) -> None:
        """Calls `listener` whenever all connections to the server are to be ended, so those that others made too."""
        self._on_drop.append(listener)

    async def wait_until_connected(self, seconds: float) -> None:
        """Returns as soon as a new connection is made here, and after so many seconds at the latest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._opened.wait()

    async def load_library(self, connection: Connection) -> None:
        """Raises `LibraryMissing` where the user may not load it."""
        await converse(connection, loading(self._library))

    async def check(self) -> None:
        """Leaves a server that has become a replica, or does not answer: it keeps its old clients."""
        connection = self.connection
        if connection is None or not connection.is_open:
            return
        with contextlib.suppress(ConnectionLost):
            if await converse(connection, arriving(self._library)):
                self.drop("the server became a replica")

    def drop(self, reason: str) -> None:
        """Ends all connections. Commands that wait for an answer get `ConnectionLost`; the next one connects again."""
        self.last_error = reason
        for connection in list(self._dialed):
            connection.close(reason)
        for limit in self._dialing:
            if not limit.expired():
                limit.reschedule(0)  # who waits for a server that is gone looks for the next one
        for listener in self._on_drop:
            listener()

    def retire(self, reason: str) -> None:
        """Ends all connections for good."""
        self.is_retired = True
        if self._connecting is not None:
            self._connecting.cancel()
        self.drop(reason)
        self._opened.set()

    async def _open(self, endpoint: Endpoint, stall: float) -> Connection:
        """A host that is gone answers nothing at all, and a system waits two minutes for it. Raises `OSError`."""
        async with asyncio.timeout(self.stall) as limit:
            self._dialing.add(limit)
            try:
                return await open_connection(endpoint, stall=stall)
            finally:
                self._dialing.discard(limit)

    async def _reconnect(self) -> Connection:
        """Tries while somebody waits. Ends early with an error that waiting does not mend (password, no functions).

        What has begun goes on when nobody waits any more: callers whose patience is shorter than it takes would never be
        connected.
        """
        pause = FIRST_PAUSE
        while True:
            self._check_server()
            try:
                connection = await self.dial(greet=True)
            except (OSError, StoreUnavailable) as error:
                self.last_error = _reason(error)
            else:
                self.connection = connection
                self._opened.set()
                self._opened.clear()
                return connection
            if self._waiting == 0:
                self._connecting = None  # who comes now starts another
                raise ConnectionLost(self.last_error)
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, LONGEST_PAUSE)


async def log_in(connection: Connection, endpoint: Endpoint) -> None:
    """Raises `ConnectionLost` or `StoreError`."""
    await converse(connection, logging_in(endpoint))


async def say(connection: Connection, *words: str | int) -> Any:
    """The answer to a command. Raises `ConnectionLost`, and a `StoreError` for an error reply."""
    return said(await connection.send(pack(*words)))


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such socket"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return (str(error) or type(error).__name__)[:160]
