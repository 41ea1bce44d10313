"""Live logs: one subscription per log and process, delivered in order and without gaps.

Pub/sub may lose messages, so it is only the fast path: each message carries its position, and whatever is missing
(a gap, a new connection, a quiet loss) is read from the log. What the log no longer holds is told to every listener.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Protocol

import hiredis

from omnistate.errors import NotConnected, OmnistateError, PositionLost, StoreError
from omnistate.store._command import Command, pack
from omnistate.store._connection import Connection
from omnistate.store._keys import LogKeys
from omnistate.store._link import Link
from omnistate.store._log import LONGEST_LOG, Entry, open_log, read_log
from omnistate.store._node import Node
from omnistate.store._position import Position

CHECK_EVERY = 40.0  # seconds between looks at quiet logs, and the longest that a lost last message stays unseen
_WAITING_LIMIT = 10_000


class Listener(Protocol):
    """What is told of a log's new entries, in order, inside the event loop."""

    def on_entry(self, epoch: str, entry: Entry) -> None: ...
    def on_lost(self) -> None:
        """Entries are missing for good: read the state again."""

    def on_doubt(self) -> None:
        """Entries may be late from now on, or missing until they are read from the log: see `Feed.is_live`."""


Leave = Callable[[], None]


class _Topic:
    """One log as this process sees it: `position` is the newest entry that all listeners have been given."""

    def __init__(self, keys: LogKeys, shard: _Shard) -> None:
        self.keys, self.shard = keys, shard
        self.listeners: dict[int, Listener] = {}
        self.position: Position | None = None
        self.waiting: list[tuple[str, Entry]] = []
        self.is_complete = False  # nothing is missing, as far as is known
        self.repair: asyncio.Task[None] | None = None
        self.joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def deliver(self, epoch: str, entry: Entry) -> bool:
        """Gives the entry to all if it is the next one. False: something is missing before it."""
        position = self.position
        if position is None or position.epoch != epoch or entry.offset > position.offset + 1:
            return False
        if entry.offset == position.offset + 1:
            self.position = Position(epoch, entry.offset)
            for listener in list(self.listeners.values()):
                listener.on_entry(epoch, entry)
        return True

    def lose(self, current: Position) -> None:
        self.position = current
        for listener in list(self.listeners.values()):
            listener.on_lost()

    def doubt(self, *, is_complete: bool = False) -> None:
        self.is_complete = self.is_complete and is_complete
        for listener in list(self.listeners.values()):
            listener.on_doubt()


class _Shard:
    """The logs that one server has: a connection that is subscribed to their topics."""

    def __init__(
        self, node: Node, on_message: Callable[[_Shard, Any], None], on_doubt: Callable[[_Shard, bool], None]
    ) -> None:
        self._node, self._on_message, self._on_doubt = node, on_message, on_doubt
        self._topics: set[bytes] = set()
        self._asked: dict[bytes, int] = {}  # subscriptions sent and not confirmed yet, per topic
        self._given_up: dict[bytes, int] = {}  # the same of their ends
        self._subscriber: _Subscriber | None = None
        self._keeper = asyncio.create_task(self._keep())

    @property
    def is_live(self) -> bool:
        """Whether its server has been heard of lately."""
        return self._subscriber is not None and self._subscriber.is_heard

    def add(self, name: bytes) -> None:
        self._topics.add(name)
        self._subscribe(name)

    def remove(self, name: bytes) -> None:
        self._topics.discard(name)
        if self._subscriber is not None:
            self._given_up[name] = self._given_up.get(name, 0) + 1
            self._subscriber.say("SUNSUBSCRIBE", name)

    def is_confirmed(self, name: bytes) -> bool:
        """Counts a confirmation; whether it was that of the last subscription."""
        return _count_down(self._asked, name)

    def is_expelled(self, name: bytes) -> bool:
        """Counts the end of a subscription; whether the server has ended it, because the topic's slot moved."""
        is_asked = name in self._given_up
        if is_asked:
            _count_down(self._given_up, name)
        return not is_asked and name in self._topics

    def restart(self) -> None:
        """Connects and subscribes anew."""
        if self._subscriber is not None:
            self._subscriber.close()

    async def close(self) -> None:
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        if self._subscriber is not None:
            self._subscriber.close()

    def _subscribe(self, name: bytes) -> None:
        if self._subscriber is not None:  # else the keeper subscribes to everything once it has a connection
            self._asked[name] = self._asked.get(name, 0) + 1
            self._subscriber.say("SSUBSCRIBE", name)

    async def _keep(self) -> None:
        """Holds a subscriber connection; after each reconnect everything is subscribed and read again."""
        pause = 0.02
        while not self._node.is_retired:  # then the topics are moved to another server's shard
            try:
                connection = await self._node.dial()
            except (OSError, StoreError):
                # Writers are served again as soon as the link is back, and a log holds only so many entries: do not lag.
                await self._node.wait_until_connected(pause * (0.5 + random.random()))
                pause = min(pause * 2, 1.0)
                continue
            pause = 0.02
            self._asked.clear()
            self._given_up.clear()
            self._subscriber = _Subscriber(
                connection, lambda message: self._on_message(self, message), lambda: self._on_doubt(self, True)
            )
            for name in self._topics:
                self._subscribe(name)
            await self._subscriber.watch()
            self._subscriber = None
            self._on_doubt(self, False)


