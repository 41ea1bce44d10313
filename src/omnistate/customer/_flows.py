"""Finding, linking and merging customers: several calls, since an identity lives in another slot than its customer.

Find or link: (1) the identity is claimed for a candidate, (2) the customer's own list names it, (3) the identity is
marked as confirmed. Killed after 1 or 2: the next call finds it unconfirmed and does the rest. Two first messages at
once: step 1 is one call, so one candidate wins and both callers get the same customer.

Erased between 1 and 2: the identity is given up, and belongs to a new customer. Merge of B into A: (1) A is looked at, so that
nothing is merged into a customer who is gone, and notes B, so that an erasure of A finds B, (2) B is frozen: its
states refuse writes and name A, (3) B's documents are read, (4) each is merged into A's by its class, under an
operation id made of B and the document, (5) B's identities point to A, (6) what moved is removed. Killed at any step:
merging again goes on, and documents that had been merged are found by their operation ids. B's sessions and
conversations stay where they are, and stay usable.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from omnistate.customer._commands import Frozen, Identity, Stored, claim, documents, empty, freeze, note, point
from omnistate.customer._erase_commands import absorb, forget_identity
from omnistate.errors import CustomerErased, CustomerMerged, IdentityTaken
from omnistate.state import State, declared_messages, schema_of
from omnistate.store import Flow, Keyspace, LogKeys, call, new_operation_id, open_log


def find_or_create(keyspace: Keyspace, identity: Identity, candidate: str) -> Flow[str]:
    """The customer's id. One round trip when known, three the first time."""
    key, digest = keyspace.identity(identity.channel, identity.address)
    while True:
        customer, confirmed = yield from call(claim(key, candidate))
        if confirmed:
            return customer
        try:
            return (yield from _confirm(keyspace, key, digest, identity, customer))
        except CustomerErased as erased:
            if customer == candidate:
                raise
            yield from call(forget_identity(key, erased.customer))


def link(keyspace: Keyspace, identity: Identity, customer: str) -> Flow[None]:
    """Raises `IdentityTaken`. Four round trips the first time, then two."""
    key, digest = keyspace.identity(identity.channel, identity.address)
    yield from call(open_log(keyspace.customer(customer)))  # not for a customer who was merged away
    owner, confirmed = yield from call(claim(key, customer))
    if owner != customer:
        raise IdentityTaken(identity.channel, owner=owner)
    if not confirmed:
        try:
            yield from _confirm(keyspace, key, digest, identity, customer)
        except CustomerErased as erased:
            yield from call(forget_identity(key, erased.customer))
            raise


def _confirm(keyspace: Keyspace, key: bytes, digest: str, identity: Identity, customer: str) -> Flow[str]:
    try:
        yield from call(note(keyspace.customer(customer), digest, identity, operation_id=new_operation_id()))
        owner = customer
    except CustomerMerged as merged:  # between the two steps: the identity follows
        owner = merged.into
        yield from call(note(keyspace.customer(owner), digest, identity, operation_id=new_operation_id()))
    yield from call(point(key, customer, owner))
    return owner


def prepare_merge(keyspace: Keyspace, survivor: str, other: str, known: Collection[str]) -> Flow[Frozen]:
    """Freezes `other`. Everything after this can be repeated. Raises before anything has changed."""
    yield from call(absorb(keyspace.customer(survivor), other))
    operation_id = new_operation_id()
    return (yield from call(freeze(keyspace.customer(other), other, survivor, known, operation_id=operation_id)))


def read_documents(log: LogKeys, kinds: Mapping[str, str]) -> Flow[dict[str, Stored]]:
    """What is there, by index entry: what has expired may still be named in the index."""
    if not kinds:
        return {}
    found = yield from call(documents(log, kinds))
    return {entry: stored for entry, stored in zip(kinds, found, strict=True) if stored is not None}


def finish_merge(
    keyspace: Keyspace, survivor: str, other: str, frozen: Frozen, kinds: Mapping[str, str], indexes: Iterable[str]
) -> Flow[None]:
    """Moves the identities and removes what moved."""
    log = keyspace.customer(survivor)
    for digest, identity in frozen.identities.items():
        key, _ = keyspace.identity(identity.channel, identity.address)
        if (yield from call(point(key, other, survivor))):
            yield from call(note(log, digest, identity, operation_id=new_operation_id()))
    yield from call(empty(keyspace.customer(other), kinds, indexes))


def imported_classes() -> dict[str, type[Any]]:
    """The state classes of this process by name: Python knows a class's subclasses."""
    found: dict[str, type[Any]] = {}
    waiting: list[type[State]] = [State]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            found[schema_of(kind).name] = kind
            waiting.append(kind)
    return found | declared_messages()
