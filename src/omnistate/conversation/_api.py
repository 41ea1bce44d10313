"""Handles on conversations and queues."""

from __future__ import annotations

import secrets
from typing import TypeVar

from omnistate.collection import Declares, Place, open_collection
from omnistate.conversation import _commands as commands
from omnistate.conversation._commands import ConversationKeys
from omnistate.conversation._flows import claim_from_queue, hand_off_to_queue
from omnistate.conversation._model import Author, Message, Owner, Status, Waiting
from omnistate.errors import InvalidId, InvalidInput
from omnistate.state import AnyState, Origin, Services, StateHandle
from omnistate.store import Keyspace, check_operation_id, decode_id, encode_id, new_operation_id, run

H = TypeVar("H")
MAX_PAGE = 500
_FARTHEST = 2**31  # messages


class Conversation:
    """A conversation of a customer. Building the handle costs nothing."""

    __slots__ = ("_keys", "_keyspace", "_origin", "_services", "customer_id", "id")

    def __init__(self, services: Services, keyspace: Keyspace, conversation_id: str, origin: Origin) -> None:
        self._services, self._keyspace, self._origin = services, keyspace, origin
        self._keys = conversation_keys(keyspace, conversation_id)
        self.id = conversation_id
        self.customer_id = decode_id(conversation_id.partition(".")[0])

    async def say(self, author: Author, text: str, *, operation_id: str | None = None) -> int:
        """Adds a message and returns its index. One round trip.

        The customer (`CUSTOMER`) may always speak; a helper only while it owns the conversation, else `OwnershipLost`.
        Give the channel's own message id as `operation_id`, and a message that is delivered twice is stored once.
        """
        index, _ = await self._say(author, text, operation_id)
        return index

    async def say_once(self, operation_id: str, author: Author, text: str) -> tuple[int, bool]:
        """`say` under the channel's own message id: the message's index, and whether it had been stored before.

        Raises `OperationIdReused` when the id came with another author or text, or in another conversation.
        """
        return await self._say(author, text, operation_id)

    async def _say(self, author: Author, text: str, operation_id: str | None) -> tuple[int, bool]:
        if isinstance(author, str):
            encode_id(author, "author")
        if operation_id is not None:
            check_operation_id(operation_id)
        return await self._services.link.execute(
            commands.say(self._keys, author, text, channel=self._origin.channel, operation_id=operation_id)
        )

    async def messages(self, *, first: int = 0, limit: int = 100) -> list[Message]:
        """Messages from the index `first` on, oldest first, at most `limit` (500 at most). One round trip.

        A negative `first` counts from the end: `messages(first=-20)` are the last twenty.
        """
        if not -_FARTHEST <= first <= _FARTHEST:
            raise InvalidInput("first is beyond any message")
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidInput(f"limit must be between 1 and {MAX_PAGE}")
        last = first + limit - 1
        if first < 0 <= last:
            last = -1
        _, found = await self._services.link.execute(commands.read(self._keys, first, last))
        return found

    async def status(self) -> Status:
        """Owner, channel and number of messages. One round trip. Raises `ConversationNotFound`."""
        status, _ = await self._services.link.execute(commands.read(self._keys))
        return status

    async def owner(self) -> Owner:
        """Who answers now. One round trip."""
        return (await self.status()).owner

    async def hand_off(self, queue: str, *, reason: str = "", by: str | None = None) -> Owner:
        """Gives the conversation to a queue, for the next helper who claims it. Two round trips.

        With `by`, only if that helper owns it, else `OwnershipLost`.
        """
        encode_id(queue, "queue name")
        flow = hand_off_to_queue(
            self._keys, self._keyspace.queue(queue), queue, reason=reason, by=by, channel=self._origin.channel
        )
        return await run(flow, self._services.link.execute)

    def state(self, kind: type[AnyState]) -> StateHandle[AnyState]:
        """A state of this conversation, such as the slots that a bot has filled."""
        return StateHandle(self._services, kind, self._keys.log, self._origin, self._owner)

    def collection(self, declaration: Declares[H]) -> H:
        """A collection of this conversation."""
        return open_collection(declaration, Place(self._services, self._keys.log, self._origin, self._owner))

    @property
    def _owner(self) -> tuple[str, str]:
        return ("conversation", self.id.rpartition(".")[2])

    def __repr__(self) -> str:
        return f"<Conversation {self.id}>"


class Queue:
    """Conversations that wait for a helper, the longest waiting first."""

    __slots__ = ("_keyspace", "_log", "_origin", "_services", "name")

    def __init__(self, services: Services, keyspace: Keyspace, name: str, origin: Origin) -> None:
        self._services, self._keyspace, self._origin = services, keyspace, origin
        self._log = keyspace.queue(name)
        self.name = name

    async def claim(self, agent: str) -> Conversation | None:
        """Makes the agent the owner of the conversation that waits longest; None when none waits. Three round trips."""
        encode_id(agent, "agent")
        flow = claim_from_queue(
            lambda conversation_id: conversation_keys(self._keyspace, conversation_id), self._log, self.name, agent
        )
        claimed = await run(flow, self._services.link.execute)
        if claimed is None:
            return None
        return Conversation(self._services, self._keyspace, claimed, self._origin)

    async def waiting(self, *, limit: int = 100) -> list[Waiting]:
        """Who waits, longest first. One round trip."""
        _, found = await self._services.link.execute(commands.waiting(self._log, limit))
        return found

    async def depth(self) -> int:
        """How many wait. One round trip."""
        count, _ = await self._services.link.execute(commands.waiting(self._log, 1))
        return count


def new_conversation_id(customer_id: str) -> str:
    return f"{encode_id(customer_id, 'customer id')}.{secrets.token_urlsafe(9)}"


def conversation_keys(keyspace: Keyspace, conversation_id: str) -> ConversationKeys:
    """The keys that a conversation id leads to: it names its customer. Raises `InvalidId`."""
    if not isinstance(conversation_id, str) or not conversation_id:
        raise InvalidId("conversation id must be a str that is not empty")
    customer, _, name = conversation_id[:2000].partition(".")  # longer than any id of ours
    customer_id = decode_id(customer)
    if not name or encode_id(customer_id, "customer id") != customer or encode_id(name) != name:
        raise InvalidId("not a conversation id: it looks like <customer>.<twelve characters>")
    log = keyspace.customer(customer_id)
    return ConversationKeys(
        log, conversation_id, log.key("conversation", name), log.key("conversation", name, "messages")
    )


async def start_conversation(
    services: Services, keyspace: Keyspace, customer_id: str, channel: str, *, owner: str, origin: Origin
) -> Conversation:
    """A new conversation, owned by the helper `owner`. One round trip."""
    encode_id(channel, "channel")
    encode_id(owner, "owner")
    conversation_id = new_conversation_id(customer_id)
    keys = conversation_keys(keyspace, conversation_id)
    await services.link.execute(commands.start(keys, channel, owner, operation_id=new_operation_id()))
    return Conversation(services, keyspace, conversation_id, origin)
