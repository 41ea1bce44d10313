"""The handle on one session."""

# Written by tools/unasync.py from src/omnistate/session/_api.py: change that one.

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from omnistate.errors import InvalidDeclaration, InvalidInput
from omnistate.session._commands import end, start, touch
from omnistate.state import AnyState, Origin, schema_of
from omnistate.store import Keyspace, LogKeys, check_duration, decode_id, encode_id, new_operation_id
from omnistate.sync._collection import Place, open_collection
from omnistate.sync._declares import Declares
from omnistate.sync._state import Services, StateHandle

_NO_ORIGIN = Origin()
H = TypeVar("H")
_LONGEST_IDLE = timedelta(days=400)


class Session:
    """A session of a customer. `token` is its secret, for the cookie or the app; `id` may be logged.

    Only a hash of the token is stored, so a copy of the database opens no session.
    """

    __slots__ = ("_log", "_services", "customer_id", "id", "token")

    def __init__(self, services: Services, log: LogKeys, customer_id: str, token: str) -> None:
        self._services, self._log = services, log
        self.customer_id, self.token = customer_id, token
        self.id = hashlib.sha256(token.encode()).hexdigest()[:32]

    def touch(self) -> datetime:
        """Moves the idle deadline and returns it. Raises `SessionExpired`. One round trip."""
        deadline, _ = self._services.link.execute(touch(self._log, self.id))
        return datetime.fromtimestamp(deadline / 1000, UTC)

    def end(self, *, reason: str = "logout") -> bool:
        """Ends the session; false when it had ended before. One round trip."""
        command = end(self._log, self.id, reason, operation_id=new_operation_id())
        return self._services.link.execute(command)

    def state(self, kind: type[AnyState]) -> StateHandle[AnyState]:
        """A state of this session. Its class needs a `ttl` or a `lifetime`: a session's end does not remove it."""
        schema = schema_of(kind)
        _check_life(schema.name, schema.ttl_ms, schema.lifetime_ms)
        return StateHandle(self._services, kind, self._log, _NO_ORIGIN, ("session", self.id))

    def collection(self, declaration: Declares[H]) -> H:
        """A collection of this session. It needs a `ttl` or a `lifetime`: a session's end does not remove it."""
        _check_life(declaration.name, declaration.ttl_ms, declaration.lifetime_ms)
        return open_collection(declaration, Place(self._services, self._log, _NO_ORIGIN, ("session", self.id)))

    def __repr__(self) -> str:
        return f"<Session {self.id[:8]}>"


def _check_life(name: str, ttl_ms: int, lifetime_ms: int) -> None:
    if not ttl_ms and not lifetime_ms:
        raise InvalidDeclaration(
            f"{name} belongs to a session, so it must end by itself: give it ttl=timedelta(hours=8)"
        )


def start_session(services: Services, log: LogKeys, customer_id: str, channel: str, *, idle: timedelta) -> Session:
    """A new session. One round trip."""
    encode_id(channel, "channel")
    check_duration("idle", idle, timedelta(seconds=1), _LONGEST_IDLE)
    session = Session(services, log, customer_id, f"{encode_id(customer_id)}.{secrets.token_urlsafe(32)}")
    idle_ms = idle // timedelta(milliseconds=1)
    services.link.execute(start(log, session.id, channel, idle_ms, operation_id=new_operation_id()))
    return session


def session_of_token(services: Services, keyspace: Keyspace, token: str) -> Session:
    """The handle for a token that a client brought. Raises `InvalidInput` for what is no token of ours."""
    customer, _, secret = token.partition(".") if isinstance(token, str) else ("", "", "")
    if not customer or len(secret) != 43 or len(token) > 1000 or not token.isascii():
        raise InvalidInput("not a session token")
    customer_id = decode_id(customer)
    if encode_id(customer_id, "customer id") != customer:
        raise InvalidInput("not a session token")
    return Session(services, keyspace.customer(customer_id), customer_id, token)
