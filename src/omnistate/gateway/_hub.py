"""Fan-out: each log is followed once per process, each publication is encoded and framed once for all its clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec

from omnistate.gateway._wire import publication_push, text_frame
from omnistate.store import Entry, Feed, Leave, LogKeys, Position, is_last


class _Head(msgspec.Struct):
    """What of an event decides who may see it."""

    type: str = ""
    state: str | None = None
    collection: str | None = None


_decode_head = msgspec.json.Decoder(_Head).decode


class Publication:
    """One event for the clients of a topic: its bytes are shared, its head is decoded when somebody asks."""

    __slots__ = ("_framed", "_head", "_topic", "event", "is_last", "offset")

    def __init__(self, topic: str, entry: Entry) -> None:
        self._topic, self.offset, self.event, self.is_last = topic, entry.offset, entry.event, is_last(entry)
        self._head: _Head | None = None
        self._framed: bytes | None = None

    @property
    def subject(self) -> str | None:
        """The state or the collection that the event is about, if it is about one."""
        if self._head is None:
            self._head = _decode_head(self.event)
        return self._head.state or self._head.collection

    @property
    def framed(self) -> bytes:
        if self._framed is None:
            self._framed = text_frame(publication_push(self._topic, self.event, self.offset))
        return self._framed


Visible = Callable[[Publication], bool]


class Subscriber(Protocol):
    def deliver(self, epoch: str, publication: Publication) -> None: ...
    def lose(self) -> None: ...


class _Topic:
    """A listener of the store's feed that serves all subscribers of one topic, who share one joining of the feed."""

    def __init__(self, name: str, feed: Feed, keys: LogKeys) -> None:
        self.name = name
        self.subscribers: dict[Subscriber, None] = {}
        self.joined = asyncio.ensure_future(feed.join(keys, self))

    def on_entry(self, epoch: str, entry: Entry) -> None:
        publication = Publication(self.name, entry)
        for subscriber in list(self.subscribers):
            subscriber.deliver(epoch, publication)

    def on_lost(self) -> None:
        for subscriber in list(self.subscribers):
            subscriber.lose()

    def on_doubt(self) -> None:
        """What is late comes, in order."""

    def leave(self) -> None:
        if not self.joined.done():
            self.joined.cancel()
        elif not self.joined.cancelled() and self.joined.exception() is None:
            self.joined.result()()


class Hub:
    """The topics that clients of this process follow."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._topics: dict[str, _Topic] = {}

    async def join(self, name: str, keys: LogKeys, subscriber: Subscriber) -> tuple[Position, Leave]:
        """The position from which on the subscriber is given everything, and how it stops."""
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = _Topic(name, self._feed, keys)
        topic.subscribers[subscriber] = None

        def stop() -> None:
            topic.subscribers.pop(subscriber, None)
            if not topic.subscribers and self._topics.get(name) is topic:
                del self._topics[name]
                topic.leave()

        try:
            await asyncio.shield(topic.joined)  # one subscriber may go while the others still wait
        except BaseException:
            stop()
            raise
        return self._feed.position(keys), stop
