"""What an acknowledged write survives, and how a caller waits for that.

A write at a level above `ACCEPTED` goes out on a connection of its own, with the others of the same moment, and a `WAIT`
or `WAITAOF` after them: so the shared connection is never blocked, and one wait serves many writers.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import hiredis
import msgspec

from omnistate.errors import (
    DurabilityNotReached,
    DurabilityUnavailable,
    InvalidInput,
    StoreError,
    StoreUnavailable,
)
from omnistate.store._command import Command, pack
from omnistate.store._connection import Connection, ConnectionLost
from omnistate.store._node import Node, say

_MOST_REPLICAS = 100
_BATCH = 512  # writes that share a wait
_SHARE, _REST = (
    0.7,
    0.5,
)  # of the time that is left, or all but these seconds, for the wait: a short count can still be told
_DEMOTED = ("UNBLOCKED", "replica instances")  # what a wait is told by a server that has become a replica meanwhile
_HONEST = (7, 4, 3)  # the version of Redis from which on WAITAOF waits for the disk


class Durability(msgspec.Struct, frozen=True):
    """What a write survives once it is acknowledged. Use `ACCEPTED`, `SYNCED`, or `replicated(n)`."""

    replicas: int = 0
    synced: bool = False

    @property
    def wanted(self) -> int:
        """What a wait must count up to."""
        return 1 if self.synced else self.replicas

    def __str__(self) -> str:
        if self.synced:
            return "synced"
        return f"replicated({self.replicas})" if self.replicas else "accepted"


ACCEPTED = Durability()
"""In the primary's memory, and in its file within about a second. A crash of the process loses nothing, a power cut up to two
seconds, a failover what was not yet replicated."""
SYNCED = Durability(synced=True)
"""On the primary's disk: also a power cut loses nothing. A failover loses what was not yet replicated."""


def replicated(replicas: int = 1) -> Durability:
    """In the memory of the primary and of so many replicas: a failover loses it only when none of these is promoted."""
    if type(replicas) is not int or not 1 <= replicas <= _MOST_REPLICAS:
        raise InvalidInput(f"replicated takes a number of replicas from 1 to {_MOST_REPLICAS}, not {replicas!r}")
    return Durability(replicas)


class _Write:
    """One command in a lane, and who waits for its reply."""

    __slots__ = ("asking", "command", "deadline", "packed", "reply")

    def __init__(self, command: Command[Any], packed: bytes, deadline: float, asking: bool) -> None:
        self.command, self.packed, self.deadline, self.asking = command, packed, deadline, asking
        self.reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()


