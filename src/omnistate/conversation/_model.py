"""Values of conversations."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Final, Literal

import msgspec


class _Customer(Enum):
    CUSTOMER = "customer"


CUSTOMER: Final = _Customer.CUSTOMER  # the author of a message that the customer wrote
Author = str | Literal[_Customer.CUSTOMER]


class Message(msgspec.Struct, frozen=True):
    """One message. `index` counts inside the conversation, `offset` is its place in the customer's log."""

    index: int
    offset: int
    role: Literal["customer", "helper"]
    author: str
    text: str
    time: int  # milliseconds since 1970, by the server's clock
    conversation: str
    channel: str | None = None

    @property
    def at(self) -> datetime:
        return datetime.fromtimestamp(self.time / 1000, UTC)


@dataclass(frozen=True, slots=True)
class Owner:
    """Who answers: a helper (bot, agent, AI agent), or a queue while nobody does. `epoch` rises at each change."""

    kind: Literal["helper", "queue"]
    name: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Status:
    """A conversation as it was at one moment."""

    owner: Owner
    channel: str
    messages: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """A conversation that waits in a queue."""

    conversation_id: str
    since: datetime
