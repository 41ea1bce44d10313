"""Commands on sessions. No IO."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import msgspec

from omnistate.errors import PositionLost, SessionExpired, SessionRotated, TooManySessions
from omnistate.session._model import SessionEnding, SessionInfo, SessionPolicy, Token, moment
from omnistate.state import NEVER, Part
from omnistate.store import Command, Keyspace, LogKeys, Position, decode_id, merged_error, opening

T = TypeVar("T")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(str | None).decode
_MILLISECOND = timedelta(milliseconds=1)
_READING = frozenset(("state_read", "state_history", "collection_read", "log_read"))
_NO_SESSIONS = (b"g", b"c")  # fields of the hash
MOST_ENDINGS = 200  # of a partition, in one reply


def expired() -> SessionExpired:
    """The same for a session that ended, one that never was, and a token that is none."""
    return SessionExpired("there is no such session, it ended, or a deadline of it passed: start a new one")


def _rotated() -> SessionRotated:
    return SessionRotated(
        "another request gave this session a new token: answer with that one, or ask the client to call again"
    )


def _json(text: str | None) -> bytes:
    """As it is in a record, whose members are apart by spaces."""
    return _encode(text).replace(b" ", b"\\u0020")


def session_keys(log: LogKeys) -> tuple[bytes, bytes]:
    """The customer's sessions, and the partition's endings."""
    return log.key("sessions"), log.endings


@dataclass(frozen=True, slots=True)
class Access:
    """A token, as the server is told of it: its customer's keys, its session's name, its keyed hash."""

    log: LogKeys
    name: str
    proof: str

    @classmethod
    def of(cls, keyspace: Keyspace, token: Token) -> Access:
        proof = keyspace.session_token(token.customer_id, token.name, str(token.number), token.secret)
        return cls(keyspace.customer(token.customer_id), token.name, proof)

    @property
    def key(self) -> bytes:
        return self.log.key("sessions")


class Terms(msgspec.Struct, frozen=True):
    """How a session begins. Times in milliseconds; 0: it needs no other authentication."""

    channel: str
    idle: int
    absolute: int
    every: int = 0
    device: str | None = None
    user_agent: str | None = None
    policy: SessionPolicy | None = None


def _judge(log: LogKeys, parse: Callable[[bytes], T]) -> Callable[[Any], T]:
    """What the reply of a change means."""

    def judge(reply: bytes | list[Any]) -> T:
        if isinstance(reply, bytes):
            return parse(reply)
        match reply[0]:
            case b"absent":
                raise expired()
            case b"rotated":
                raise _rotated()
            case b"merged":
                raise merged_error(log, reply[1])
            case _:  # it was done before
                return parse(reply[1])

    return judge


def _none(_: bytes) -> None:
    return None


def _keys(log: LogKeys) -> tuple[bytes, ...]:
    return (*log.written, *session_keys(log))


def start(access: Access, terms: Terms, *, operation_id: str) -> Command[None]:
    """Raises `TooManySessions`, `CustomerMerged`."""
    policy, judge = terms.policy, _judge(access.log, _none)
    about = (_json(terms.channel), _json(terms.device), _json(terms.user_agent))
    room = (policy.at_most, int(policy.when_full == "refuse")) if policy else (0, 0)
    said = (access.name, access.proof, terms.idle, terms.absolute, terms.every, *about, *room)

    def parse(reply: Any) -> None:
        if type(reply) is list and reply[0] == b"full":
            raise TooManySessions(terms.channel, limit=room[0])
        judge(reply)

    arguments = (*opening(operation_id), *said)
    return Command("session_start", _keys(access.log), arguments, parse, operation_id)


def touch(access: Access, idle_ms: int | None = None) -> Command[int]:
    """The deadline, in milliseconds since 1970 by the server's clock. `idle_ms`: instead of what it was from now on."""

    def parse(reply: list[bytes]) -> int:
        if reply[0] == b"absent":
            raise expired()
        return int(reply[1])

    more: tuple[int, ...] = () if idle_ms is None else (idle_ms,)
    return Command("session_touch", (access.key,), (access.name, access.proof, *more), parse)


def load(access: Access) -> Command[SessionInfo]:
    def parse(reply: list[bytes]) -> SessionInfo:
        if reply[0] == b"absent":
            raise expired()
        info = _info(access.log, access.name, reply[1], int(reply[2]))
        return msgspec.structs.replace(info, merged_into=reply[3].decode() or None)

    return Command("session_load", (access.key, access.log.meta), (access.name, access.proof), parse)


def terms_of(access: Access) -> Command[Terms]:
    """On which terms a session began."""

    def parse(reply: list[bytes]) -> Terms:
        if reply[0] == b"absent":
            raise expired()
        _, _, absolute, _, _, idle, started, _, _, every, _, _, _, _, _, *about = reply[1].split(b" ")
        channel, device, agent = map(_decode, about)
        assert channel is not None
        return Terms(channel, int(idle), int(absolute) - int(started), int(every), device, agent)

    return Command("session_load", (access.key, access.log.meta), (access.name, access.proof), parse)


