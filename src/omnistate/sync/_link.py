"""The way to the store for any thread: on a blocking connection of its own as long as all is well.

Whatever is not plain success (no connection, an error reply, a lost connection, a level above `ACCEPTED`) is handed to the
link of the background thread, with what is known of it: so there is one set of rules for what fails.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import hiredis

from omnistate.errors import AmbiguousWrite, NotConnected, OmnistateError
from omnistate.store import Command, Durability, Node, meta_of
from omnistate.store import Link as AsyncLink
from omnistate.sync._background import Background
from omnistate.sync._pool import Pool
from omnistate.sync._wire import Wire

T = TypeVar("T")


class Executor(Protocol):
    """What commands are given to."""

    @property
    def background(self) -> Background: ...
    @property
    def behind(self) -> AsyncLink: ...
    def execute(self, command: Command[T]) -> T: ...
    def execute_all(self, commands: Sequence[Command[Any]]) -> list[Any]: ...


class Link:
    """Safe between threads. `behind` is the link of the background thread."""

    def __init__(self, behind: AsyncLink, background: Background) -> None:
        self.behind, self.background = behind, background
        self._pools: dict[Node, Pool] = {}
        self._lock = threading.Lock()

    def execute(self, command: Command[T]) -> T:
        """The parsed reply, in one round trip unless something fails."""
        self.background.check()
        started = time.monotonic()
        node = self.behind.node_of(command.keys[0])
        pool = self._pools.get(node) or self._pool_of(node)
        wire: Wire | None = None
        try:
            wire = pool.take()
            reply = None if wire is None else wire.ask(self.behind.packed(command))
        except OSError as lost:
            assert wire is not None
            wire.close()
            try:
                return self.background.wait(self.behind.persist(command, sent=True, started=started, said=str(lost)))
            except NotConnected as error:
                raise _unknown(command, error) from lost
        except BaseException:
            if wire is not None:  # its reply may still come, and must not be taken for another one's
                wire.close()
            raise
        if wire is None:
            return self.background.wait(self.behind.persist(command, sent=False, started=started))
        pool.give_back(wire)
        if isinstance(reply, hiredis.ReplyError):
            refused = self.behind.persist(command, sent=False, started=started, reply=reply, node=node)
            return self.background.wait(refused)
        return command.parse(reply)

    def execute_all(self, commands: Sequence[Command[Any]]) -> list[Any]:
        """What each gives, an error of ours as a value. One round trip together, to each server at once."""
        self.background.check()
        started = time.monotonic()
        found: list[Any] = [None] * len(commands)
        several = _Several(self, commands, found, started)
        several.send()
        several.read()
        several.collect()
        return found

    def pool_of(self, node: Node) -> Pool:
        """The blocking connections to a server."""
        return self._pools.get(node) or self._pool_of(node)

    def _pool_of(self, node: Node) -> Pool:
        with self._lock:
            self._pools = {one: pool for one, pool in self._pools.items() if not one.is_retired}
            if node not in self._pools:
                self._pools[node] = Pool(node, self.background)
            return self._pools[node]


class _Several:
    """Commands that travel together."""

    def __init__(self, link: Link, commands: Sequence[Command[Any]], found: list[Any], started: float) -> None:
        self._link, self._commands, self._found, self._started = link, commands, found, started
        self._sent: list[tuple[Node, Pool, Wire, list[int]]] = []
        self._late: list[tuple[int, bool, Any]] = []  # what the background thread goes on with, and whether it was sent

    def send(self) -> None:
        behind, groups = self._link.behind, dict[Node, list[int]]()
        for at, command in enumerate(self._commands):
            groups.setdefault(behind.node_of(command.keys[0]), []).append(at)
        for node, places in groups.items():
            pool = self._link.pool_of(node)
            wire: Wire | None = None
            try:
                wire = pool.take()
                if wire is None:
                    self._hand_over(places, sent=False)
                    continue
                wire.send(b"".join([behind.packed(self._commands[at]) for at in places]))
            except OSError as lost:
                assert wire is not None
                wire.close()
                self._hand_over(places, sent=True, said=str(lost))
            except BaseException:
                self._close(wire)
                raise
            else:
                self._sent.append((node, pool, wire, places))

    def read(self) -> None:
        try:
            while self._sent:
                self._read_one(*self._sent[-1])
                self._sent.pop()
        except BaseException:
            self._close()
            raise

    def collect(self) -> None:
        background = self._link.background
        for at, sent, future in self._late:
            try:
                self._found[at] = background.result(future)
            except NotConnected as error:
                self._found[at] = _unknown(self._commands[at], error) if sent else error
            except OmnistateError as error:
                self._found[at] = error

    def _read_one(self, node: Node, pool: Pool, wire: Wire, places: list[int]) -> None:
        replies: list[Any] = []
        try:
            for _ in places:
                replies.append(wire.read())  # noqa: PERF401 - those that came before an error count
        except OSError as lost:
            wire.close()
            self._hand_over(places[len(replies) :], sent=True, said=str(lost))
        else:
            pool.give_back(wire)
        for at, reply in zip(places, replies, strict=False):
            command = self._commands[at]
            if isinstance(reply, hiredis.ReplyError):
                self._hand_over([at], sent=False, reply=reply, node=node)
                continue
            try:
                self._found[at] = command.parse(reply)
            except OmnistateError as error:
                self._found[at] = error

    def _hand_over(self, places: list[int], *, sent: bool, **known: Any) -> None:
        for at in places:
            command = self._commands[at]
            late = self._link.behind.persist(command, sent=sent, started=self._started, **known)
            try:
                self._late.append((at, sent, self._link.background.begin(late)))
            except NotConnected as error:
                self._found[at] = _unknown(command, error) if sent else error

    def _close(self, wire: Wire | None = None) -> None:
        """Replies may still come on these."""
        for one in (wire, *(one for _, _, one, _ in self._sent)):
            if one is not None:
                one.close()


def _unknown(command: Command[Any], error: NotConnected) -> OmnistateError:
    """Of a command that was sent before the client was closed."""
    if command.operation_id is None:
        return error
    return AmbiguousWrite(command.operation_id, "the client was closed", meta=meta_of(command))


class DurableLink:
    """Executes writes at a level, over the background thread's lanes; what only reads goes as any other."""

    def __init__(self, link: Link, level: Durability) -> None:
        self._link, self._level = link, level
        self.behind, self.background = link.behind, link.background

    def execute(self, command: Command[T]) -> T:
        """The parsed reply, once the level is reached. Raises `DurabilityNotReached`, `DurabilityUnavailable`."""
        if command.operation_id is None:
            return self._link.execute(command)
        self.background.check()
        return self.background.wait(self.behind.execute(command, self._level))

    def execute_all(self, commands: Sequence[Command[Any]]) -> list[Any]:
        """What each gives, an error of ours as a value. They wait for the level together."""
        if all(command.operation_id is None for command in commands):
            return self._link.execute_all(commands)
        level, behind = self._level, self.behind
        begun = [
            self.background.begin(behind.execute(one, level if one.operation_id is not None else None))
            for one in commands
        ]
        found: list[Any] = []
        for future in begun:
            try:
                found.append(self.background.result(future))
            except OmnistateError as error:
                found.append(error)
        return found
