"""Merging customers: several calls, since another customer lives in another slot. For identities see _linking.py.

Merge of B into A: (1) A is looked at, so that nothing is merged into a customer who is gone, and notes B, so that an
erasure of A finds B, (2) B is frozen: its
states refuse writes and name A, (3) B's documents are read, (4) each is merged into A's by its class, under an
operation id made of B and the document, (5) B's identities point to A, (6) what moved is removed. Killed at any step:
merging again goes on, and documents that had been merged are found by their operation ids. B's sessions and
conversations stay where they are, and stay usable.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from omnistate.customer._commands import Frozen, Stored, documents, empty, freeze
from omnistate.customer._erase_commands import absorb
from omnistate.customer._linking import follow
from omnistate.state import State, declared_messages, schema_of
from omnistate.store import Flow, Keyspace, LogKeys, call, new_operation_id


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
    for digest, identity in frozen.identities.items():
        yield from follow(keyspace, digest, identity, other, survivor)
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
