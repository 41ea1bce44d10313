"""Commands on sessions. No IO."""

from __future__ import annotations

from typing import Any

import msgspec

from omnistate.errors import SessionExpired
from omnistate.state import Part
from omnistate.store import Command, LogKeys, opening

_json = msgspec.json.Encoder().encode


def session_key(log: LogKeys, session_id: str) -> bytes:
    return log.key("session", session_id)


def start(log: LogKeys, session_id: str, channel: str, idle_ms: int, *, operation_id: str) -> Command[int]:
    """The deadline, in milliseconds since 1970 by the server's clock."""
    event = b'{"type":"session.started","session":%b,"channel":%b' % (_json(session_id), _json(channel))
    return Command(
        "session_start",
        (*log.written, session_key(log, session_id)),
        (*opening(operation_id), channel, idle_ms, event),
        lambda reply: int(reply if type(reply) is bytes else reply[1]),
        operation_id,
    )


def touch(log: LogKeys, session_id: str) -> Command[tuple[int, str]]:
    """The new deadline and the session's channel."""

    def parse(reply: list[Any]) -> tuple[int, str]:
        if reply[0] == b"absent":
            raise SessionExpired("the session ended or its idle deadline passed: start a new one")
        return int(reply[1]), reply[2].decode()

    return Command("session_touch", (session_key(log, session_id),), (), parse)


def end(log: LogKeys, session_id: str, reason: str, *, operation_id: str) -> Command[bool]:
    """False: it had ended before."""
    event = b'{"type":"session.ended","session":%b,"reason":%b' % (_json(session_id), _json(reason))
    return Command(
        "session_end",
        (*log.written, session_key(log, session_id)),
        (*opening(operation_id), event),
        lambda reply: reply[0] != b"absent",
        operation_id,
    )


def session_part(name: str, log: LogKeys, session_id: str, reason: str) -> Part:
    """To expect, touch or end a session as a part of a call that changes several things."""
    event = b'{"type":"session.ended","session":%b,"reason":%b' % (_json(session_id), _json(reason))
    return Part(name, (session_key(log, session_id),), ("", event), (name, session_id))
