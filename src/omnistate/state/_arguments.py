"""What the verbs are given, checked and spelled. No IO."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec

from omnistate.errors import InvalidInput
from omnistate.state._commands import Target
from omnistate.state._model import Expect, Precondition, Snapshot
from omnistate.state._schema import Schema
from omnistate.state._seal import Keyring
from omnistate.store import (
    Keys,
    LogKeys,
    OwnOperationId,
    Position,
    check_duration,
    check_operation_id,
    digest_of,
    encode_id,
)

_json = msgspec.json.Encoder().encode


class Origin(msgspec.Struct, frozen=True):
    """Who acts, and on which channel: written into every event."""

    channel: str | None = None
    actor: str | None = None

    def members(self) -> bytes:
        """The origin as members of an event."""
        members = b""
        if self.channel is not None:
            members += b',"channel":' + _json(self.channel)
        if self.actor is not None:
            members += b',"actor":' + _json(self.actor)
        return members


def target_of(
    log: LogKeys,
    schema: Schema[Any],
    origin: Origin,
    owner: tuple[str, str] | None = None,
    keyring: Keyring | None = None,
) -> Target:
    """The document of this class. `owner` is (what, id) when it is not the customer's own."""
    what = (schema, origin, owner, keyring)
    return log.making(what, lambda: _make_target(log, schema, origin, owner, keyring))


def _make_target(
    log: LogKeys, schema: Schema[Any], origin: Origin, owner: tuple[str, str] | None, keyring: Keyring | None
) -> Target:
    name = schema.name
    entry = name if owner is None else f"{name}:{owner[0]}:{encode_id(owner[1])}"
    document = log.key("doc", entry)
    head = b'{"type":"state.changed","state":"' + name.encode() + b'"'
    if owner is not None:
        head += b',"owner":' + _json(f"{owner[0]}:{encode_id(owner[1])}")
    own = [document] if schema.history is None else [document, log.key("doc", entry, ".history")]
    own += [log.index(f"{name}.{index}") for index in schema.indexes.names]
    who = b"{" + origin.members().lstrip(b",") + b"}"
    return Target(
        log,
        document,
        schema,
        head + origin.members(),
        Keys((*log.written, *own)),
        "doc:" + entry,
        keyring,
        who,
        tuple(own),
    )


def milliseconds_of(what: str, duration: timedelta) -> int:
    check_duration(what, duration, timedelta(milliseconds=1), timedelta(days=3650))
    return duration // timedelta(milliseconds=1)


def precondition_of(expect: Precondition | Snapshot[Any]) -> Precondition:
    if isinstance(expect, Snapshot):
        return expect.precondition
    if not isinstance(expect, Position | Expect):
        raise InvalidInput(
            "expect must be ANY, ABSENT, the snapshot that must still be the present one, or its Position"
        )
    return expect


def digest_under(operation_id: str | None, *said: bytes) -> str:
    """Tells calls under one operation id apart: the verb, the document, and what is written. Empty where no id is given."""
    if operation_id is None:
        return ""
    check_operation_id(operation_id)
    if isinstance(operation_id, OwnOperationId):
        said = said[1:2]  # a merge that goes on later may find other values, as entries expire, and a newer class
    return digest_of(said)


def json_of(said: object) -> bytes:
    """Equal arguments have equal JSON: sets are in another order in each process, and dicts may be."""
    try:
        return msgspec.json.encode(
            msgspec.to_builtins(said, str_keys=True, order="sorted", enc_hook=lambda other: type(other).__qualname__)
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"these arguments cannot be told apart under an operation id: {error}") from error
