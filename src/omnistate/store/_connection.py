"""One connection with automatic pipelining.

Commands of one event-loop tick leave in few writes; replies resolve their futures in the order of the commands. A
cancelled caller leaves its place in the queue, so its reply is thrown away and never reaches another caller.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, cast

import hiredis

from omnistate.store._url import Endpoint

MAX_IN_FLIGHT = 20_000  # commands of one connection that wait for their replies; who comes then waits for room
_BATCH = 16  # so many commands are sent at once: the server works on them while the next are made here


class ConnectionLost(ConnectionError):
    """The connection ended before the reply: whether the command was applied is unknown."""


class Connection(asyncio.Protocol):
    """Use `open_connection`. `send` may be called while `is_open`; it never waits.

    A server that says nothing for `stall` seconds is given up. One that goes on to answer, too slowly, keeps the connection;
    a command that has waited twice as long is told so.
    """

    def __init__(self, *, stall: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        self._pending: deque[asyncio.Future[Any]] = deque()
        self._unsent: list[bytes] = []
        self._crowd: deque[asyncio.Future[None]] = deque()  # who waits for room
        self._stall, self._grain = stall, stall / 50
        self._answered = self._loop.time()
        self._taken = 0  # replies so far
        self._marks: deque[tuple[float, int]] = deque()  # when, and the number of the command that was sent then
        self._watch: asyncio.TimerHandle | None = None
        self._listener: Callable[[Any], None] | None = None
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.is_open = False

    @property
    def in_flight(self) -> int:
        return len(self._pending)

    def send(self, packed: bytes) -> asyncio.Future[Any]:
        """The future reply: a value, or a `hiredis.ReplyError` as a value. Fails with `ConnectionLost`."""
        future = self._loop.create_future()
        if not self.is_open:
            future.set_exception(ConnectionLost("the connection is closed"))
            return future
        if not self._unsent:
            self._loop.call_soon(self._flush)
            self._mark()
        if not self._pending:
            self._answered = self._loop.time()
            if self._watch is None:
                self._watch = self._loop.call_later(self._stall, self._check)
        self._pending.append(future)
        self._unsent.append(packed)
        if len(self._unsent) >= _BATCH:
            self._flush()
        return future

    async def room(self) -> None:
        """Returns when there is room for a command, first come, first served. Raises `ConnectionLost`."""
        if len(self._pending) >= MAX_IN_FLIGHT and self.is_open:
            self._crowd.append(future := self._loop.create_future())
            await future

    def send_unheard(self, packed: bytes) -> None:
        """Sends a command whose answer does not matter."""
        self.send(packed).add_done_callback(lambda future: future.cancelled() or future.exception())

    def listen(self, listener: Callable[[Any], None]) -> None:
        """Subscriber mode: from now on everything that arrives goes to `listener`, and only `write` may be used."""
        self._listener = listener

    def write(self, packed: bytes) -> None:
        """Sends without waiting for an answer: for subscriber mode."""
        if self.is_open:
            if not self._unsent:
                self._loop.call_soon(self._flush)
            self._unsent.append(packed)

    def close(self, reason: str = "closed") -> None:
        """Drops the connection at once; everyone who waits gets `ConnectionLost`."""
        if self._transport is not None:
            self._transport.abort()
        self._fail(ConnectionLost(reason))

    def _flush(self) -> None:
        if self._unsent and self.is_open:
            unsent, self._unsent = self._unsent, []
            cast("asyncio.Transport", self._transport).write(unsent[0] if len(unsent) == 1 else b"".join(unsent))

    def _mark(self) -> None:
        """Remembers when the next command is sent: one moment for many of them, as it need not be exact."""
        now = self._loop.time()
        if not self._marks or now - self._marks[-1][0] > self._grain:
            self._marks.append((now, self._taken + len(self._pending)))

    def _check(self) -> None:
        """Gives up a connection whose server says nothing, and commands that have waited too long."""
        self._watch = None
        marks = self._marks
        if not self._pending:
            marks.clear()
            return
        now = self._loop.time()
        waited = now - self._answered
        if waited >= self._stall:
            self.close(f"no reply for {waited:.1f} s")
            return
        while len(marks) > 1 and marks[1][1] <= self._taken:
            marks.popleft()  # these are answered
        late, patience = 0, 2 * self._stall + self._grain
        while marks and now - marks[0][0] >= patience:
            marks.popleft()
            late = (marks[0][1] if marks else self._taken + len(self._pending)) - self._taken
        for future in islice(self._pending, late):  # their places in the queue stay, as those of cancelled callers
            if not future.done():
                future.set_exception(ConnectionLost("no reply in time"))
        next_late = marks[0][0] + patience - now if marks else patience
        self._watch = self._loop.call_later(min(self._stall - waited, next_late), self._check)

    def _fail(self, error: ConnectionLost) -> None:
        self.is_open = False
        self._unsent.clear()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        pending, self._pending = self._pending, deque()
        for future in (*pending, *self._crowd):
            if not future.done():
                future.set_exception(error)
        self._crowd.clear()
        if not self.closed.done():
            self.closed.set_result(None)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        reader, pending, waiting = self._reader, self._pending, len(self._pending)
        reader.feed(data)
        if self._listener is not None:
            self._listen_to_all()
            return
        try:
            while (reply := reader.gets()) is not False:
                future = pending.popleft()
                if not future.done():
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError):
            self.close("the server sent something that is not an answer")
            return
        self._answered = self._loop.time()
        self._taken += waiting - len(pending)
        if self._crowd:
            self._let_in(MAX_IN_FLIGHT - len(pending))

    def _let_in(self, room: int) -> None:
        while room > 0 and self._crowd:
            future = self._crowd.popleft()
            if not future.done():
                future.set_result(None)
                room -= 1

    def _listen_to_all(self) -> None:
        try:
            while (message := self._reader.gets()) is not False and self._listener is not None:
                self._listener(message)
        except hiredis.ProtocolError:
            self.close("the server sent something that is not an answer")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionLost(str(exc) if exc else "the server closed the connection"))


async def open_connection(endpoint: Endpoint, *, stall: float) -> Connection:
    """A connected socket; nothing has been said on it yet. Raises `OSError`."""
    loop = asyncio.get_running_loop()

    def make() -> Connection:
        return Connection(stall=stall)

    if endpoint.path:
        _, connection = await loop.create_unix_connection(make, endpoint.path)
    else:
        tls = endpoint.tls_context()
        name = endpoint.host if tls else None
        _, connection = await loop.create_connection(make, endpoint.host, endpoint.port, ssl=tls, server_hostname=name)
    return connection
