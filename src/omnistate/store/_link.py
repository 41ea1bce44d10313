"""The way to one server: connects, logs in, loads the library, sends commands, and tries again until the deadline.

Every write carries an operation id, so a command whose reply was lost is sent again and applied once. What stays
unknown at the deadline raises `AmbiguousWrite`; a command that never left raises `StoreUnavailable`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import hiredis

from omnistate.errors import (
    AmbiguousWrite,
    LibraryMissing,
    NotConnected,
    OmnistateError,
    Overloaded,
    PermissionRefused,
    StoreError,
    StoreUnavailable,
)
from omnistate.store._command import Command
from omnistate.store._connection import Connection, ConnectionLost, open_connection, pack
from omnistate.store._library import Library
from omnistate.store._replies import is_function_missing, is_passing, to_error
from omnistate.store._url import Endpoint

T = TypeVar("T")
MAX_IN_FLIGHT = 20_000
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5


class Link:
    """One automatically pipelined connection, replaced when it fails. `timeout` seconds bound each call as a whole."""

    def __init__(
        self,
        endpoint: Endpoint,
        library: Library,
        *,
        timeout: float,
        check_server: Callable[[], None] = lambda: None,
    ) -> None:
        self.endpoint = endpoint
        self._library = library
        self._timeout = timeout
        self._check_server = check_server  # raises when the embedded server has given up for good
        self._functions: dict[str, bytes] = {}
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[Connection] | None = None
        self._waiting = 0
        self._opened = asyncio.Event()
        self._closed = False
        self._last_error = "not connected yet"

    async def execute(self, command: Command[T]) -> T:
        """The parsed reply, in one round trip unless something fails."""
        connection = self._connection
        if connection is None or not connection.is_open:
            return await self._persist(command, sent=False)
        if connection.in_flight >= MAX_IN_FLIGHT:
            raise Overloaded(f"{MAX_IN_FLIGHT:,} calls already wait for {self.endpoint}: slow down and call again")
        started = asyncio.get_running_loop().time()
        try:
            reply = await connection.send(self._pack(command))
        except ConnectionLost as lost:
            self._last_error = str(lost)
            return await self._persist(command, sent=True, started=started)
        if isinstance(reply, hiredis.ReplyError):
            return await self._persist(command, sent=False, started=started, reply=reply)
        return command.parse(reply)

    async def connect(self) -> None:
        """Connects now rather than at the first call. Raises what a call would raise."""
        await self._connected(asyncio.get_running_loop().time() + self._timeout)

    async def dial(self) -> Connection:
        """A further connection, logged in, for subscriptions. Raises `OSError` or `StoreError`."""
        connection = await open_connection(self.endpoint, stall=self._timeout / 2)
        try:
            await self._log_in(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    async def wait_until_connected(self, seconds: float) -> None:
        """Returns as soon as a new connection is made here, and after so many seconds at the latest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._opened.wait()

    async def close(self) -> None:
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.close()

    def _pack(self, command: Command[Any]) -> bytes:
        function = self._functions.get(command.function)
        if function is None:
            function = self._functions[command.function] = self._library.function(command.function)
        keys = command.keys
        return pack(b"FCALL", function, len(keys), *keys, *command.arguments)

    async def _persist(
        self,
        command: Command[T],
        *,
        sent: bool,
        started: float | None = None,
        reply: hiredis.ReplyError | None = None,
    ) -> T:
        """Tries until the deadline. `sent`: an earlier try may have been applied."""
        loop = asyncio.get_running_loop()
        deadline = (started if started is not None else loop.time()) + self._timeout
        pause, reloaded = _FIRST_PAUSE, False
        while True:
            if reply is not None:
                message = str(reply)
                if is_function_missing(message) and not reloaded:
                    reloaded = True
                    await self._load_library(deadline)
                elif is_passing(message):
                    self._last_error = message[:80]
                    self._drop_stale(message)
                    await asyncio.sleep(min(pause * (0.5 + random.random()), max(deadline - loop.time(), 0)))
                    pause = min(pause * 2, _LONGEST_PAUSE)
                else:
                    raise to_error(message)
            if loop.time() >= deadline:
                raise self._give_up(command, sent)
            try:
                connection = await self._connected(deadline)
            except OmnistateError as error:
                if sent and command.operation_id is not None:
                    raise AmbiguousWrite(command.operation_id, str(error)) from error
                raise
            try:
                async with asyncio.timeout_at(deadline):
                    answer = await connection.send(self._pack(command))
            except (ConnectionLost, TimeoutError) as lost:
                sent, reply = True, None
                self._last_error = str(lost) or "no reply in time"
                continue
            if not isinstance(answer, hiredis.ReplyError):
                return command.parse(answer)
            reply = answer

    def _give_up(self, command: Command[Any], sent: bool) -> StoreError:
        if sent and command.operation_id is not None:
            return AmbiguousWrite(command.operation_id, self._last_error)
        return self._unavailable()

    def _unavailable(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"{self.endpoint} did not answer within {self._timeout:g} s ({self._last_error}): check that it runs"
        )

    def _drop_stale(self, message: str) -> None:
        """A node that has become a replica keeps its old clients: leave it, so that the next try asks anew."""
        if message.startswith("READONLY") and self._connection is not None:
            self._connection.close("the server became a replica")

    async def _connected(self, deadline: float) -> Connection:
        if self._closed:
            raise NotConnected
        if self._connection is not None and self._connection.is_open:
            return self._connection
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._reconnect())
        task, self._waiting = self._connecting, self._waiting + 1
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(task)
        except TimeoutError:
            raise self._unavailable() from None
        finally:
            self._waiting -= 1
            if self._waiting == 0 and not task.done():
                task.cancel()  # it ends later; who comes meanwhile starts another
                self._connecting = None

    async def _reconnect(self) -> Connection:
        """Tries while somebody waits. Ends early with an error that waiting does not mend (password, no functions)."""
        pause = _FIRST_PAUSE
        while True:
            self._check_server()
            try:
                connection = await self.dial()
                try:
                    await self._ensure_library(connection)
                except BaseException:
                    connection.close()
                    raise
            except (OSError, ConnectionLost, StoreUnavailable) as error:
                self._last_error = _reason(error)
            else:
                self._connection = connection
                self._opened.set()
                self._opened.clear()
                return connection
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _log_in(self, connection: Connection) -> None:
        endpoint = self.endpoint
        if endpoint.password is not None:
            user = (endpoint.username,) if endpoint.username else ()
            await _say(connection, "AUTH", *user, endpoint.password)
        await _say(connection, "PING")
        if endpoint.database:
            await _say(connection, "SELECT", endpoint.database)

    async def _ensure_library(self, connection: Connection) -> None:
        try:
            if await _say(connection, "FUNCTION", "LIST", "LIBRARYNAME", self._library.name):
                return
        except PermissionRefused:
            return  # an operator may load the library and allow FCALL alone: the first call will tell
        await self._load(connection)

    async def _load_library(self, deadline: float) -> None:
        await self._load(await self._connected(deadline))

    async def _load(self, connection: Connection) -> None:
        reply = await connection.send(pack("FUNCTION", "LOAD", self._library.code))
        if not isinstance(reply, hiredis.ReplyError) or "already exists" in str(reply):
            return
        error = to_error(str(reply))
        if isinstance(error, PermissionRefused):
            raise LibraryMissing(
                f"the library {self._library.name} is not on the server and this user may not load it: "
                "connect once as a user with +function|load"
            )
        raise error


async def _say(connection: Connection, *words: str | int) -> Any:
    reply = await connection.send(pack(*words))
    if isinstance(reply, hiredis.ReplyError):
        raise to_error(str(reply))
    return reply


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such socket"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return (str(error) or type(error).__name__)[:160]


Execute = Callable[[Command[Any]], Awaitable[Any]]
