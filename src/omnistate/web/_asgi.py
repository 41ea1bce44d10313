"""The middleware for Starlette and FastAPI: pure ASGI, so it streams and costs no task.

A request that brings a cookie costs one round trip before the application sees it (the session is looked up, its idle
deadline moved, its data read), and one or two more when the application has changed something, before the response begins. A
request without a cookie costs nothing until something is put into `request.session`: then a session is made, of a new
anonymous customer. What a client hands in is looked up and never adopted.

Of two requests that change different keys at the same time both keep theirs. For a key that both have changed the later one
wins, and it is logged; or it is answered with 409 and changes nothing, where `overwrites="refuse"`. A process that dies
before the response begins has changed nothing, or has changed it and not said so, as with every server.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from omnistate.errors import Conflict, CustomerErased, CustomerMerged, InvalidInput, OmnistateError, SessionExpired
from omnistate.session import Session
from omnistate.web._data import WebSession, apply, changes, encoded

try:
    from starlette.datastructures import MutableHeaders
    from starlette.requests import HTTPConnection
    from starlette.responses import JSONResponse
except ImportError as missing:  # pragma: no cover - an extra
    raise ImportError('omnistate.web needs Starlette: pip install "omnistate[server]"') from missing

from omnistate._client import Client
from omnistate.customer import Customer

log = logging.getLogger("omnistate.web")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_VISIT = "omnistate.visit"
_GONE = (SessionExpired, CustomerMerged, CustomerErased)


@dataclass(frozen=True, slots=True)
class _Settings:
    omni: Client
    channel: str
    cookie: str
    attributes: str
    idle: timedelta
    absolute: timedelta
    refuses: bool


@dataclass(slots=True)
class Visit:
    """The session of one request, and what of it has changed."""

    settings: _Settings
    user_agent: str = ""
    session: Session | None = None
    is_anonymous: bool = True
    data: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, bytes] = field(default_factory=dict)  # the data as it is stored, as far as is known
    cookie: str | None = None  # to be set; empty: to be deleted
    has_begun: bool = False  # the response: no cookie can be set any more

    async def load(self, token: str) -> None:
        """Looks up what the client brought. A session that has ended leaves an empty one.

        Its cookie stays: to delete it here could delete the one that a sign-in has just set in the same browser.
        """
        try:
            session = self.settings.omni.session(token)
            _, found = await asyncio.gather(session.touch(), session.state(WebSession).get())
        except _GONE:
            return
        self.session, self.is_anonymous = session, found.is_anonymous
        self.data.update(found.data)
        self.kept = encoded(found.data)

    async def start(self, customer: Customer, *, is_anonymous: bool) -> Session:
        """A session of this customer in the place of the one that there is, if any: what is in `data` comes along."""
        settings = self.settings
        if self.session is not None:
            # With no grace: a token that somebody else may know is of no use once its user has signed in.
            session = await self.session.rotate(to=customer.id, grace=timedelta(0))
        else:
            session = await customer.start_session(
                settings.channel, idle=settings.idle, absolute=settings.absolute, user_agent=self.user_agent or None
            )
        now = encoded(self.data)
        await session.state(WebSession).set(WebSession(data=self.data, is_anonymous=is_anonymous))
        self.session, self.is_anonymous, self.cookie, self.kept = session, is_anonymous, session.token, now
        return session

    async def started(self) -> Session:
        """The session, made now if there is none yet, of a new anonymous customer."""
        if self.session is not None:
            return self.session
        if self.has_begun:
            raise InvalidInput("the response has begun, so no cookie can be set: change the session before you answer")
        return await self.start(self.settings.omni.customer(f"anon_{secrets.token_hex(16)}"), is_anonymous=True)

    async def store(self) -> list[str]:
        """Stores what has changed. Returns the keys that another request had changed meanwhile.

        A session that has ended since it was loaded stays ended: what was changed in it goes with it.
        """
        wanted = changes(self.kept, now := encoded(self.data))
        if not wanted:
            return []
        if self.session is None:
            await self.started()
            return []

        def make(stored: WebSession) -> list[str]:
            raced = apply(stored, wanted)
            if raced and self.settings.refuses:
                raise Conflict(f"another request has changed {', '.join(map(repr, raced))} of this session")
            return raced

        self.kept = now
        try:
            return (await self.session.state(WebSession).update(make)).result
        except _GONE:
            log.info("a session ended while a request was changing it; the change went with it")
            return []

    def header(self) -> str | None:
        """The cookie to set, if any."""
        if self.cookie is None:
            return None
        left = int(self.settings.absolute.total_seconds()) if self.cookie else 0
        return f"{self.settings.cookie}={self.cookie}; Max-Age={left}; {self.settings.attributes}"


class SessionMiddleware:
    """`app.add_middleware(SessionMiddleware, omni=omni)`: `request.session` is kept in the store.

    `omni` is a client that is open while the application runs: `async with omni:` in its lifespan. `channel` is the channel
    of its sessions; `idle` and `absolute` are their deadlines. The cookie is `__Host-session`, Secure, HttpOnly; with
    `secure=False`, for development over plain HTTP, it is `session`. `overwrites`: what becomes of a key that two requests
    have changed at the same time: the later one wins and it is logged ("log"), or it is answered with 409 ("refuse").
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        omni: Client,
        *,
        channel: str = "web",
        cookie: str = "session",
        idle: timedelta = timedelta(days=14),
        absolute: timedelta = timedelta(days=90),
        same_site: Literal["lax", "strict", "none"] = "lax",
        secure: bool = True,
        overwrites: Literal["log", "refuse"] = "log",
    ) -> None:
        if same_site not in ("lax", "strict", "none"):
            raise InvalidInput(f"same_site must be 'lax', 'strict' or 'none', not {same_site!r}")
        if overwrites not in ("log", "refuse"):
            raise InvalidInput(f"overwrites must be 'log' or 'refuse', not {overwrites!r}")
        if same_site == "none" and not secure:
            raise InvalidInput("browsers drop a cookie with SameSite=None that is not Secure: leave secure=True")
        attributes = f"Path=/; HttpOnly; SameSite={same_site}" + ("; Secure" if secure else "")
        name = f"__Host-{cookie}" if secure else cookie
        self._app = app
        self._settings = _Settings(omni, channel, name, attributes, idle, absolute, overwrites == "refuse")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        visit = Visit(self._settings, connection.headers.get("user-agent", ""))
        token = connection.cookies.get(self._settings.cookie)
        if token is not None:
            await visit.load(token)
        scope["session"], scope[_VISIT] = visit.data, visit
        answer = _Answer(visit, scope, receive, send)
        await self._app(scope, receive, answer.send)
        if not answer.is_refused:
            _tell(await visit.store())  # what a web socket, or a response that was streamed, has changed since