def _count_down(counts: dict[bytes, int], name: bytes) -> bool:
    left = counts.pop(name, 1) - 1
    if left > 0:
        counts[name] = left
    return left <= 0


class Feed:
    """The live logs of one process. A connection to each server that has some serves any number of logs and listeners."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._topics: dict[bytes, _Topic] = {}
        self._shards: dict[Node, _Shard] = {}
        self._checker: asyncio.Task[None] | None = None
        self._finding: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._closed = False
        link.on_moved(self._follow)

    async def join(self, keys: LogKeys, listener: Listener) -> Leave:
        """Tells `listener` every entry written after this returns; returns how to stop. Two round trips when first."""
        if self._closed:
            raise NotConnected
        topic = self._topics.get(keys.topic)
        if topic is None:
            topic = self._topics[keys.topic] = _Topic(keys, self._shard_of(keys.topic))
            topic.shard.add(keys.topic)
        token = id(listener)
        topic.listeners[token] = listener

        def leave() -> None:
            if topic.listeners.pop(token, None) is not None and not topic.listeners:
                self._drop(topic)

        try:
            await asyncio.shield(topic.joined)
        except BaseException:
            leave()
            raise
        return leave

    def position(self, keys: LogKeys) -> Position:
        """The newest entry of a joined log that its listeners have been given."""
        position = self._topics[keys.topic].position
        assert position is not None
        return position

    def is_live(self, keys: LogKeys) -> bool:
        """Whether the listeners of a log have been given everything, but for what is on its way.

        A connection that dies silently is noticed within 3.5 seconds.
        """
        topic = self._topics.get(keys.topic)
        return topic is not None and topic.is_complete and topic.shard.is_live

    async def close(self) -> None:
        """Whoever listens is told; a reader that then looks into the log finds that the client is closed."""
        self._closed = True
        tasks = [topic.repair for topic in self._topics.values() if topic.repair is not None]
        tasks += [task for task in (self._checker, self._finding, *self._leaving) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *(shard.close() for shard in self._shards.values()), return_exceptions=True)
        for topic in self._topics.values():
            topic.joined.cancel()
            for listener in list(topic.listeners.values()):
                listener.on_lost()
        self._topics.clear()

    def _shard_of(self, name: bytes) -> _Shard:
        if self._checker is None:
            self._checker = asyncio.create_task(self._check())
        node = self._link.node_of(name)
        if node not in self._shards:
            self._shards[node] = _Shard(node, self._on_message, self._doubt)
        return self._shards[node]

    def _follow(self) -> None:
        """Logs may be on other servers now: their topics are subscribed there, and read, as after a reconnect."""
        for name, topic in self._topics.items():
            shard = self._shard_of(name)
            if shard is not topic.shard:
                topic.doubt()
                topic.shard.remove(name)
                topic.shard = shard
                shard.add(name)
        needed = {topic.shard for topic in self._topics.values()}
        for node, shard in list(self._shards.items()):
            if shard not in needed:
                del self._shards[node]
                self._leaving.add(task := asyncio.create_task(shard.close()))
                task.add_done_callback(self._leaving.discard)

    def _drop(self, topic: _Topic) -> None:
        name = topic.keys.topic
        if self._topics.get(name) is topic:
            del self._topics[name]
            topic.shard.remove(name)
        if topic.repair is not None:
            topic.repair.cancel()
        topic.joined.cancel()

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(CHECK_EVERY * (0.5 + random.random() / 2))
            for topic in list(self._topics.values()):
                if topic.position is not None and topic.repair is None:
                    self._repair(topic)
                    await asyncio.sleep(0.001)

    async def _find(self, shard: _Shard) -> None:
        """A server has refused or ended subscriptions: other servers have their logs, or will have."""
        await self._link.rediscover()
        await asyncio.sleep(0.1 * random.random())
        if shard in self._shards.values():
            shard.restart()

    def _doubt(self, shard: _Shard, is_complete: bool) -> None:
        """A server is silent, or its connection is gone; in the first case what it will say is still complete."""
        for topic in list(self._topics.values()):
            if topic.shard is shard:
                topic.doubt(is_complete=is_complete)

    def _on_message(self, shard: _Shard, message: Any) -> None:
        if isinstance(message, hiredis.ReplyError):
            self._lose(shard)
            return
        kind, name = message[0], message[1]
        topic = self._topics.get(name)
        if kind == b"ssubscribe":
            if shard.is_confirmed(name) and topic is not None and topic.shard is shard:
                self._repair(topic)
        elif kind == b"sunsubscribe":
            if shard.is_expelled(name):
                self._lose(shard)
        elif kind == b"smessage" and topic is not None:
            offset, epoch, event = message[2].split(b" ", 2)
            self._on_entry(topic, epoch.decode(), Entry(int(offset), event))

    def _lose(self, shard: _Shard) -> None:
        if self._finding is None or self._finding.done():
            self._finding = asyncio.create_task(self._find(shard))

    def _on_entry(self, topic: _Topic, epoch: str, entry: Entry) -> None:
        if topic.repair is None and topic.deliver(epoch, entry):
            return
        topic.waiting.append((epoch, entry))
        if len(topic.waiting) > _WAITING_LIMIT:
            del topic.waiting[:]  # the repair reads them from the log
        if topic.repair is None and topic.position is not None:
            topic.doubt()
            self._repair(topic)

    def _repair(self, topic: _Topic) -> None:
        if topic.repair is not None:
            topic.repair.cancel()
        topic.repair = asyncio.create_task(self._catch_up(topic))

    async def _catch_up(self, topic: _Topic) -> None:
        """Reads what is missing. Ends with the topic contiguous and nothing waiting."""
        pause = 0.02
        while True:
            try:
                if topic.position is None:
                    topic.position = await self._execute(open_log(topic.keys))
                else:
                    page = await self._execute(read_log(topic.keys, topic.position, limit=LONGEST_LOG))
                    for entry in page.entries:
                        topic.deliver(page.epoch, entry)
            except PositionLost as lost:
                topic.lose(lost.current)
            except StoreError:
                await asyncio.sleep(pause * (0.5 + random.random()))
                pause = min(pause * 2, 1.0)
                continue
            except OmnistateError as error:  # merged away: nothing more will come
                if not topic.joined.done():
                    topic.joined.set_exception(error)
                else:
                    topic.lose(topic.position or Position("", 0))
                topic.repair = None
                return
            waiting, topic.waiting = topic.waiting, []
            if all(topic.deliver(epoch, entry) for epoch, entry in waiting):
                break
        topic.repair = None
        topic.is_complete = True
        if not topic.joined.done():
            topic.joined.set_result(None)

    async def _execute(self, command: Command[Any]) -> Any:
        return await self._link.execute(command)


class _Subscriber:
    """A connection in subscriber mode: whatever arrives is a message, and silence is answered with a ping."""

    PING_EVERY = 1.0  # seconds
    SILENT_AFTER, GIVEN_UP_AFTER = 2.5, 12.5

    def __init__(
        self, connection: Connection, on_message: Callable[[Any], None], on_silence: Callable[[], None]
    ) -> None:
        self._connection = connection
        self._heard = asyncio.get_running_loop().time()
        self._on_message, self._on_silence = on_message, on_silence
        self._is_silent = False
        connection.listen(self._receive)

    @property
    def is_heard(self) -> bool:
        return self._connection.is_open and not self._is_silent

    def say(self, *words: str | bytes) -> None:
        self._connection.write(pack(*words))

    def close(self) -> None:
        self._connection.close()

    async def watch(self) -> None:
        """Returns when the connection is gone or silent for too long."""
        while not self._connection.closed.done():
            await asyncio.wait([self._connection.closed], timeout=self.PING_EVERY)
            silence = asyncio.get_running_loop().time() - self._heard
            if silence > self.GIVEN_UP_AFTER:
                self._connection.close("the subscription is silent")
            elif not self._connection.closed.done():
                self.say("PING")
                if silence > self.SILENT_AFTER and not self._is_silent:
                    self._is_silent = True
                    self._on_silence()

    def _receive(self, message: Any) -> None:
        self._heard, self._is_silent = asyncio.get_running_loop().time(), False
        if isinstance(message, list | hiredis.ReplyError):
            self._on_message(message)
