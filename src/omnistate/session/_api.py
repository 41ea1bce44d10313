"""The handle on one session."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TypeVar

from omnistate.collection import Declares, Place, open_collection
from omnistate.errors import InvalidDeclaration, InvalidInput
from omnistate.session import _commands as commands
from omnistate.session._commands import MOST_ENDINGS, Access, Terms
from omnistate.session._flows import move
from omnistate.session._guard import Guard
from omnistate.session._model import (
    Cursor,
    SessionEndings,
    SessionInfo,
    SessionPolicy,
    Token,
    moment,
    name_of,
)
from omnistate.state import AnyState, Origin, Part, Services, StateHandle, options_of, schema_of
from omnistate.store import (
    PARTITIONS,
    Keyspace,
    LogKeys,
    call,
    check_duration,
    encode_id,
    new_operation_id,
    run,
    together,
)

_NO_ORIGIN = Origin()
H = TypeVar("H")
_SHORTEST, _LONGEST = timedelta(seconds=1), timedelta(days=400)
_LONGEST_GRACE = timedelta(minutes=5)
_MILLISECOND = timedelta(milliseconds=1)
_LONGEST_AGENT = 512  # characters: it is whatever the client says
GRACE = timedelta(seconds=10)


class Session:
    """A session of a customer. `token` is its secret, for the cookie or the app; `id` may be logged.

    Only a keyed hash of the token is stored, so a copy of the database opens no session. A handle that was made of a token
    knows nothing until a verb has asked: `customer_id` is what the token says, and a forged one says anything.
    """

    __slots__ = ("_access", "_keyspace", "_own", "_services", "_token", "customer_id", "id", "token")

    def __init__(self, services: Services, keyspace: Keyspace, token: Token) -> None:
        self._services, self._keyspace, self._token = services, keyspace, token
        self._access = Access.of(keyspace, token)
        self._own: Services | None = None  # for what belongs to it
        self.customer_id, self.token, self.id = token.customer_id, token.text, token.id

    async def load(self) -> SessionInfo:
        """What is known of the session. It does not count as activity. One round trip. Raises `SessionExpired`."""
        return await self._services.link.execute(commands.load(self._access))

    async def touch(self, *, idle: timedelta | None = None) -> datetime:
        """Moves the idle deadline, and returns when the session ends if nothing more comes. Raises `SessionExpired`.

        With `idle` that is the session's idle time from now on. One round trip, no event. A session that has ended stays ended.
        """
        if idle is not None:
            check_duration("idle", idle, _SHORTEST, _LONGEST)
        idle_ms = None if idle is None else idle // _MILLISECOND
        deadline = await self._services.link.execute(commands.touch(self._access, idle_ms))
        return moment(deadline)

    async def rotate(self, *, to: str | None = None, grace: timedelta = GRACE) -> Session:
        """The session under a new token and a new id: at login, when it may do more from now on, after a merge.

        The old one ends with the reason "rotated", and its token answers for `grace` to requests that are under way. What
        belongs to the session, its start and its absolute deadline stay. Of two calls at once one wins; the other raises
        `SessionRotated`, since nobody but the winner knows the new token. Raises `SessionExpired`. One round trip.

        With `to`, the id of another customer, it goes on as theirs: a new session on the same terms, and the old one ends with
        the reason "merged"; what belonged to it ends with it. Three round trips. Raises `CustomerMerged`.
        """
        check_duration("grace", grace, timedelta(0), _LONGEST_GRACE)
        following = Token.new(to) if to is not None and to != self.customer_id else self._token.next()
        session = Session(self._services, self._keyspace, following)
        execute = self._services.link.execute
        if following.customer_id != self.customer_id:
            await run(move(self._access, session._access, grace), execute)
        else:
            id_ = new_operation_id()
            await execute(commands.rotate(self._access, session._access, grace, operation_id=id_))
        return session

    async def reauthenticated(self) -> datetime | None:
        """Says that the customer has just proved again who they are; returns when that is due next, None for never.

        Call it after `rotate`: a token in its grace is refused with `SessionRotated`. Raises `SessionExpired`. One round trip.
        """
        command = commands.reauthenticated(self._access, operation_id=new_operation_id())
        due = await self._services.link.execute(command)
        return None if due is None else moment(due)

    async def end(self, *, reason: str = "logout") -> bool:
        """Ends the session; false when it had ended before. One round trip."""
        encode_id(reason, "reason")
        command = commands.end(self._access, reason, operation_id=new_operation_id())
        return await self._services.link.execute(command)

    def state(self, kind: type[AnyState]) -> StateHandle[AnyState]:
        """A state of this session, which ends with it: from then on each verb raises `SessionExpired`.

        A class with `outlives_session=True` stays for its own time: `customer.of_session(id)` has it then. Every class needs a
        `ttl` or a `lifetime`, so that nothing is left where nobody sweeps. The near cache is not used.
        """
        schema = schema_of(kind)
        _check_life(schema.name, schema.ttl_ms, schema.lifetime_ms)
        return StateHandle(
            self._guarded(), kind, self._access.log, _NO_ORIGIN, _owner(self._token.name, outlives(kind))
        )

    def collection(self, declaration: Declares[H]) -> H:
        """A collection of this session, which ends with it, as a `state` does."""
        _check_life(declaration.name, declaration.ttl_ms, declaration.lifetime_ms)
        owner = _owner(self._token.name, declaration.outlives_session)
        return open_collection(declaration, Place(self._guarded(), self._access.log, _NO_ORIGIN, owner))

    def part(self, name: str, reason: str = "") -> Part:
        """For transactions: to expect, touch or end it, as a part of a call."""
        return commands.session_part(name, self._access, reason)

    def is_same(self, other: Session) -> bool:
        """For transactions: whether both are one session, under whichever token."""
        return (self._access.log, self._token.name) == (other._access.log, other._token.name)

    @property
    def access(self) -> Access:
        """For the slices on top: its token, as the server is told of it."""
        return self._access

    def _guarded(self) -> Services:
        if self._own is None:
            services = self._services
            guard = Guard(services.link, self._access)
            self._own = Services(guard, services.feed, services.keyring, services.durability)
        return self._own

    def __repr__(self) -> str:
        return f"<Session {self.id}>"


class OfSession:
    """What a session of a customer leaves, by the session's id: states and collections that outlive it.

    It asks for no token, so the id must come from your own records: `session.id`, a list of devices, an ending.
    """

    __slots__ = ("_log", "_name", "_services")

    def __init__(self, services: Services, log: LogKeys, session_id: str) -> None:
        self._services, self._log, self._name = services, log, name_of(session_id)

    def state(self, kind: type[AnyState]) -> StateHandle[AnyState]:
        """A state of the session, whether that lives or not. Its class says `outlives_session=True`."""
        _check_outlives(schema_of(kind).name, outlives(kind))
        return StateHandle(self._services, kind, self._log, _NO_ORIGIN, _owner(self._name, True))

    def collection(self, declaration: Declares[H]) -> H:
        """A collection of the session, whether that lives or not. It is declared with `outlives_session=True`."""
        _check_outlives(declaration.name, declaration.outlives_session)
        return open_collection(declaration, Place(self._services, self._log, _NO_ORIGIN, _owner(self._name, True)))


def outlives(kind: type) -> bool:
    """Whether a state class says `outlives_session=True`."""
    options = options_of(kind)
    return options is not None and options.outlives_session


def _owner(name: str, outlives_session: bool) -> tuple[str, str]:
    """As it is in entries: by the first word the sweeper knows what ends with a session."""
    return "kept_session" if outlives_session else "session", name


def _check_outlives(name: str, outlives_session: bool) -> None:
    if not outlives_session:
        raise InvalidDeclaration(
            f"{name} ends with its session and is reached through it alone, session.state(...): say outlives_session=True"
        )


def _check_life(name: str, ttl_ms: int, lifetime_ms: int) -> None:
    if not ttl_ms and not lifetime_ms:
        raise InvalidDeclaration(
            f"{name} belongs to a session, so it must end by itself: give it ttl=timedelta(hours=8)"
        )


async def start_session(
    services: Services,
    keyspace: Keyspace,
    customer_id: str,
    channel: str,
    *,
    idle: timedelta,
    absolute: timedelta,
    reauthenticate: timedelta | None,
    device: str | None,
    user_agent: str | None,
    policy: SessionPolicy | None,
) -> Session:
    """A new session. One round trip."""
    encode_id(channel, "channel")
    if device is not None:
        encode_id(device, "device")
    for what, given in (("idle", idle), ("absolute", absolute), ("reauthenticate", reauthenticate)):
        if given is not None or what != "reauthenticate":
            check_duration(what, given, _SHORTEST, _LONGEST)
    if policy is not None and not isinstance(policy, SessionPolicy):
        raise InvalidInput(f"policy must be a SessionPolicy, not {type(policy).__name__}: SessionPolicy(at_most=3)")
    session = Session(services, keyspace, Token.new(customer_id))
    every = 0 if reauthenticate is None else reauthenticate // _MILLISECOND
    agent = None if user_agent is None else str(user_agent)[:_LONGEST_AGENT].encode(errors="replace").decode()
    terms = Terms(channel, idle // _MILLISECOND, absolute // _MILLISECOND, every, device, agent, policy)
    await services.link.execute(commands.start(session.access, terms, operation_id=new_operation_id()))
    return session


def session_of_token(services: Services, keyspace: Keyspace, token: object) -> Session:
    """The handle for what a client brought as its token. For what is none it is one that names no session."""
    found = Token.parse(token)
    if found is not None:
        return Session(services, keyspace, found)
    session = Session(services, keyspace, Token.new("-"))
    session.customer_id = session.token = ""
    return session


async def list_sessions(services: Services, log: LogKeys) -> list[SessionInfo]:
    """A customer's sessions that live, those that began first in front. One round trip."""
    return await services.link.execute(commands.list_sessions(log))


async def read_endings(services: Services, keyspace: Keyspace, cursor: str | None) -> SessionEndings:
    """What ended after the cursor. 256 small calls, which travel together."""
    at = Cursor(cursor)
    partitions = range(PARTITIONS)
    reads = [call(commands.read_endings(keyspace, one, at.positions.get(one), most=MOST_ENDINGS)) for one in partitions]
    pages = await together(reads, services.link)
    found = sorted((ending for page, _ in pages for ending in page), key=lambda one: one.ended)
    positions = zip(partitions, (position for _, position in pages), strict=True)
    return SessionEndings(found, at.after(positions))
