"""One client's connection: its commands in order, its subscriptions, its deadlines. Knows no transport and no server."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

from msgspec import Raw

from omnistate.errors import OmnistateError, PositionLost
from omnistate.gateway._auth import Peer, TokenExpired
from omnistate.gateway._hub import Hub, Publication, Visible
from omnistate.gateway._wire import (
    ALREADY_SUBSCRIBED,
    DENIED,
    INTERNAL,
    KINDS,
    LIMIT,
    METHOD_NOT_FOUND,
    NOT_AVAILABLE,
    PING,
    TOKEN_EXPIRED,
    UNRECOVERABLE,
    BadFrame,
    Command,
    Disconnect,
    HistoryRequest,
    SubscribeRequest,
    WireError,
    decode_frame,
    error_reply,
    publication,
    reply,
    text_frame,
    unsubscribe_push,
    wire_error,
)
from omnistate.store import MAX_PAGE, Feed, Leave, LogKeys, Page, Position

log = logging.getLogger("omnistate.gateway")
VERSION = "omnistate 0.1.0"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one connection. Times in seconds, sizes in bytes."""

    message_size: int = 64 * 1024
    queue_size: int = 1024 * 1024
    frames_waiting: int = 64
    subscriptions: int = 128
    topic_length: int = 600
    connect_within: float = 10.0
    ping_every: float = 25.0
    pong_within: float = 8.0
    token_grace: float = 25.0
    drain_over: float = 20.0


class Transport(Protocol):
    """What a connection is given to speak through."""

    def write(self, framed: bytes) -> None: ...
    def close(self, code: int, reason: str) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Access:
    """A topic that a peer may follow: its log, which of its events the peer may see, and until when, if a token of its own
    says so."""

    keys: LogKeys
    visible: Visible
    expires_at: float | None = None


class Backend(Protocol):
    """What a connection asks of the gateway."""

    limits: Limits
    hub: Hub
    feed: Feed

    def authenticate(self, token: str) -> Peer: ...
    def authorize(self, peer: Peer, topic: str, token: str) -> Access: ...
    async def read(self, access: Access, after: Position) -> Page: ...
    async def rpc(self, peer: Peer, method: str, data: bytes) -> bytes: ...


class Subscription:
    """A topic that the client follows. What arrives before the subscribe reply is written waits behind it."""

    __slots__ = ("access", "connection", "is_lost", "last", "leave", "topic", "waiting")

    def __init__(self, connection: ClientConnection, topic: str, access: Access) -> None:
        self.connection, self.topic, self.access = connection, topic, access
        self.waiting: list[Publication] | None = []
        self.last = 0
        self.leave: Leave | None = None
        self.is_lost = False

    def deliver(self, epoch: str, publication: Publication) -> None:  # noqa: ARG002 - a new epoch comes as `lose`
        if self.waiting is not None:
            self.waiting.append(publication)
        elif publication.offset > self.last:
            self.last = publication.offset
            if self.access.visible(publication):
                self.connection.write_framed(publication.framed)
            if publication.is_last:  # below 2500: the SDK does not subscribe again
                self.connection.unsubscribe(self.topic, push=(2000, "customer erased"))

    def lose(self) -> None:
        self.is_lost = True
        if self.waiting is None:  # else the reply is not written yet, and says so
            self.connection.unsubscribe(self.topic, push=(2500, "insufficient state"))

    def release(self, last: int) -> None:
        """From now on what comes goes out, what waited first."""
        self.last = last
        waiting, self.waiting = self.waiting or [], None
        for early in waiting:
            self.deliver("", early)


