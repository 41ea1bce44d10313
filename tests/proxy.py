"""A proxy between a client and a real server that loses replies, cuts connections or says nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Self


class Proxy:
    """`lose_next_reply_to`: a call that names this is applied, and the connection cut in place of its reply.

    `on_loss` is called then: to kill the server, for instance. `lose_call` counts down the calls of functions, and the last
    one is lost in the same way. `lose_every_reply_to` does it each time.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.lose_next_reply_to: bytes | None = None
        self.lose_every_reply_to: bytes | None = None
        self.lose_call = 0  # the n-th call of a function from now on; 0: none
        self.on_loss: Callable[[], None] = lambda: None
        self.lost = self.calls = 0  # replies, and functions that were called
        self.silent = False  # replies wait
        self.deaf = False  # requests are dropped
        self.begins: tuple[bytes, str] | None = None  # a call that names this makes the proxy "silent" or "deaf"
        self.delay = 0.0
        self.trickle = 0  # bytes of the replies that come through in a tenth of a second; 0: all

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    def heal(self) -> None:
        """Passes everything on again."""
        self.lose_next_reply_to = self.lose_every_reply_to = None
        self.begins = None
        self.lose_call, self.silent, self.deaf, self.delay, self.trickle = 0, False, False, 0.0, 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except ConnectionError:  # the server is down
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        armed = [False]
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await asyncio.gather(self._forward(reader, back, armed), self._backward(there, writer, armed))
        self._writers -= {writer, back}
        writer.transport.abort()
        back.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, back: asyncio.StreamWriter, armed: list[bool]) -> None:
        while data := await reader.read(65536):
            if self.lose_next_reply_to is not None and self.lose_next_reply_to in data:
                self.lose_next_reply_to = None
                armed[0] = True
            if self.lose_every_reply_to is not None and self.lose_every_reply_to in data:
                armed[0] = True
            calls = data.count(b"\r\nFCALL\r\n")
            self.calls += calls
            if 0 < self.lose_call <= calls:
                armed[0] = True
            self.lose_call = max(self.lose_call - calls, 0)
            if self.begins is not None and self.begins[0] in data:
                setattr(self, self.begins[1], True)
            if self.deaf:
                continue
            back.write(data)
        raise ConnectionResetError

    async def _backward(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter, armed: list[bool]) -> None:
        while data := await there.read(65536):
            if armed[0]:  # applied by the server, and the answer is lost
                self.lost += 1
                self.on_loss()
                raise ConnectionResetError
            while self.silent:
                await asyncio.sleep(0.01)
            if self.delay:
                await asyncio.sleep(self.delay)
            while self.trickle and data:
                writer.write(data[: self.trickle])
                data = data[self.trickle :]
                await asyncio.sleep(0.1)
            writer.write(data)
        raise ConnectionResetError
