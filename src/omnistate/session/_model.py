"""Values of sessions: tokens, what is known of a session, how it ended, how many there may be. No IO."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Self

import msgspec

from omnistate.errors import InvalidId, InvalidInput
from omnistate.store import Position, decode_id, encode_id

_TOKEN = re.compile(r"([A-Za-z0-9_%-]{1,768})\.([A-Za-z0-9_-]{16})\.([1-9][0-9]{0,8})\.([A-Za-z0-9_-]{43})")
_ID = re.compile(r"([A-Za-z0-9_-]{16})\.[1-9][0-9]{0,8}")
MOST_ON_CHANNEL = 100


@dataclass(frozen=True, slots=True)
class Token:
    """What a session's token holds. `name` is the session's through all its tokens, `number` says which of them it is."""

    customer_id: str
    name: str
    number: int
    secret: str

    @classmethod
    def new(cls, customer_id: str) -> Self:
        return cls(customer_id, secrets.token_urlsafe(12), 1, secrets.token_urlsafe(32))

    @classmethod
    def parse(cls, text: object) -> Self | None:
        """None for what is no token of ours."""
        found = _TOKEN.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            return None
        try:
            customer_id = decode_id(found[1])
            if encode_id(customer_id) != found[1]:
                return None
        except InvalidId:
            return None
        return cls(customer_id, found[2], int(found[3]), found[4])

    def next(self) -> Token:
        """Another one for the same session."""
        return Token(self.customer_id, self.name, self.number + 1, secrets.token_urlsafe(32))

    @property
    def id(self) -> str:
        """May be logged."""
        return f"{self.name}.{self.number}"

    @property
    def text(self) -> str:
        """The secret itself, for the cookie or the app."""
        return f"{encode_id(self.customer_id)}.{self.name}.{self.number}.{self.secret}"

    def __repr__(self) -> str:
        return f"<Token {self.id}>"


def name_of(session_id: str) -> str:
    """What a session is called through all its tokens. Raises `InvalidInput`."""
    found = _ID.fullmatch(session_id) if isinstance(session_id, str) else None
    if found is None:
        raise InvalidInput("this is no id of a session: it is the `id` of a Session, a SessionInfo, or a SessionEnding")
    return found[1]


class SessionInfo(msgspec.Struct, frozen=True):
    """What is known of a session that lives; never its token. Times are the server's.

    `reauthenticate_by`: when the customer is to prove again who they are, None for never; `reauthentication_due`: that this
    is so now. `merged_into`: the customer was merged into this one: go on with `session.rotate(to=...)`; only `load` says so.
    """

    id: str
    customer_id: str
    channel: str
    device: str | None
    user_agent: str | None
    started: datetime
    seen: datetime
    idle_deadline: datetime
    absolute_deadline: datetime
    reauthenticate_by: datetime | None
    reauthentication_due: bool
    merged_into: str | None = None

    def __repr__(self) -> str:  # device and user agent are personal data
        return f"<SessionInfo {self.id} channel={self.channel!r}>"


class SessionEnding(msgspec.Struct, frozen=True):
    """How a session ended. `id`, the session's, tells endings apart: who sees one again has seen it.

    `reason`: "logout" or what was given to `end`, "idle", "absolute", "revoked", "rotated", "merged", "evicted". `next` is the
    id under which a rotated session goes on.
    """

    id: str
    customer_id: str
    channel: str
    device: str | None
    reason: str
    ended: datetime
    next: str | None = None


class SessionEndings(msgspec.Struct, frozen=True):
    """A page of endings, and where to go on."""

    endings: list[SessionEnding]
    cursor: str


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """How many sessions of one channel a customer may have at a time; one more ends the oldest, or is refused."""

    at_most: int
    when_full: Literal["end_oldest", "refuse"] = "end_oldest"

    def __post_init__(self) -> None:
        if type(self.at_most) is not int or not 1 <= self.at_most <= MOST_ON_CHANNEL:
            raise InvalidInput(
                f"at_most must be a number of sessions from 1 to {MOST_ON_CHANNEL}, not {self.at_most!r}"
            )
        if self.when_full not in ("end_oldest", "refuse"):
            raise InvalidInput(f'when_full must be "end_oldest" or "refuse", not {self.when_full!r}')


def moment(milliseconds: bytes | int) -> datetime:
    """A time of the server, given in milliseconds since 1970."""
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


class Cursor:
    """Where a reader of endings is in each partition."""

    def __init__(self, text: str | None) -> None:
        self.positions: dict[int, Position] = {}
        try:
            for one in (text or "").split(","):
                if one:
                    partition, _, position = one.partition(":")
                    self.positions[int(partition)] = Position.parse(position)
        except (ValueError, AttributeError):  # InvalidInput is a ValueError
            raise InvalidInput("this is no cursor: give the `cursor` of earlier endings, or None") from None

    def after(self, pages: Iterable[tuple[int, Position | None]]) -> str:
        """The cursor after these pages."""
        self.positions |= {partition: position for partition, position in pages if position is not None}
        return ",".join(f"{partition}:{position}" for partition, position in sorted(self.positions.items()))