def end(access: Access, reason: str, *, operation_id: str, grace: timedelta = timedelta(0)) -> Command[bool]:
    """False: it had ended before. With a grace, for which its token answers still, that is an error."""
    judge = _judge(access.log, lambda _: True)

    def parse(reply: Any) -> bool:
        if not grace and type(reply) is list and reply[0] == b"absent":
            return False
        return judge(reply)

    said = (access.name, access.proof, _encode(reason), grace // _MILLISECOND)
    return Command("session_end", _keys(access.log), (*opening(operation_id), *said), parse, operation_id)


def rotate(access: Access, following: Access, grace: timedelta, *, operation_id: str) -> Command[None]:
    said = (access.name, access.proof, following.proof, grace // _MILLISECOND)
    arguments = (*opening(operation_id), *said)
    return Command("session_rotate", _keys(access.log), arguments, _judge(access.log, _none), operation_id)


def reauthenticated(access: Access, *, operation_id: str) -> Command[int | None]:
    """When the customer is to prove again who they are."""
    arguments = (*opening(operation_id), access.name, access.proof)
    judge = _judge(access.log, lambda due: int(due) if due else None)
    return Command("session_reauthenticated", _keys(access.log), arguments, judge, operation_id)


def list_sessions(log: LogKeys) -> Command[list[SessionInfo]]:
    def parse(reply: list[bytes]) -> list[SessionInfo]:
        pairs = zip(reply[1::2], reply[2::2], strict=True)
        return [_info(log, name.decode(), record, int(reply[0])) for name, record in pairs]

    return Command("session_list", (session_keys(log)[0],), (), parse)


def stored_sessions(log: LogKeys, fields: Iterable[tuple[bytes, ...]]) -> Iterator[tuple[str, SessionInfo | None]]:
    """The sessions in what is stored of them, by name, also those that are over; None for a record that is damaged."""
    for name, record in fields:
        if name not in _NO_SESSIONS:
            try:
                yield name.decode(), _info(log, name.decode(), record, 0)
            except (ValueError, AssertionError, OverflowError, OSError):
                yield name.decode(), None


def revoke(
    log: LogKeys,
    *,
    name: str = "",
    channel: str | None = None,
    device: str | None = None,
    keep: Access | None = None,
    operation_id: str,
) -> Command[int]:
    """How many were ended at once: 0 of all, which are over from now on."""
    which = (name, *("" if one is None else _json(one) for one in (channel, device)))
    kept = ("", "") if keep is None else (keep.name, keep.proof)
    arguments = (*opening(operation_id), *which, *kept)
    return Command("session_revoke", _keys(log), arguments, _judge(log, int), operation_id)


def session_part(name: str, access: Access, reason: str = "") -> Part:
    """To expect, touch or end a session as a part of a call that changes several things."""
    keys, said = session_keys(access.log), ("", access.name, access.proof, _encode(reason))
    return Part(name, keys, said, (name, access.name, access.proof))


def guarded(command: Command[T], access: Access) -> Command[T]:
    """The same command, for as long as the session lives: in one call, so that nothing comes between."""

    def parse(reply: Any) -> T:
        if type(reply) is list and reply and reply[0] == b"session_absent":
            raise expired()
        return command.parse(reply)

    keys = (*command.keys, access.key)
    arguments = (*command.arguments, command.function, access.name, access.proof)
    if command.function in _READING:
        return Command("session_read", keys, arguments, parse)
    return Command("session_write", keys, arguments, parse, command.operation_id)


def _info(log: LogKeys, name: str, record: bytes, now: int) -> SessionInfo:
    _, seen, absolute, _, _, idle, started, _, due, _, number, _, _, _, _, *about = record.split(b" ")
    channel, device, agent = map(_decode, about)
    assert channel is not None
    return SessionInfo(
        id=f"{name}.{int(number)}",
        customer_id=log.id,
        channel=channel,
        device=device,
        user_agent=agent,
        started=moment(started),
        seen=moment(seen),
        idle_deadline=moment(int(seen) + int(idle)),
        absolute_deadline=moment(absolute),
        reauthenticate_by=None if due == NEVER else moment(due),
        reauthentication_due=due != NEVER and int(due) <= now,
    )


class _Ended(msgspec.Struct):
    """The members of the event."""

    session: str
    channel: str
    reason: str
    time: int
    device: str | None = None
    next: str | None = None


_decode_ended = msgspec.json.Decoder(_Ended).decode
Page = tuple[list[SessionEnding], Position | None]


def read_endings(keyspace: Keyspace, partition: int, after: Position | None, *, most: int) -> Command[Page]:
    """The endings after a position, oldest first, and the position of the last. Raises `PositionLost`."""
    known = (0, "") if after is None else (after.offset, after.epoch)

    def parse(reply: list[bytes]) -> Page:
        if reply[0] == b"lost":
            assert after is not None
            raise PositionLost(after, current=Position(reply[2].decode(), int(reply[1])))
        told = [_ending(entry) for entry in reply[1:] if not _is_erased(entry)]
        return told, _position(reply[-1]) if len(reply) > 1 else after

    return Command("session_endings", (keyspace.endings(partition),), (*known, most), parse)


def _position(entry: bytes) -> Position:
    number, epoch, _ = entry.split(b" ", 2)
    return Position(epoch.decode(), int(number))


def _is_erased(entry: bytes) -> bool:
    """Whether its customer was erased: only its number is left."""
    return entry.split(b" ", 3)[2] == b"-"


def _ending(entry: bytes) -> SessionEnding:
    _, _, whose, event = entry.split(b" ", 3)
    said = _decode_ended(event)
    customer_id = decode_id(whose.decode().partition(".")[2])
    return SessionEnding(
        said.session, customer_id, said.channel, said.device, said.reason, moment(said.time), said.next
    )
