"""Commands on conversations and queues. No IO."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

import msgspec

from omnistate.conversation._model import CUSTOMER, Author, Message, Owner, Status, Waiting
from omnistate.errors import ConversationNotFound, InvalidValue, OperationIdReused, OwnershipLost, ValueTooLarge
from omnistate.store import Command, Keyspace, LogKeys, encode_id, new_operation_id, opening

T = TypeVar("T")
MAX_TEXT_BYTES = 32 * 1024
_json = msgspec.json.Encoder().encode
_decode_message = msgspec.json.Decoder(Message).decode


@dataclass(frozen=True, slots=True)
class ConversationKeys:
    log: LogKeys
    id: str
    conversation: bytes
    messages: bytes

    @property
    def written(self) -> tuple[bytes, ...]:
        return (*self.log.written, self.conversation, self.messages)


@dataclass(frozen=True, slots=True)
class Entry:
    """A conversation's place in a queue. `token` names the hand-off that put it there."""

    conversation_id: str
    token: str
    overdue: bool = False

    def __str__(self) -> str:
        return f"{self.conversation_id} {self.token}"


def _event(kind: str, **members: Any) -> bytes:
    """The beginning of an event, without the closing brace; members that are None are left out."""
    said = {name: value for name, value in members.items() if value is not None}
    return _json({"type": kind} | said)[:-1]


def _reply(parse: Callable[[list[Any]], T], author: str = "") -> Callable[[list[Any]], T]:
    """`parse` for replies that say yes; our errors for the others."""

    def judge(reply: Any) -> T:
        if type(reply) is bytes:
            return parse([b"ok", reply])
        if reply[0] == b"absent":
            raise ConversationNotFound("there is no such conversation: start one with customer.start_conversation")
        if reply[0] == b"not_owner":
            owner = reply[1].decode().replace("helper ", "", 1)
            raise OwnershipLost(author=author, owner=owner, epoch=int(reply[2]))
        if reply[0] == b"reused":
            raise OperationIdReused(reply[1].decode().removeprefix("op:"))
        return parse(reply)

    return judge


def start(keys: ConversationKeys, channel: str, owner: str, *, operation_id: str) -> Command[None]:
    event = _event(
        "conversation.started", conversation=keys.id, channel=channel, owner={"kind": "helper", "name": owner}
    )
    arguments = (*opening(operation_id), channel, owner, event)
    return Command("conversation_start", keys.written[:6], arguments, lambda _: None, operation_id)


def say(
    keys: ConversationKeys, author: Author, text: str, *, channel: str | None, operation_id: str | None
) -> Command[tuple[int, bool]]:
    """The message's index in the conversation, and whether it had been stored before under a caller's operation id."""
    name = "customer" if author is CUSTOMER else author
    try:
        size = len(text.encode())
    except (UnicodeEncodeError, AttributeError):
        raise InvalidValue("a message's text must be valid Unicode text") from None
    if size > MAX_TEXT_BYTES:
        raise ValueTooLarge("the message", size=size, limit=MAX_TEXT_BYTES)
    role = "customer" if author is CUSTOMER else "helper"
    event = _event("message", conversation=keys.id, role=role, author=name, text=text, channel=channel)
    digest = ""
    if operation_id is not None:
        digest = hashlib.blake2b(_json((keys.id, role, name, text)), digest_size=8).hexdigest()
    given = operation_id or new_operation_id()
    arguments = (*opening(given, digest), "" if author is CUSTOMER else name, event)

    def parse(reply: list[Any]) -> tuple[int, bool]:
        return int(reply[1].split(b" ")[0]), reply[0] == b"done"

    return Command("conversation_say", keys.written, arguments, _reply(parse, name), given)


def read(
    keys: ConversationKeys, first: int | None = None, last: int | None = None
) -> Command[tuple[Status, list[Message]]]:
    def parse(reply: list[Any]) -> tuple[Status, list[Message]]:
        kind: Literal["helper", "queue"] = "helper" if reply[1] == b"helper" else "queue"
        owner = Owner(kind, reply[2].decode(), int(reply[3]))
        return Status(owner, reply[4].decode(), int(reply[5])), [_decode_message(text) for text in reply[6:]]

    page = ("", "") if first is None or last is None else (first, last)
    return Command("conversation_read", (keys.conversation, keys.messages), page, _reply(parse))


