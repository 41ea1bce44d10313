"""The log's events about collections, applied to what a reader holds. Keys and values stay as they are stored."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from omnistate.errors import SchemaMismatch


class CollectionEvent(msgspec.Struct, frozen=True):
    """The members of an event that a reader of collections needs; each kind and operation uses some of them."""

    type: str
    collection: str = ""
    owner: str = ""
    op: str = ""
    put: dict[str, Raw] = {}
    drop: list[str] = []
    fields: list[str] = []
    values: list[Raw] = []
    side: str = ""
    dropped: Any = 0
    count: int = 0
    index: int = 0
    value: Raw = Raw(b"0")
    scores: list[tuple[Raw, float]] = []
    member: Raw = Raw(b"")
    score: float = 0
    ids: list[int] = []
    how: str = ""


class _Sorted(CollectionEvent, frozen=True):
    dropped: list[Raw] = []


_decode = msgspec.json.Decoder(CollectionEvent).decode
_decode_sorted = msgspec.json.Decoder(_Sorted).decode


def decode_collection_event(kind: str, event: bytes) -> CollectionEvent:
    return _decode_sorted(event) if kind == "sorted" and b'"collection.changed"' in event[:30] else _decode(event)


def initial(kind: str, values: list[Any]) -> Any:
    """What a reader holds, from a reading of everything."""
    match kind:
        case "map":
            return dict(zip(values[::2], values[1::2], strict=True))
        case "sorted":
            return dict(zip(values[::2], map(float, values[1::2]), strict=True))
        case "set":
            return set(values)
        case "list":
            return list(values)
        case "queue":  # how many wait, how many are leased or delayed
            return sum(map(int, values))
        case _:
            return integer(values[0]) if values else 0


def integer(stored: bytes) -> int:
    """Raises `SchemaMismatch` for what is none."""
    try:
        return int(stored)
    except ValueError as error:
        raise SchemaMismatch("what a counter holds is damaged: it is no integer") from error


def apply_collection_event(kind: str, held: Any, event: CollectionEvent) -> Any:  # noqa: C901 - one case for each kind
    """What is held after the event; `held` may be changed."""
    if event.type in ("collection.deleted", "collection.expired"):
        return initial(kind, [])
    if event.type == "collection.entries_expired":
        for field in event.fields:
            held.pop(field.encode(), None)
        return held
    match kind:
        case "map":
            for key, value in event.put.items():
                held[key.encode()] = bytes(value)
            for key in event.drop:
                held.pop(key.encode(), None)
        case "set":
            change = held.add if event.op == "add" else held.discard
            for value in event.values:
                change(bytes(value))
        case "list":
            _apply_to_list(held, event)
        case "sorted":
            for member, score in event.scores:
                held[bytes(member)] = score
            if event.op == "increment":
                held[bytes(event.member)] = event.score
            for member in (*event.dropped, *event.values):
                held.pop(bytes(member), None)
        case "counter":
            return int(bytes(event.value))
        case "unique":
            return event.count
        case "queue":
            return held + len(event.ids) - (event.how == "done")
    return held


def _apply_to_list(held: list[bytes], event: CollectionEvent) -> None:
    left = event.side == "left"
    if event.op == "push":
        values = [bytes(value) for value in event.values]
        if left:
            held[:0] = reversed(values)
            if event.dropped:
                del held[-event.dropped :]
        else:
            held += values
            del held[: event.dropped]
    elif event.op == "prepend":
        held[:0] = [bytes(value) for value in event.values]
    elif event.op == "pop":
        if left:
            del held[: event.count]
        else:
            del held[-event.count :]
    elif event.op == "set":
        held[event.index] = bytes(event.value)
