"""The log's events about documents, applied to what a reader holds."""

from __future__ import annotations

import contextlib
from base64 import b64decode

import msgspec
from msgspec import Raw

from omnistate.errors import SchemaMismatch
from omnistate.state._commands import Held, Target
from omnistate.state._stored import SEALED


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
    schema: int = 1


GONE = ("state.deleted", "state.expired")  # events after which there is no document
decode_event = msgspec.json.Decoder(StateEvent).decode
_decode_sealed = msgspec.json.Decoder(dict[str, str]).decode


def _sealed(value: bytes) -> bytes | None:
    """What is encrypted in an event. The value says so and not the class: processes that encrypt a field and others that do
    not yet follow each other."""
    if not value.startswith(b'{"$sealed":"'):
        return None
    with contextlib.suppress(msgspec.MsgspecError, ValueError):
        stored = b64decode(_decode_sealed(value)["$sealed"])
        if stored.startswith(SEALED):
            return stored
    return None


class Followed:
    """A document as its reader holds it, in the shape of the class version that wrote it."""

    __slots__ = ("_target", "class_version", "damaged", "flat")

    def __init__(self, target: Target, held: Held) -> None:
        self._target = target
        self.flat, self.class_version, self.damaged = held.flat, held.class_version, dict(held.damaged)

    def apply(self, event: StateEvent) -> None:
        if event.type in GONE:
            self.flat, self.damaged, self.class_version = {}, {}, self._target.schema.version
            return
        self.flat = {} if event.replace else dict(self.flat)  # a snapshot may still hold the other
        if event.type == "state.entries_expired":
            for name in event.fields:
                self._drop(name)
            return
        if event.replace:
            self.damaged = {}
        self.class_version = event.schema
        for field, value in event.set.items():
            self._set(field, value)
        for field in event.unset:
            self._drop(field)
        for field, entries in event.put.items():
            for key, value in entries.items():
                self._set(f"{field}:{key}", value)
        for field, keys in event.drop.items():
            for key in keys:
                self._drop(f"{field}:{key}")

    def encoded(self) -> bytes:
        """The document as the present class has it. Raises `SchemaMismatch`."""
        schema = self._target.schema
        if self.damaged:
            raise SchemaMismatch.of_fields(schema.name, self.damaged)
        return schema.join(schema.upgrade(self.flat, self.class_version))

    def _set(self, name: str, value: Raw) -> None:
        target, field = self._target, name.encode()
        self.damaged.pop(name, None)
        sealed = _sealed(bytes(value))
        if sealed is None:
            self.flat[field] = target.schema.value_of_event(field, bytes(value))
            return
        flat, damaged = target.schema.unpack({field: sealed}, target.document, target.keyring)
        self.flat.update(flat)
        self.damaged.update(damaged)

    def _drop(self, name: str) -> None:
        self.flat.pop(name.encode(), None)
        self.damaged.pop(name, None)
