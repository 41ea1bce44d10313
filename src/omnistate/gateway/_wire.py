"""The Centrifuge client protocol, version 2, in JSON: commands in, replies and pushes out. No IO.

The protocol says "channel" where omnistate says "topic"; its word is used in this module only.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from omnistate.errors import (
    AmbiguousWrite,
    Conflict,
    ConversationNotFound,
    CustomerErased,
    CustomerMerged,
    Denied,
    IdentityTaken,
    InvalidInput,
    OmnistateError,
    OwnershipLost,
    PositionLost,
    SchemaMismatch,
    SessionExpired,
    StoreError,
    StoreUnavailable,
)

_encode = msgspec.json.Encoder().encode


class Disconnect:
    """Close codes and their reasons. A reason must not be JSON: the JavaScript SDK parses it first."""

    SHUTDOWN = (3001, "shutdown")
    SERVER_ERROR = (3004, "internal server error")
    EXPIRED = (3005, "connection expired")
    SLOW = (3008, "slow")
    NO_PONG = (3012, "no pong")
    INVALID_TOKEN = (3500, "invalid token")
    BAD_REQUEST = (3501, "bad request")
    STALE = (3502, "stale")
    NOT_AVAILABLE = (3508, "not available")


class ConnectRequest(msgspec.Struct):
    token: str = ""
    data: Raw = Raw(b"null")


class SubscribeRequest(msgspec.Struct):
    channel: str = ""
    token: str = ""
    recover: bool = False
    epoch: str = ""
    offset: int = 0
    flag: int = 0
    type: int = 0


class ChannelRequest(msgspec.Struct):
    channel: str = ""


class Since(msgspec.Struct):
    offset: int = 0
    epoch: str = ""


class HistoryRequest(msgspec.Struct):
    channel: str = ""
    limit: int = 0
    since: Since | None = None
    reverse: bool = False


class RpcRequest(msgspec.Struct):
    method: str = ""
    data: Raw = Raw(b"{}")


class TokenRequest(msgspec.Struct):
    token: str = ""
    channel: str = ""


class Command(msgspec.Struct):
    """One command: the first request that is set counts."""

    id: int = 0
    connect: ConnectRequest | None = None
    subscribe: SubscribeRequest | None = None
    unsubscribe: ChannelRequest | None = None
    publish: ChannelRequest | None = None
    presence: ChannelRequest | None = None
    presence_stats: ChannelRequest | None = None
    history: HistoryRequest | None = None
    ping: dict[str, Any] | None = None
    send: dict[str, Any] | None = None
    rpc: RpcRequest | None = None
    refresh: TokenRequest | None = None
    sub_refresh: TokenRequest | None = None


KINDS = tuple(name for name in Command.__struct_fields__ if name != "id")
_decode_command = msgspec.json.Decoder(Command).decode


class BadFrame(Exception):
    """The frame is not made of commands: the connection is closed with 3501."""


def decode_frame(frame: bytes) -> list[Command]:
    """The commands of one frame. Raises `BadFrame`."""
    try:
        commands = [_decode_command(line) for line in frame.split(b"\n") if line]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadFrame(str(error)) from error
    if not commands:
        raise BadFrame("an empty frame")
    return commands


class WireError(Exception):
    """Answers one command with an error."""

    def __init__(self, code: int, message: str, *, temporary: bool = False) -> None:
        super().__init__(message)
        self.code, self.message, self.temporary = code, message, temporary


INTERNAL = WireError(100, "internal server error", temporary=True)
UNKNOWN_TOPIC = WireError(102, "unknown channel")
DENIED = WireError(103, "permission denied")
METHOD_NOT_FOUND = WireError(104, "method not found")
ALREADY_SUBSCRIBED = WireError(105, "already subscribed")
LIMIT = WireError(106, "limit exceeded")
NOT_AVAILABLE = WireError(108, "not available")
TOKEN_EXPIRED = WireError(109, "token expired")
UNRECOVERABLE = WireError(112, "unrecoverable position")

# Our errors on the wire: the first class that fits. Codes from 400 on are the application's in this protocol.
WIRE_CODES: tuple[tuple[type[OmnistateError], int, bool], ...] = (
    (AmbiguousWrite, 504, False),
    (StoreUnavailable, 100, True),
    (Denied, 103, False),
    (OwnershipLost, 412, False),
    (Conflict, 409, False),
    (IdentityTaken, 409, False),
    (CustomerErased, 410, False),
    (CustomerMerged, 410, False),
    (ConversationNotFound, 404, False),
    (SessionExpired, 401, False),
    (PositionLost, 112, False),
    (InvalidInput, 400, False),
    (SchemaMismatch, 500, False),
    (StoreError, 503, False),
    (OmnistateError, 500, False),
)


def wire_error(error: Exception) -> WireError:
    """What a client is told of an error. Errors of the application's own code are told without their text."""
    if isinstance(error, WireError):
        return error
    for kind, code, temporary in WIRE_CODES:
        if isinstance(error, kind):
            return WireError(code, str(error), temporary=temporary)
    return INTERNAL


def reply(command_id: int, kind: str, result: bytes | dict[str, Any]) -> bytes:
    """A reply that says yes; its result is there even when empty, as the SDKs need it."""
    encoded = result if isinstance(result, bytes) else _encode(result)
    return b'{"id":%d,"%b":%b}' % (command_id, kind.encode(), encoded)


def error_reply(command_id: int, error: WireError) -> bytes:
    said: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.temporary:
        said["temporary"] = True
    return _encode({"id": command_id, "error": said})


def publication(event: bytes, offset: int) -> Raw:
    return Raw(b'{"data":%b,"offset":%d}' % (event, offset))


def publication_push(topic: str, event: bytes, offset: int) -> bytes:
    return b'{"push":{"channel":%b,"pub":{"data":%b,"offset":%d}}}' % (_encode(topic), event, offset)


def unsubscribe_push(topic: str, code: int, reason: str) -> bytes:
    return _encode({"push": {"channel": topic, "unsubscribe": {"code": code, "reason": reason}}})


PING = b"{}"


def text_frame(payload: bytes) -> bytes:
    """A WebSocket text frame of a server: not masked, so the same bytes go to every client."""
    size = len(payload)
    if size < 126:
        return bytes((0x81, size)) + payload
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload
