"""Stored values as JSON, without their classes: for an export of all that there is, whoever has declared it."""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any

import msgspec
from msgspec import Raw

from omnistate.errors import SchemaMismatch
from omnistate.state._arguments import Origin, target_of
from omnistate.state._commands import held_of
from omnistate.state._events import Followed
from omnistate.state._history import parse_step
from omnistate.state._model import schema_of
from omnistate.state._seal import Keyring
from omnistate.state._stored import MSGPACK, NO_KEYS, PROTOBUF, SEALED, ZSTD, decompress
from omnistate.store import LogKeys

_SEALED_JSON = b'{"$sealed":"'


def plain_value(stored: bytes, place: bytes, keyring: Keyring | None) -> Any:
    """A stored value as something that is JSON. `place` is what it was sealed for.

    What cannot be read says why, and is given as it is stored: `{"$unreadable": "...", "$stored": "<base64>"}`.
    """
    try:
        return _plain(stored, place, keyring)
    except (SchemaMismatch, msgspec.MsgspecError, ValueError) as error:
        return {"$unreadable": str(error), "$stored": b64encode(stored).decode()}


def _plain(stored: bytes, place: bytes, keyring: Keyring | None) -> Any:
    if stored.startswith(_SEALED_JSON):
        return _plain(_open(keyring, b64decode(stored[len(_SEALED_JSON) : -2], validate=True), place), place, keyring)
    match stored[:1]:
        case tag if tag == SEALED:
            return _plain(_open(keyring, stored[1:], place), place, keyring)
        case tag if tag == ZSTD:
            return _plain(decompress(stored[1:]), place, keyring)
        case tag if tag == PROTOBUF:
            return {"$protobuf": b64encode(stored[1:]).decode()}
        case tag if tag == MSGPACK:
            return msgspec.to_builtins(msgspec.msgpack.decode(stored[1:]), str_keys=True)
    msgspec.json.decode(stored)
    return Raw(stored)


def _open(keyring: Keyring | None, sealed: bytes, place: bytes) -> bytes:
    if sealed[:1] == SEALED:  # in an event
        sealed = sealed[1:]
    if keyring is None:
        raise SchemaMismatch(NO_KEYS.format("an encrypted value needs"))
    return keyring.open(sealed, place)


def plain_document(flat: dict[bytes, bytes | None], document: bytes, keyring: Keyring | None) -> dict[str, Any]:
    """The fields of a document's hash, entries of a mapping together; deadlines, which begin with '!', are left out."""
    found: dict[str, Any] = {}
    for name, stored in flat.items():
        if name.startswith(b"!"):
            continue
        value = None if stored is None else plain_value(stored, document + b"\0" + name, keyring)
        field, is_entry, key = name.decode(errors="replace").partition(":")
        if is_entry:
            held = found.get(field)
            if not isinstance(held, dict):
                held = found[field] = {}
            held[key] = value
        else:
            found.setdefault(field, value)
    return found


def plain_message(
    kind: type[Any],
    log: LogKeys,
    owner: tuple[str, str] | None,
    header: bytes,
    values: list[bytes],
    keyring: Keyring | None,
) -> bytes:
    """A document of a message class as JSON. Raises `SchemaMismatch`."""
    schema = schema_of(kind)
    target = target_of(log, schema, Origin(), owner, keyring)
    return schema.to_json(Followed(target, held_of(target, header, values)).encoded())


def plain_step(line: bytes, document: bytes, keyring: Keyring | None) -> dict[str, Any]:
    """What history keeps of a change: the fields as they were before it; None for one that was not there."""
    step = parse_step(line)
    said: dict[str, Any] = {"version": str(step.version), "time": step.time, "what": step.kind}
    said |= {"channel": step.who.channel} if step.who.channel else {}
    said |= {"actor": step.who.actor} if step.who.actor else {}
    return said | {"before": plain_document(step.fields, document, keyring)}


def plain_event(event: bytes, key_of: Any, keyring: Keyring | None) -> Any:
    """An event with what is sealed in it opened, where it is about a state. `key_of` gives the key of a document."""
    try:
        said = msgspec.json.decode(event)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return {"$unreadable": str(error), "$stored": b64encode(event).decode()}
    if _SEALED_JSON not in event or not isinstance(said.get("state"), str):
        return Raw(event)
    document = key_of(f"{said['state']}:{said['owner']}" if said.get("owner") else said["state"])

    def opened(name: str, value: Any) -> Any:
        if isinstance(value, dict) and "$sealed" in value:
            return plain_value(msgspec.json.encode(value), document + b"\0" + name.encode(), keyring)
        return value

    for field, value in said.get("set", {}).items():
        said["set"][field] = opened(field, value)
    for field, entries in said.get("put", {}).items():
        said["put"][field] = {key: opened(f"{field}:{key}", value) for key, value in entries.items()}
    return said