class Lane:
    """Writes to one server at one level."""

    def __init__(self, node: Node, level: Durability, barrier: bytes, stall: float) -> None:
        self._node, self._level, self._barrier, self._stall = node, level, barrier, stall
        self._waiting: list[_Write] = []
        self._worker: asyncio.Task[None] | None = None
        self._connection: Connection | None = None
        self._wait: tuple[str | int, ...] | None = None  # None: a reply says it all

    @property
    def is_over(self) -> bool:
        return self._node.is_retired

    async def send(self, command: Command[Any], packed: bytes, *, deadline: float, asking: bool) -> Any:
        """The reply, once the level is reached.

        Raises `StoreUnavailable` where nothing was sent, `ConnectionLost`, `DurabilityNotReached`, `DurabilityUnavailable`.
        """
        write = _Write(command, packed, deadline, asking)
        self._waiting.append(write)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await write.reply

    def close(self) -> None:
        if self._worker is not None:
            self._worker.cancel()
        if self._connection is not None:
            self._connection.close("the client is closed")
        for write in self._waiting:
            _fail(write, ConnectionLost("the client is closed"))

    async def _work(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
            try:
                await self._serve(batch)
            except (ConnectionLost, StoreError) as error:
                for write in batch:
                    _fail(write, error)
            except asyncio.CancelledError:
                for write in batch:
                    _fail(write, ConnectionLost("the client is closed"))
                raise

    async def _serve(self, batch: list[_Write]) -> None:
        loop = asyncio.get_running_loop()
        deadline = min(write.deadline for write in batch)
        connection = await self._connected(deadline)
        left = deadline - loop.time()
        milliseconds = max(int(max(left * _SHARE, left - _REST) * 1000), 1)
        replies = []
        for write in batch:
            if write.asking:
                connection.send_unheard(pack("ASKING"))
            replies.append(connection.send(write.packed))
        # A wait is for what this connection has written: a repeated write writes nothing, and may not be replicated yet.
        key = batch[0].command.keys[0]
        if self._wait is not None:
            replies.append(connection.send(pack(b"FCALL", self._barrier, 1, key[: key.index(b"}") + 1] + b":barrier")))
            replies.append(connection.send(pack(*self._wait, milliseconds)))
        said = await asyncio.gather(*replies)
        reached = self._reached(*said[len(batch) :])
        for write, reply in zip(batch, said, strict=False):
            if write.reply.done():
                continue
            if isinstance(reply, hiredis.ReplyError) or reached >= self._level.wanted:
                write.reply.set_result(reply)
            else:
                error = DurabilityNotReached(
                    write.command.operation_id or "", str(self._level), reached, meta=write.command.keys[0]
                )
                write.reply.set_exception(error)

    def _reached(self, fence: Any = None, count: Any = None) -> int:
        """How many have it, by the answers to the barrier and the wait."""
        if self._wait is None:
            return self._level.wanted
        if isinstance(fence, hiredis.ReplyError):
            raise ConnectionLost(f"the wait could not be set up: {str(fence)[:80]}")
        if isinstance(count, hiredis.ReplyError):
            if any(words in str(count) for words in _DEMOTED):
                raise ConnectionLost("the server became a replica")
            raise DurabilityUnavailable(str(self._level), f"it says {str(count)[:120]!r}")
        return int(count[0] if isinstance(count, list) else count)

    async def _connected(self, deadline: float) -> Connection:
        """Raises `StoreUnavailable`, `DurabilityUnavailable`."""
        if self._connection is not None and self._connection.is_open:
            return self._connection
        connection = None
        try:
            async with asyncio.timeout_at(deadline):
                connection = await self._node.dial(greet=True, stall=self._stall)
                self._wait = await _way_to_wait(connection, self._level)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, OSError):
                raise StoreUnavailable(str(error) or "no connection in time") from error
            raise
        self._connection = connection
        return connection


def _fail(write: _Write, error: Exception) -> None:
    if not write.reply.done():
        write.reply.set_exception(error)


async def _way_to_wait(connection: Connection, level: Durability) -> tuple[str | int, ...] | None:
    """The command that waits for the level, without its time; None where a reply comes late enough. Raises
    `DurabilityUnavailable`.

    WAITAOF of Valkey, and of Redis 7.4 before 7.4.3, answers before the disk does where the file is synced each second
    (redis/redis#13793); it is not asked there. A file that is synced always is synced before the reply.
    """
    if not level.synced:
        return "WAIT", level.replicas
    info = (await say(connection, "INFO", "server")).decode()
    name = "valkey" if "valkey_version:" in info else "redis"
    version = tuple(int(part) for part in re.findall(r"redis_version:(\d+)\.(\d+)\.(\d+)", info)[0])
    settings = await say(connection, "CONFIG", "GET", "append*")
    said = dict(zip(settings[::2], settings[1::2], strict=True))
    if said.get(b"appendonly") == b"yes":
        if said.get(b"appendfsync") == b"always":
            return None
        if name == "redis" and version >= _HONEST:
            return "WAITAOF", 1, 0
    raise DurabilityUnavailable(str(level), "set appendonly yes, and appendfsync always (or use Redis >= 7.4.3)")
