"""What each peer does, and how its keys and documents are spelled."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import hiredis
import msgspec

from harness import Store

DAY = 86400
LOG_ENTRIES = 1000
decode, encode = msgspec.json.decode, msgspec.json.encode
Document = dict[str, Any]


class Peer(Protocol):
    """One client library, connected. On a cluster it publishes to the customer's slot, and redirections are not followed:
    nothing moves here, and not looking for it makes the peer faster.
    """

    async def mutate(self, customer: str, operation_id: str, sku: str) -> None:
        """An increment that is versioned, expires, is logged, published and remembered: MULTI/EXEC, one round trip."""

    async def update(self, customer: str, change: Callable[[Document], object]) -> int:
        """Read, change, write if nobody else did, and publish. Returns how often it had to try again."""

    async def get(self, customer: str) -> Document:
        """The document, decoded."""

    async def put(self, customer: str, value: Document) -> None:
        """Stores the document."""


Open = Callable[[Store, int], AbstractAsyncContextManager[Peer]]
"""Connects, at the best settings for so many callers."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Of one customer, in one slot."""

    cart: str
    document: str
    log: str
    operation: str
    events: str


def keys(customer: str, operation_id: str = "") -> Keys:
    tag = f"{{{customer}}}"
    return Keys(f"{tag}:cart", f"{tag}:doc", f"{tag}:log", f"{tag}:op:{operation_id}", f"{tag}:events")


def document(cart: Any) -> Document:
    """A cart of ours as a peer keeps it."""
    return {"items": dict(cart.items), "note": cart.note, "visits": cart.visits}


def read(held: bytes | None) -> Document:
    return decode(held) if held else {"items": {}, "note": "", "visits": 0}


def add(cart: Document) -> None:
    cart["items"]["cup"] = cart["items"].get("cup", 0) + 1


def pack(*words: str | bytes | int) -> bytes:
    return hiredis.pack_command(words)
