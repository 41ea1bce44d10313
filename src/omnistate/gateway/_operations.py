"""What a peer may do: the one list behind the WebSocket's rpc and the HTTP API. Every permission is checked here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from omnistate import CUSTOMER, Client, Conversation, Customer, Denied, InvalidValue, OwnershipLost
from omnistate.app import App
from omnistate.gateway._auth import Peer, Tokens

log = logging.getLogger("omnistate.gateway")
_encode = msgspec.json.Encoder().encode
GRANT_LIFETIME = 3600  # seconds that an agent's claim opens the customer


class Start(msgspec.Struct, forbid_unknown_fields=True):
    """Begins a conversation with the app's first bot, or with nobody when it has none."""


class Say(msgspec.Struct, forbid_unknown_fields=True):
    conversation: str
    text: str
    message_id: str | None = None


class Messages(msgspec.Struct, forbid_unknown_fields=True):
    conversation: str
    first: int = 0
    limit: int = 100


class HandOff(msgspec.Struct, forbid_unknown_fields=True):
    conversation: str
    queue: str
    reason: str = ""


class OfQueue(msgspec.Struct, forbid_unknown_fields=True):
    queue: str


class Operations:
    """Each method takes the peer who asks; what it returns is told to the client as JSON."""

    def __init__(self, client: Client, app: App, tokens: Tokens) -> None:
        self._client, self._app, self._tokens = client, app, tokens
        self._answers: set[asyncio.Task[None]] = set()
        self.methods: dict[str, tuple[type[msgspec.Struct], Callable[[Peer, Any], Awaitable[Any]]]] = {
            "conversation.start": (Start, self.start),
            "conversation.say": (Say, self.say),
            "conversation.messages": (Messages, self.messages),
            "conversation.hand_off": (HandOff, self.hand_off),
            "queue.waiting": (OfQueue, self.waiting),
            "queue.claim": (OfQueue, self.claim),
        }

    async def call(self, peer: Peer, method: str, data: bytes) -> bytes:
        """A method of the list above, or an action of the app, with JSON arguments. Returns JSON."""
        found = self.methods.get(method)
        if found is None:
            return await self.act(peer, None, method, data)
        kind, function = found
        return _encode(await function(peer, decode(kind, data)))

    # states

    async def act(
        self, peer: Peer, customer: str | None, action: str, data: bytes, operation_id: str | None = None
    ) -> bytes:
        """An action of the app. Its arguments are checked, and then whether this channel may call it."""
        handle = self.customer(peer, customer)
        written = await self._app.call(handle, action, data, channel=peer.channel, operation_id=operation_id)
        position = {"epoch": written.position.epoch, "offset": written.position.offset}
        said = {"version": written.version, "position": position, "repeated": written.repeated}
        return _encode({"result": written.result} | said)

    async def read(self, peer: Peer, customer: str | None, state: str) -> tuple[bytes, int]:
        """A state together with the log's position of the same moment, and its version."""
        snapshot = await self._app.state(self.customer(peer, customer), state, channel=peer.channel).read()
        position = {"epoch": snapshot.position.epoch, "offset": snapshot.position.offset}
        return _encode({"value": snapshot.value, "version": snapshot.version, "position": position}), snapshot.version

    def customer(self, peer: Peer, customer: str | None) -> Customer:
        """The customer that the peer's token names; asking for another one is refused like one that is not there."""
        if peer.customer is None:
            raise Denied("this token names no customer: claim a conversation and use the token that comes with it")
        if customer not in (None, "me", peer.customer):
            raise Denied("this token does not open that customer")
        return self._client.customer(peer.customer).via(peer.channel, actor=peer.user)

    # conversations

    async def start(self, peer: Peer, _: Start) -> dict[str, Any]:
        if peer.role != "customer":
            raise Denied("only a customer may begin a conversation")
        owner = next(iter(self._app.bots), "nobody")
        conversation = await self.customer(peer, None).start_conversation(peer.channel, owner=owner)
        return {"conversation": conversation.id, "owner": owner}

    async def say(self, peer: Peer, request: Say) -> dict[str, Any]:
        """A customer speaks; an agent must own the conversation, which the server checks when the message is stored."""
        conversation = self._conversation(peer, request.conversation)
        author = CUSTOMER if peer.role == "customer" else peer.user
        repeated = False
        if request.message_id is None:
            index = await conversation.say(author, request.text)
        else:
            index, repeated = await conversation.say_once(request.message_id, author, request.text)
        if peer.role == "customer" and not repeated:
            self._let_bots_answer(conversation, index)
        return {"index": index}

    async def messages(self, peer: Peer, request: Messages) -> dict[str, Any]:
        conversation = self._conversation(peer, request.conversation)
        status = await conversation.status()
        found = await conversation.messages(first=request.first, limit=request.limit)
        owner = {"kind": status.owner.kind, "name": status.owner.name, "epoch": status.owner.epoch}
        return {"messages": found, "total": status.messages, "owner": owner, "channel": status.channel}

    async def hand_off(self, peer: Peer, request: HandOff) -> dict[str, Any]:
        _agents_only(peer)
        conversation = self._conversation(peer, request.conversation)
        owner = await conversation.hand_off(request.queue, reason=request.reason, by=peer.user)
        return {"owner": {"kind": owner.kind, "name": owner.name, "epoch": owner.epoch}}

    async def waiting(self, peer: Peer, request: OfQueue) -> dict[str, Any]:
        _agents_only(peer)
        found = await self._client.queue(request.queue).waiting()
        return {"waiting": [{"conversation": one.conversation_id, "since": one.since} for one in found]}

    async def claim(self, peer: Peer, request: OfQueue) -> dict[str, Any]:
        """The longest waiting conversation, with a token that opens its customer to this agent.

        That token ends when the agent's own does, and claims nothing itself: access does not renew itself.
        """
        _agents_only(peer)
        if peer.customer is not None:
            raise Denied("this token opens one customer: claim with the agent's own token")
        conversation = await self._client.queue(request.queue).claim(peer.user)
        if conversation is None:
            return {"conversation": None}
        customer = conversation.customer_id
        left = GRANT_LIFETIME if peer.expires_at is None else max(1, int(peer.expires_at - time.time()))
        token = self._tokens.issue(
            peer.user, role="agent", channel=peer.channel, customer=customer, lifetime=min(GRANT_LIFETIME, left)
        )
        return {"conversation": conversation.id, "customer": customer, "token": token}

    async def close(self) -> None:
        for task in list(self._answers):
            task.cancel()
        await asyncio.gather(*self._answers, return_exceptions=True)

    def _conversation(self, peer: Peer, conversation_id: str) -> Conversation:
        conversation = self._client.conversation(conversation_id, channel=peer.channel)
        if peer.customer is None and peer.role == "agent":
            raise Denied("this token names no customer: use the token that came with the claim")
        if conversation.customer_id != peer.customer:
            raise Denied("this token does not open that conversation")
        return conversation

    def _let_bots_answer(self, conversation: Conversation, index: int) -> None:
        if self._app.bots:
            task = asyncio.create_task(self._answer(conversation, index))
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)

    async def _answer(self, conversation: Conversation, index: int) -> None:
        """The bot that owns the conversation answers. If somebody else took over meanwhile, its answer is refused."""
        try:
            bot = self._app.bots.get((await conversation.owner()).name)
            if bot is not None:
                [message] = await conversation.messages(first=index, limit=1)
                await bot(conversation, message)
        except OwnershipLost:
            log.info("a bot's answer came after the conversation had moved on", extra={"conversation": conversation.id})
        except Exception:
            log.exception("a bot failed")


def decode(kind: type[msgspec.Struct], data: bytes) -> Any:
    """Arguments from JSON. Raises `InvalidValue` and says which is wrong."""
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidValue(str(error)) from error


def _agents_only(peer: Peer) -> None:
    if peer.role != "agent":
        raise Denied("only agents may do that")
