"""The way to the store: sends each command to the server that has its keys, and tries again until the deadline.

Every write carries an operation id, so a command whose reply was lost is sent again and applied once. What stays
unknown at the deadline raises `AmbiguousWrite`; a command that never left raises `StoreUnavailable`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, TypeVar

import hiredis

from omnistate.errors import (
    AmbiguousWrite,
    CustomerErased,
    NotConnected,
    OmnistateError,
    Overloaded,
    StoreError,
    StoreUnavailable,
)
from omnistate.store._command import Command, Keys, pack, words_of
from omnistate.store._connection import MAX_IN_FLIGHT, Connection, ConnectionLost
from omnistate.store._durability import Durability, Lane
from omnistate.store._library import Library
from omnistate.store._node import FIRST_PAUSE, LONGEST_PAUSE, Locate, Node
from omnistate.store._replies import is_function_missing, is_passing, to_error
from omnistate.store._url import Address, Endpoint

T = TypeVar("T")
MAX_WAITING = 50_000  # calls that wait for room, for a connection, or for another try
_RETRIES, _RETRIES_A_SECOND = 20_000, 500  # tries after the first: so many at once, and so many in the long run
_ASKING = pack("ASKING")
_LATE = 0.02  # the share of the time-out from which on a step of a call watches its deadline itself
_TURNS = 5  # redirections of one call that are followed at once
_NO_ANSWER: Any = object()


@dataclass(slots=True)
class _Trial:
    """One call that did not succeed at once: what has been tried."""

    deadline: float  # of the loop's clock
    sent: bool  # a try may have been applied
    said: str  # what went wrong last
    level: Durability | None = None
    is_crowded_out: bool = False  # there was no room before the deadline
    asking: bool = False  # the next try is for a server that a slot is being moved to
    turns: int = 0
    pause: float = FIRST_PAUSE
    reloaded: set[Node] = field(default_factory=set)

    async def rest(self, at_least: float = 0.0) -> None:
        """Waits longer each time, and not past the deadline."""
        left = self.deadline - asyncio.get_running_loop().time()
        await asyncio.sleep(max(min(max(self.pause, at_least) * (0.5 + random.random()), left), 0))
        self.pause = min(self.pause * 2, LONGEST_PAUSE)


class _Budget:
    """How many tries after the first there may be: a server in trouble is not asked more and more."""

    def __init__(self) -> None:
        self._left, self._at = float(_RETRIES), asyncio.get_running_loop().time()

    def take(self) -> bool:
        """Whether another try may be made at once."""
        now = asyncio.get_running_loop().time()
        self._left = min(self._left + (now - self._at) * _RETRIES_A_SECOND, _RETRIES)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Executor(Protocol):
    """What commands are given to."""

    timeout: float

    async def execute(self, command: Command[T], *, started: float | None = None) -> T: ...


class Link:
    """The store on one server. `timeout` seconds bound each call as a whole.

    A store on several servers overrides where a command goes (`node_of`), what an error reply says of that (`_redirect`),
    and how it is found out anew (`rediscover`).
    """

    patience = 60.0  # seconds that a call waits for a connection to a server before it asks again which server it is
    wants_primaries = False  # whether a server that is found to be a replica is left

    def __init__(
        self,
        address: Address,
        library: Library,
        *,
        timeout: float,
        check_server: Callable[[], None] = lambda: None,
    ) -> None:
        self.address = address
        self._library, self.timeout, self._check_server = library, timeout, check_server
        self._functions: dict[str, bytes] = {}
        self._closed = False
        self._waiting = 0
        self._budget = _Budget()
        self._listeners: list[Callable[[], None]] = []
        self._lanes: dict[tuple[Node, Durability], Lane] = {}
        self._node = self._make_node(address.endpoints[0])

    async def execute(self, command: Command[T], level: Durability | None = None, *, started: float | None = None) -> T:
        """The parsed reply, in one round trip unless something fails. `level`: what the write must have survived by then.

        `started`: when the call began of which this is a later step, by the loop's clock.
        """
        if level is not None:
            return await self.persist(command, sent=False, started=started, level=level)
        node = self.node_of(command.keys[0])
        connection = node.connection
        if connection is None or not connection.is_open or connection.in_flight >= MAX_IN_FLIGHT:
            return await self.persist(command, sent=False, started=started)
        now = asyncio.get_running_loop().time()
        if started is None:
            started = now
        elif (
            now - started > self.timeout * _LATE
        ):  # the connection would wait for the reply of a command that begins now
            return await self.persist(command, sent=False, started=started)
        try:
            reply = await connection.send(self.packed(command))
        except ConnectionLost as lost:
            return await self.persist(command, sent=True, started=started, said=str(lost))
        if isinstance(reply, hiredis.ReplyError):
            return await self.persist(command, sent=False, started=started, reply=reply, node=node)
        return command.parse(reply)

    async def connect(self) -> None:
        """Connects now rather than at the first call. Raises what a call would raise."""
        await self._connect(self._node, asyncio.get_running_loop().time() + self.timeout)

    def node_of(self, key: bytes) -> Node:  # noqa: ARG002 - there is one
        """The server that has this key, as far as is known."""
        return self._node

    def on_moved(self, listener: Callable[[], None]) -> None:
        """Calls `listener` whenever `node_of` may have changed."""
        self._listeners.append(listener)

    async def close(self) -> None:
        self._closed = True
        for lane in self._lanes.values():
            lane.close()
        self._node.retire("the client is closed")

    def _make_node(self, endpoint: Endpoint) -> Node:
        async def locate() -> Endpoint:
            return endpoint

        return self._make_node_where(locate)

    def _make_node_where(self, locate: Locate) -> Node:
        return Node(
            locate,
            self._library,
            stall=self.timeout / 2,
            primary=self.wants_primaries,
            check_server=self._check_server,
        )

    def _redirect(self, message: str, node: Node) -> Node | None:  # noqa: ARG002 - nobody to redirect to
        """The server that an error reply sends the command to."""
        return None

    async def rediscover(self) -> None:
        """Finds out where commands go, after a server has not done as expected. Takes a moment; raises nothing."""

    def _moved(self) -> None:
        for listener in self._listeners:
            listener()

    def packed(self, command: Command[Any]) -> bytes:
        """The call as it goes over the wire."""
        keys, arguments = command.keys, command.arguments
        function = self._functions.get(command.function)
        if function is None:
            packed = words_of(pack(b"FCALL", self._library.function(command.function)))
            function = self._functions[command.function] = packed
        if type(keys) is Keys:
            named = keys.packed
        else:  # hiredis 3.5 crashes when a signal comes just as it spells an integer
            named = words_of(pack(b"%d" % len(keys), *keys))
            arguments = [b"%d" % word if word.__class__ is int else word for word in arguments]
        said = pack(*arguments)
        count = b"*%d\r\n" % (3 + len(keys) + len(arguments))
        return b"".join((count, function, named, said[said.index(b"\n") + 1 :]))

    async def persist(
        self,
        command: Command[T],
        *,
        sent: bool,
        started: float | None = None,
        reply: hiredis.ReplyError | None = None,
        node: Node | None = None,
        said: str = "",
        level: Durability | None = None,
    ) -> T:
        """Tries until the deadline, which is counted from `started`, a time of `time.monotonic`.

        `sent`: an earlier try may have been applied. `reply`: its error reply, of `node`. `said`: what went wrong.
        """
        if self._waiting >= MAX_WAITING and not sent:
            raise Overloaded(f"{MAX_WAITING:,} calls already wait for {self.address}: slow down and call again")
        self._waiting += 1
        try:
            return await self._try_again(command, sent, started, reply, node, said, level)
        finally:
            self._waiting -= 1

    async def _try_again(
        self,
        command: Command[T],
        sent: bool,
        started: float | None,
        reply: hiredis.ReplyError | None,
        node: Node | None,
        said: str,
        level: Durability | None,
    ) -> T:
        now = asyncio.get_running_loop().time
        trial = _Trial((started if started is not None else now()) + self.timeout, sent, said, level)
        node, target = node or self.node_of(command.keys[0]), None
        while True:
            if self._closed:
                _refuse(command, trial, NotConnected())
            if reply is not None:
                try:
                    target = await self._heed(str(reply), node, trial)
                except (ConnectionLost, StoreUnavailable) as lost:
                    target, trial.said = None, str(lost)
                    await trial.rest()
                except OmnistateError as error:
                    _refuse(command, trial, error)
            if trial.sent and not self._budget.take():
                await trial.rest(at_least=LONGEST_PAUSE)
            if now() >= trial.deadline:
                raise self._give_up(command, trial)
            node = target or self.node_of(command.keys[0])
            answer = await self._attempt(command, node, trial)
            if isinstance(answer, hiredis.ReplyError):
                reply = answer
            elif answer is not _NO_ANSWER:
                return command.parse(answer)
            else:
                reply = target = None
                await self.rediscover()

    async def _attempt(self, command: Command[Any], node: Node, trial: _Trial) -> Any:
        """The answer, `_NO_ANSWER` when another try may have one."""
        if trial.level is not None:
            return await self._send_durably(command, node, trial, trial.level)
        try:
            connection = await self._connect(node, trial.deadline)
        except StoreUnavailable:
            trial.said = node.last_error
            if node.is_retired:  # and no other server has the slot
                await trial.rest()
            return _NO_ANSWER
        except OmnistateError as error:
            _refuse(command, trial, error)
        try:
            async with asyncio.timeout_at(trial.deadline):
                await connection.room()
        except TimeoutError:
            trial.is_crowded_out = True
            return _NO_ANSWER
        except ConnectionLost as lost:
            trial.said = str(lost)
            return _NO_ANSWER
        try:
            async with asyncio.timeout_at(trial.deadline):
                if trial.asking:
                    connection.send_unheard(_ASKING)
                return await connection.send(self.packed(command))
        except (ConnectionLost, TimeoutError) as lost:
            was_sent, trial.sent, trial.said = trial.sent, True, str(lost) or "no reply in time"
        finally:
            trial.asking = False
        if was_sent:  # whatever cuts the connection will do it again: no rush
            await trial.rest()
        return _NO_ANSWER

    async def _send_durably(self, command: Command[Any], node: Node, trial: _Trial, level: Durability) -> Any:
        lane = self._lanes.get((node, level))
        if lane is None:
            self._lanes = {key: lane for key, lane in self._lanes.items() if not lane.is_over}
            lane = self._lanes[node, level] = Lane(
                node, level, self._library.function("barrier"), stall=2 * self.timeout
            )
        try:
            async with asyncio.timeout_at(trial.deadline):
                return await lane.send(command, self.packed(command), deadline=trial.deadline, asking=trial.asking)
        except AmbiguousWrite:
            raise
        except StoreUnavailable as error:
            trial.said = str(error)
        except (ConnectionLost, TimeoutError) as lost:
            trial.sent, trial.said = True, str(lost) or "no reply in time"
        finally:
            trial.asking = False
        await trial.rest()
        return _NO_ANSWER

    async def _heed(self, message: str, node: Node, trial: _Trial) -> Node | None:
        """Does what an error reply asks for, and returns where the command is to be sent. Raises what no try will mend."""
        if is_function_missing(message) and node not in trial.reloaded:
            await node.load_library(await self._connect(node, trial.deadline))
            trial.reloaded.add(node)
            return node
        target = self._redirect(message, node)
        if target is None and not is_passing(message):
            raise to_error(message)
        trial.said = message[:80]
        if target is not None:
            trial.asking = message.startswith("ASK ")
            trial.turns += 1
            if trial.turns > _TURNS:  # the servers do not agree yet
                await trial.rest()
            return target
        if message.startswith("READONLY"):
            node.drop("the server became a replica")  # it keeps its old clients
        await self.rediscover()
        await trial.rest()
        return None

    def _give_up(self, command: Command[Any], trial: _Trial) -> StoreError:
        if trial.sent and command.operation_id is not None:
            return AmbiguousWrite(command.operation_id, trial.said, meta=meta_of(command))
        if trial.is_crowded_out:
            return Overloaded(f"{MAX_IN_FLIGHT:,} calls wait for an answer of {self.address}: slow down and call again")
        return self._unavailable(trial.said or "its turn came too late")

    def _unavailable(self, said: str) -> StoreUnavailable:
        return StoreUnavailable(f"{self.address} did not answer within {self.timeout:g} s ({said}): check that it runs")

    async def _connect(self, node: Node, deadline: float) -> Connection:
        """Raises `StoreUnavailable` when it takes too long."""
        if self._closed:
            raise NotConnected
        try:
            return await node.connected(min(deadline, asyncio.get_running_loop().time() + self.patience))
        except TimeoutError:
            raise self._unavailable(node.last_error) from None
        except NotConnected:
            if self._closed:
                raise
            raise self._unavailable(node.last_error) from None


def _refuse(command: Command[Any], trial: _Trial, error: OmnistateError) -> NoReturn:
    """Raises the error, unless an earlier try may have been applied. What an erased customer had is gone in both cases."""
    if trial.sent and command.operation_id is not None and not isinstance(error, CustomerErased):
        raise AmbiguousWrite(command.operation_id, str(error), meta=meta_of(command)) from error
    raise error


def meta_of(command: Command[Any]) -> bytes | None:
    """The key that remembers the operation, where the command writes to a log."""
    key = command.keys[0]
    return key if key.endswith(b":meta") else None


class DurableLink:
    """Executes writes at a level; what only reads goes by the shared connection."""

    def __init__(self, link: Link, level: Durability) -> None:
        self._link, self._level, self.timeout = link, level, link.timeout

    async def execute(self, command: Command[T], *, started: float | None = None) -> T:
        """The parsed reply, once the level is reached. Raises `DurabilityNotReached`, `DurabilityUnavailable`."""
        level = self._level if command.operation_id is not None else None
        return await self._link.execute(command, level, started=started)
