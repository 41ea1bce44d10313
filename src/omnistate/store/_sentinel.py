"""The store on a primary with replicas, watched by Sentinels.

Sentinels tell where the primary is, and say when it moves; a primary that was replaced, and does not know yet, goes on to
answer its old clients. So every Sentinel is listened to, the role is asked for once a second, and what a majority of
Sentinels has decided last, by the number of the decision, is believed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

import hiredis

from omnistate.errors import StoreError
from omnistate.store._command import pack
from omnistate.store._connection import Connection, ConnectionLost, open_connection
from omnistate.store._library import Library
from omnistate.store._link import Link
from omnistate.store._node import LONGEST_PAUSE, log_in
from omnistate.store._url import Address, Endpoint

_MOVED, _MOVING = "+switch-master", "+failover-state-send-slaveof-noone"
_ABORTED = ("-failover-abort-no-good-slave", "-failover-abort-slave-timeout", "-failover-abort-not-elected")
_LONGEST_MOVE = 3.0  # seconds that calls wait for the end of a failover that was announced
_ASK_EVERY = 1.0  # seconds
_ANSWER_WITHIN, _OTHERS_WITHIN = 0.5, 0.1
_SILENT = 2.5  # a Sentinel that does not answer a ping for so long is connected to anew


class _Sentinel:
    """One Sentinel: a connection to ask it, and one to listen to it."""

    def __init__(self, endpoint: Endpoint, service: str) -> None:
        self._endpoint, self._service = endpoint, service
        self._connection: Connection | None = None

    async def ask(self) -> tuple[int, str, int] | None:
        """The number of the last decision, host and port; None when it does not know the service. Raises `OSError`."""
        async with asyncio.timeout(_ANSWER_WITHIN):
            if self._connection is None or not self._connection.is_open:
                self._connection = await self._dial()
            reply = await self._connection.send(pack("SENTINEL", "MASTER", self._service))
        if isinstance(reply, hiredis.ReplyError):
            return None
        said = dict(zip(reply[::2], reply[1::2], strict=True))
        return int(said[b"config-epoch"]), said[b"ip"].decode(), int(said[b"port"])

    async def listen(self, on_event: Callable[[str], None]) -> None:
        """Calls `on_event` with the name of each event of the service that says where the primary is, until cancelled."""
        while True:
            with contextlib.suppress(OSError, StoreError, TimeoutError):
                async with asyncio.timeout(_SILENT):
                    connection = await self._dial()
                try:
                    await self._follow(connection, on_event)
                finally:
                    connection.close()
            await asyncio.sleep(LONGEST_PAUSE * (0.5 + random.random()))

    async def _follow(self, connection: Connection, on_event: Callable[[str], None]) -> None:
        heard = asyncio.Event()

        def receive(message: Any) -> None:
            heard.set()
            if isinstance(message, list) and message[0] == b"message" and self._is_concerned(message[2].decode()):
                on_event(message[1].decode())

        connection.listen(receive)
        connection.write(pack("SUBSCRIBE", _MOVED, _MOVING, *_ABORTED))
        while not connection.closed.done():
            heard.clear()
            connection.write(pack("PING"))
            async with asyncio.timeout(_SILENT):
                await heard.wait()
            await asyncio.wait([connection.closed], timeout=_ASK_EVERY)

    def _is_concerned(self, said: str) -> bool:
        """Of `shop <old> <new>`, `master shop ...`, and `slave <name> <host> <port> @ shop ...`."""
        words = said.split(" ")
        of = words[words.index("@") + 1] if "@" in words else words[1] if words[0] == "master" else words[0]
        return of == self._service

    async def _dial(self) -> Connection:
        connection = await open_connection(self._endpoint, stall=_SILENT)
        try:
            await log_in(connection, self._endpoint)
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class SentinelLink(Link):
    """Follows the primary that the Sentinels name."""

    wants_primaries = True

    def __init__(self, address: Address, library: Library, *, timeout: float) -> None:
        self._sentinels = [_Sentinel(endpoint, address.service) for endpoint in address.endpoints]
        self._present: Endpoint | None = None
        self._moving: asyncio.Future[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        super().__init__(address, library, timeout=timeout)
        self._node = self._make_node_where(self._locate)

    async def connect(self) -> None:
        await super().connect()
        self._tasks = [asyncio.create_task(one.listen(self._on_event)) for one in self._sentinels]
        self._tasks.append(asyncio.create_task(self._check()))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().close()
        for sentinel in self._sentinels:
            sentinel.close()

    def _on_event(self, event: str) -> None:
        # The one that is replaced goes on to answer, for ten seconds in a planned failover, and what it is told is lost.
        if event == _MOVING and self._moving is None:
            self._moving = asyncio.get_running_loop().create_future()
        elif event != _MOVING and self._moving is not None:
            self._moving.cancel()
            self._moving = None
        if event not in _ABORTED:
            self._node.drop("the primary moves")

    async def _locate(self) -> Endpoint:
        if self._moving is not None:
            await asyncio.wait([self._moving], timeout=_LONGEST_MOVE)
            self._moving = None
        return await self._ask()

    async def _ask(self) -> Endpoint:
        answers = await self._hear()
        known = [answer for answer in answers if isinstance(answer, tuple)]
        if not known:
            if any(answer is None for answer in answers):
                raise StoreError(
                    f"no Sentinel knows {self.address.service!r}: correct the end of the URL {self.address}"
                )
            raise ConnectionLost("no Sentinel answers")
        _, host, port = max(known)
        self._present = self.address.server.at(host, port)
        return self._present

    async def _hear(self) -> list[tuple[int, str, int] | None]:
        """What the Sentinels answer. Once most of them have, the others are waited for shortly: their host may be gone."""
        tasks = waiting = {asyncio.create_task(one.ask()) for one in self._sentinels}
        answers: list[tuple[int, str, int] | None] = []
        try:
            while waiting:
                limit = _OTHERS_WITHIN if 2 * len(answers) > len(tasks) else None
                heard, waiting = await asyncio.wait(waiting, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
                answers += [task.result() for task in heard if task.exception() is None]
                if not heard:
                    break
        finally:
            for task in tasks:
                task.cancel()
        return answers

    async def _check(self) -> None:
        """What was not heard is found out."""
        while True:
            await asyncio.sleep(_ASK_EVERY * (0.5 + random.random() / 2))
            before = self._present
            with contextlib.suppress(OSError, StoreError, TimeoutError):
                async with asyncio.timeout(3 * _ANSWER_WITHIN):
                    if self._moving is None and await self._ask() != before:
                        self._node.drop("the primary moved")
                    await self._node.check()