class ClientConnection:
    """Commands are handled one after the other, in the order they came, by one task."""

    def __init__(self, backend: Backend, transport: Transport) -> None:
        self._backend, self._transport, self._limits = backend, transport, backend.limits
        self._loop = asyncio.get_running_loop()
        self._frames: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._subscriptions: dict[str, Subscription] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._peer: Peer | None = None
        self._refused = False
        self._paused = False
        self._awaits_pong = False
        self._closed = False
        self.id = str(uuid.uuid4())
        self._timer("connect", self._limits.connect_within, lambda: self.close(*Disconnect.STALE))
        self._worker = self._loop.create_task(self._work())

    # what the transport tells

    def receive(self, frame: bytes) -> None:
        self._frames.append(frame)
        self._arrived.set()
        if len(self._frames) >= self._limits.frames_waiting and not self._paused:
            self._paused = True
            self._transport.pause()

    def lost(self) -> None:
        """The transport is gone: everything that belongs to the connection ends."""
        self._closed = True
        self._worker.cancel()
        for timer in self._timers.values():
            timer.cancel()
        for topic in list(self._subscriptions):
            self.unsubscribe(topic)

    # what others may do

    def write_framed(self, framed: bytes) -> None:
        self._transport.write(framed)

    def close(self, code: int, reason: str) -> None:
        if not self._closed:
            self._transport.close(code, reason)
            self.lost()

    def unsubscribe(self, topic: str, *, push: tuple[int, str] | None = None) -> bool:
        subscription = self._subscriptions.pop(topic, None)
        if subscription is None:
            return False
        self._stop("expiry of " + topic)
        if subscription.leave is not None:
            subscription.leave()
        if push is not None:
            self._say(unsubscribe_push(topic, *push))
        return True

    # commands

    async def _work(self) -> None:
        try:
            await self._work_until_closed()
        finally:
            self.close(*Disconnect.SERVER_ERROR)  # has no effect on what is closed

    async def _work_until_closed(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._frames:
                frame = self._frames.popleft()
                if self._paused and len(self._frames) < self._limits.frames_waiting // 2:
                    self._paused = False
                    self._transport.resume()
                try:
                    for command in decode_frame(frame):
                        await self._handle(command)
                except BadFrame:
                    self.close(*Disconnect.BAD_REQUEST)
                    return

    async def _handle(self, command: Command) -> None:
        kind = next((name for name in KINDS if getattr(command, name) is not None), "")
        if not kind:
            return self._pong(command)
        if kind == "send":
            return self.close(*Disconnect.NOT_AVAILABLE)
        if command.id <= 0 or (self._peer is None) != (kind == "connect") or self._refused:
            raise BadFrame(kind)
        try:
            result = await self._answer(kind, getattr(command, kind), command.id)
        except Exception as error:
            if not isinstance(error, OmnistateError | WireError):
                log.exception("a client's %s failed", kind)
            refusal = wire_error(error)
            if self._peer is None:
                self._refused = True
                if refusal.code == DENIED.code:
                    return self.close(*Disconnect.INVALID_TOKEN)
            self._say(error_reply(command.id, refusal))
        else:
            if result is not None:
                self._say(reply(command.id, kind, result))
        return None

    async def _answer(self, kind: str, request: Any, command_id: int) -> bytes | dict[str, Any] | None:
        match kind:
            case "connect":
                return self._connect(request.token)
            case "subscribe":
                await self._subscribe(request, command_id)
                return None  # it has answered
            case "unsubscribe":
                self.unsubscribe(request.channel)
                return {}
            case "rpc":
                assert self._peer is not None
                data = bytes(request.data)
                return b'{"data":%b}' % await self._backend.rpc(
                    self._peer, request.method, b"" if data == b"null" else data
                )
            case "history":
                return await self._history(request)
            case "refresh":
                return self._refresh(request.token)
            case "sub_refresh":
                return self._refresh_subscription(request.channel, request.token)
            case "ping":
                return {}
            case "publish":
                raise DENIED  # changes go through actions
            case "presence" | "presence_stats":
                raise NOT_AVAILABLE
        raise METHOD_NOT_FOUND

    def _connect(self, token: str) -> dict[str, Any]:
        self._peer = self._authenticate(token)
        self._end_with_token(self._peer)
        self._stop("connect")
        ping_every = self._limits.ping_every
        self._timer("ping", ping_every * (0.5 + random.random() / 2), self._ping)
        return self._identity() | {"ping": round(ping_every), "pong": True}

    def _authenticate(self, token: str) -> Peer:
        try:
            return self._backend.authenticate(token)
        except TokenExpired:
            raise TOKEN_EXPIRED from None

    def _end_with_token(self, peer: Peer) -> None:
        if peer.expires_at is not None:
            left = peer.expires_at - time.time()
            self._timer("token", left + self._limits.token_grace, lambda: self.close(*Disconnect.EXPIRED))

    def _identity(self) -> dict[str, Any]:
        said: dict[str, Any] = {"client": self.id, "version": VERSION}
        if self._peer is not None and self._peer.expires_at is not None:
            said |= {"expires": True, "ttl": max(1, int(self._peer.expires_at - time.time()))}
        return said

    def _refresh(self, token: str) -> dict[str, Any]:
        assert self._peer is not None
        before = self._peer
        peer = self._authenticate(token)
        if (peer.user, peer.role, peer.customer, peer.channel) != (
            before.user,
            before.role,
            before.customer,
            before.channel,
        ):
            raise DENIED
        self._peer = peer
        self._end_with_token(peer)
        return self._identity()

    async def _subscribe(self, request: SubscribeRequest, command_id: int) -> None:
        """Writes the reply itself, so that nothing of the topic can come before it."""
        topic, limits = request.channel, self._limits
        if topic in self._subscriptions:
            raise ALREADY_SUBSCRIBED
        if len(self._subscriptions) >= limits.subscriptions or len(topic) > limits.topic_length:
            raise LIMIT
        if request.type:
            raise NOT_AVAILABLE
        access = self._authorize(topic, request.token)
        subscription = Subscription(self, topic, access)
        self._subscriptions[topic] = subscription
        try:
            position, subscription.leave = await self._backend.hub.join(topic, access.keys, subscription)
            result, last = await self._recover(request, access, position)
            if subscription.is_lost:
                raise INTERNAL  # noqa: TRY301 - a passing error: the client asks again; cleaned up below
            result |= self._expiry(subscription)
        except BaseException:
            self.unsubscribe(topic)
            raise
        self._say(reply(command_id, "subscribe", result))
        subscription.release(last)

    def _refresh_subscription(self, topic: str, token: str) -> dict[str, Any]:
        subscription = self._subscriptions.get(topic)
        if subscription is None:
            raise DENIED
        subscription.access = self._authorize(topic, token)
        return self._expiry(subscription)

    def _authorize(self, topic: str, token: str) -> Access:
        assert self._peer is not None
        try:
            return self._backend.authorize(self._peer, topic, token)
        except TokenExpired:
            raise TOKEN_EXPIRED from None

    def _expiry(self, subscription: Subscription) -> dict[str, Any]:
        """What is told of it. A subscription whose token was not refreshed in time ends; the SDK asks with a new one."""
        expires_at = subscription.access.expires_at
        if expires_at is None:
            return {}
        left, topic = expires_at - time.time(), subscription.topic
        self._timer(
            "expiry of " + topic,
            left + self._limits.token_grace,
            lambda: self.unsubscribe(topic, push=(2501, "expired")),
        )
        return {"expires": True, "ttl": max(1, int(left))}

    async def _recover(
        self, request: SubscribeRequest, access: Access, position: Position
    ) -> tuple[dict[str, Any], int]:
        """The subscribe result, and the offset up to which the client has everything.

        Recovered means gap-free: all that was missed, or nothing. The offset that is told is then the client's own, so
        that it moves on by what it reads.
        """
        now = {"recoverable": True, "positioned": True, "epoch": position.epoch, "offset": position.offset}
        if not request.recover:
            return now, position.offset
        after = Position(request.epoch or position.epoch, request.offset)
        try:
            page = await self._backend.read(access, after)
        except PositionLost as lost:
            if request.flag & 2:
                raise UNRECOVERABLE from None
            current = {"epoch": lost.current.epoch, "offset": lost.current.offset}
            return now | current | {"was_recovering": True, "recovered": False}, lost.current.offset
        missed = _publications(request.channel, page, access.visible)
        reached = {"epoch": page.epoch, "offset": after.offset if missed else page.top}
        return now | reached | {"was_recovering": True, "recovered": True, "publications": missed}, page.top

    async def _history(self, request: HistoryRequest) -> dict[str, Any]:
        subscription = self._subscriptions.get(request.channel)
        if subscription is None:
            raise DENIED
        access = subscription.access
        top = self._backend.feed.position(access.keys)
        if request.limit == 0:
            return {"publications": [], "epoch": top.epoch, "offset": top.offset}
        since = Position(request.since.epoch or top.epoch, request.since.offset) if request.since else top
        if request.reverse:
            raise NOT_AVAILABLE
        try:
            page = await self._backend.read(access, since)
        except PositionLost:
            raise UNRECOVERABLE from None
        limit = len(page.entries) if request.limit < 0 else min(request.limit, MAX_PAGE)
        found = _publications(request.channel, page, access.visible)[:limit]
        return {"publications": found, "epoch": page.epoch, "offset": page.top}

    # time

    def _timer(self, name: str, delay: float, act: Any) -> None:
        self._stop(name)
        self._timers[name] = self._loop.call_later(max(delay, 0), act)

    def _stop(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _ping(self) -> None:
        """On schedule, also on a busy connection: the Python SDK waits for pings alone."""
        self._say(PING)
        self._awaits_pong = True
        self._timer("pong", self._limits.pong_within, lambda: self.close(*Disconnect.NO_PONG))
        self._timer("ping", self._limits.ping_every, self._ping)

    def _pong(self, command: Command) -> None:
        if command.id or not self._awaits_pong:
            raise BadFrame("an unsolicited pong")
        self._awaits_pong = False
        self._stop("pong")

    def _say(self, payload: bytes) -> None:
        if not self._closed:
            self._transport.write(text_frame(payload))


def _publications(topic: str, page: Page, visible: Visible) -> list[Raw]:
    return [publication(entry.event, entry.offset) for entry in page.entries if visible(Publication(topic, entry))]
