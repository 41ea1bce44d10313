"""The log's events about documents, applied to what a reader holds."""

from __future__ import annotations

import msgspec
from msgspec import Raw

from omnistate.state._schema import Flat


class StateEvent(msgspec.Struct, frozen=True):
    """The members of an event that a reader of documents needs; other kinds of events share `type` alone."""

    type: str
    state: str = ""
    owner: str = ""
    replace: bool = False
    set: dict[str, Raw] = {}
    unset: list[str] = []
    put: dict[str, dict[str, Raw]] = {}
    drop: dict[str, list[str]] = {}
    fields: list[str] = []


GONE = ("state.deleted", "state.expired")  # events after which there is no document
decode_event = msgspec.json.Decoder(StateEvent).decode


def apply_event(flat: Flat, event: StateEvent) -> Flat:
    """The document after the event."""
    if event.type in GONE:
        return {}
    if event.type == "state.entries_expired":
        return {name: value for name, value in flat.items() if name.decode() not in event.fields}
    after = {} if event.replace else dict(flat)
    for field, value in event.set.items():
        after[field.encode()] = bytes(value)
    for field in event.unset:
        after.pop(field.encode(), None)
    for field, entries in event.put.items():
        for key, value in entries.items():
            after[f"{field}:{key}".encode()] = bytes(value)
    for field, keys in event.drop.items():
        for key in keys:
            after.pop(f"{field}:{key}".encode(), None)
    return after