class _Answer:
    """Stores what has changed before the response begins, and sets the cookie."""

    def __init__(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        self._visit, self._scope, self._receive, self._send = visit, scope, receive, send
        self.is_refused = False

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if self.is_refused:
            return
        if message["type"] in ("http.response.start", "websocket.accept") and not self._visit.has_begun:
            try:
                _tell(await self._visit.store())
            except Conflict as conflict:
                self.is_refused = True
                if self._scope["type"] == "websocket":
                    await self._send({"type": "websocket.close", "code": 1008, "reason": conflict.code})
                    return
                problem = {"title": "Conflict", "status": 409, "code": conflict.code, "detail": str(conflict)}
                response = JSONResponse(problem, 409, media_type="application/problem+json")
                await response(self._scope, self._receive, self._send)
                return
            self._visit.has_begun = True
            if (cookie := self._visit.header()) is not None:
                message.setdefault("headers", [])
                MutableHeaders(scope=message).append("set-cookie", cookie)
        await self._send(message)


def _tell(raced: list[str]) -> None:
    if raced:
        log.warning("a session's keys were changed by two requests at once; the later one won", extra={"keys": raced})


def _visit_of(connection: HTTPConnection) -> Visit:
    visit = connection.scope.get(_VISIT)
    if not isinstance(visit, Visit):
        raise OmnistateError(
            "there is no SessionMiddleware around this request: app.add_middleware(SessionMiddleware, omni=omni)"
        )
    return visit


async def current_session(connection: HTTPConnection) -> Session:
    """The request's session; one of a new anonymous customer where there is none yet. A FastAPI dependency.

    No round trip where there is one, else two.
    """
    return await _visit_of(connection).started()


async def current_customer(connection: HTTPConnection) -> Customer:
    """The customer of the request's session, who may be anonymous. A FastAPI dependency. Costs what `current_session` does.

    `ana: Annotated[Customer, Depends(current_customer)]`
    """
    visit = _visit_of(connection)
    session = await visit.started()
    return visit.settings.omni.customer(session.customer_id).via(visit.settings.channel)


async def sign_in(connection: HTTPConnection, customer: Customer, *, merge: bool = True) -> Session:
    """The request's session is this customer's from now on, under a new token; the one before it ends.

    What is in `request.session` stays. What an anonymous visitor has collected (cart, ...) is merged into the customer, as by
    `customer.merge`, unless `merge` is false. Killed on the way, signing in again finishes it: the old token is of no use
    then, so at worst `request.session` is empty. Four round trips, and those of a merge.
    """
    visit = _visit_of(connection)
    before = visit.session
    if before is not None and merge and visit.is_anonymous and before.customer_id != customer.id:
        await customer.merge(visit.settings.omni.customer(before.customer_id))
    return await visit.start(customer, is_anonymous=False)


async def sign_out(connection: HTTPConnection) -> None:
    """Ends the request's session, with all that is in it, and deletes the cookie. One round trip."""
    visit = _visit_of(connection)
    if visit.session is not None:
        with suppress(CustomerErased):  # it ended with them
            await visit.session.end(reason="logout")
    visit.session, visit.is_anonymous, visit.cookie = None, True, ""
    visit.data.clear()
    visit.kept = {}