def hand_off(
    keys: ConversationKeys,
    queue: str,
    reason: str,
    token: str,
    *,
    by: str | None,
    channel: str | None,
    operation_id: str,
) -> Command[Owner | None]:
    """None: a claim cancelled this hand-off because it took too long; nothing has changed."""
    owner = {"kind": "queue", "name": queue}
    event = _event("conversation.handed_off", conversation=keys.id, owner=owner, reason=reason, by=by, channel=channel)

    def parse(reply: list[Any]) -> Owner | None:
        return None if reply[0] == b"cancelled" else Owner("queue", queue, int(reply[1]))

    arguments = (*opening(operation_id), by or "", queue, token, event)
    return Command("conversation_hand_off", keys.written, arguments, _reply(parse, by or ""), operation_id)


def take(
    keys: ConversationKeys, agent: str, queue: str, entry: Entry, *, operation_id: str
) -> Command[Literal["ok", "pending", "gone"]]:
    event = _event("conversation.claimed", conversation=keys.id, owner={"kind": "helper", "name": agent}, queue=queue)

    def parse(reply: list[Any]) -> Literal["ok", "pending", "gone"]:
        if reply[0] == b"pending":
            return "pending"
        return "gone" if reply[0] == b"gone" else "ok"

    arguments = (*opening(operation_id), agent, queue, entry.token, "1" if entry.overdue else "0", event)
    return Command("conversation_take", keys.written, arguments, _reply(parse), operation_id)


def queue_keys(log: LogKeys) -> tuple[bytes, ...]:
    return (*log.written, log.key("waiting"), log.key("leased"), log.key("since"))


def put(log: LogKeys, queue: str, entry: Entry, *, reason: str, operation_id: str) -> Command[None]:
    event = _event("queue.waiting", queue=queue, conversation=entry.conversation_id, reason=reason)
    arguments = (*opening(operation_id), str(entry), event)
    return Command("queue_put", queue_keys(log), arguments, lambda _: None, operation_id)


def lease(log: LogKeys, *, operation_id: str) -> Command[Entry | None]:
    """None: nobody waits."""

    def parse(reply: list[Any]) -> Entry | None:
        if reply[0] == b"empty":
            return None
        overdue, conversation_id, token = reply[1].decode().split(" ")
        return Entry(conversation_id, token, overdue == "1")

    return Command("queue_lease", queue_keys(log), opening(operation_id), _reply(parse), operation_id)


def settle(
    log: LogKeys, queue: str, entry: Entry, *, agent: str | None = None, release: bool = False, operation_id: str
) -> Command[None]:
    """Ends a lease. With `agent`, the queue's log tells who claimed it."""
    event = b""
    if agent is not None:
        event = _event("queue.claimed", queue=queue, conversation=entry.conversation_id, agent=agent)
    arguments = (*opening(operation_id), str(entry), "release" if release else "done", event)
    return Command("queue_settle", queue_keys(log), arguments, lambda _: None, operation_id)


def waiting(log: LogKeys, limit: int) -> Command[tuple[int, list[Waiting]]]:
    """How many wait, and those who wait longest."""

    def parse(reply: list[Any]) -> tuple[int, list[Waiting]]:
        found = [
            Waiting(entry.decode().split(" ")[0], datetime.fromtimestamp(float(since) / 1000, UTC))
            for entry, since in zip(reply[1::2], reply[2::2], strict=True)
        ]
        return int(reply[0]), found

    return Command("queue_read", (log.key("waiting"),), (limit,), parse)


def queues_of(keyspace: Keyspace, partition: int) -> Command[list[LogKeys]]:
    """The queues of a partition."""
    return Command(
        "agenda_queues",
        (keyspace.agenda(partition),),
        (),
        lambda reply: [keyspace.log(name.decode()) for name in reply],
    )


def forget(log: LogKeys, customer: str) -> Command[None]:
    """Takes the customer's conversations out of a queue and its log. Safe to repeat."""
    return Command("queue_forget", queue_keys(log), (f"{encode_id(customer)}.",), lambda _: None)


def forget_operations(log: LogKeys, *, older: bool, customer: str, cursor: bytes) -> Command[bytes]:
    """The same of the results that it remembers, some at a time: the next cursor, "0" at the end. Safe to repeat."""
    key = log.written[2] if older else log.meta
    return Command("queue_forget_operations", (key,), (f"{encode_id(customer)}.", cursor), bytes)
