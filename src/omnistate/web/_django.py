"""The session engine for Django. Each verb is written twice, as Django has it: for threads, and for the event loop."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import Generator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast
from weakref import WeakKeyDictionary

import omnistate
import omnistate.sync
from omnistate.errors import CustomerErased, CustomerMerged, SessionExpired, SessionRotated
from omnistate.web._data import WebSession, apply, changes, encoded

try:
    from django.conf import settings
    from django.contrib.auth import SESSION_KEY
    from django.contrib.sessions.backends.base import CreateError, SessionBase, UpdateError
    from django.core.exceptions import ImproperlyConfigured
except ImportError as missing:  # pragma: no cover - an extra
    raise ImportError('omnistate.web.django needs Django: pip install "omnistate[django]"') from missing

CHANNEL = "web"
_ABSOLUTE, _SHORTEST = timedelta(days=400), timedelta(seconds=1)
_GONE = (SessionExpired, SessionRotated, CustomerMerged, CustomerErased)
_AT_ONCE = timedelta(0)  # a key that somebody else may know is of no use once its user has signed in
T = TypeVar("T")
Steps: TypeAlias = Generator[
    Any, Any, T
]  # yields what a verb of either API gives: a value, or what is to be awaited for it


class Clients:
    """One client of a process for its threads, and one of each event loop, opened when it is first used."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid, self._client = 0, cast("omnistate.sync.Client | None", None)
        self._of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[omnistate.Client]] = (
            WeakKeyDictionary()
        )

    def of_threads(self) -> omnistate.sync.Client:
        with self._lock:
            if self._client is None or self._pid != os.getpid():  # a worker that was forked has its own
                self._client, self._pid = omnistate.sync.connect(**_options()).__enter__(), os.getpid()
            return self._client

    async def of_loop(self) -> omnistate.Client:
        loop = asyncio.get_running_loop()
        opening = self._of_loops.get(loop)
        if opening is None or (opening.done() and (opening.cancelled() or opening.exception())):
            opening = self._of_loops[loop] = loop.create_task(omnistate.connect(**_options()).__aenter__())
        return await asyncio.shield(opening)

    async def close(self) -> None:
        """Ends them, those of other loops apart."""
        if self._client is not None:
            self._client.close()
        opening = self._of_loops.pop(asyncio.get_running_loop(), None)
        if opening is not None:
            await (await opening).close()


def _options() -> dict[str, Any]:
    found = getattr(settings, "OMNISTATE", None)
    if not isinstance(found, dict):
        raise ImproperlyConfigured('OMNISTATE must be what omnistate.connect takes: {"url": "redis://localhost"}')
    return found


_clients = Clients()


def _run(steps: Steps[T]) -> T:
    try:
        found = next(steps)
        while True:
            found = steps.send(found)
    except StopIteration as done:
        return cast("T", done.value)


async def _arun(steps: Steps[T]) -> T:
    try:
        step = next(steps)
        while True:
            try:
                found = await step
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(found)
    except StopIteration as done:
        return cast("T", done.value)


class SessionStore(SessionBase):  # type: ignore[misc]  # Django has no types
    """A session as Django's views know it, `request.session`."""

    def __init__(self, session_key: str | None = None) -> None:
        super().__init__(session_key)
        self._kept: dict[str, bytes] = {}  # the data as it is stored, as far as is known

    # The verbs of Django, for threads and for the event loop.

    def load(self) -> dict[str, Any]:
        """The data; {} where there is no such session, whose key is forgotten then. One round trip."""
        return _run(self._loading(_clients.of_threads()))

    async def aload(self) -> dict[str, Any]:
        """As `load`."""
        return await _arun(self._loading(await _clients.of_loop()))

    def exists(self, session_key: str) -> bool:
        """Whether a session has this key. One round trip."""
        return _run(self._looking(_clients.of_threads(), session_key))

    async def aexists(self, session_key: str) -> bool:
        """As `exists`."""
        return await _arun(self._looking(await _clients.of_loop(), session_key))

    def create(self) -> None:
        """A new session with what is in this one. Two round trips."""
        _run(self._creating(_clients.of_threads()))

    async def acreate(self) -> None:
        """As `create`."""
        await _arun(self._creating(await _clients.of_loop()))

    def save(self, must_create: bool = False) -> None:
        """Stores what has changed, and moves the deadline. Raises `UpdateError` for a session that has ended meanwhile.

        Two round trips; four where somebody has signed in since: the session gets a new key then, as the user's.
        """
        _run(self._saving(_clients.of_threads(), must_create=must_create))

    async def asave(self, must_create: bool = False) -> None:
        """As `save`."""
        await _arun(self._saving(await _clients.of_loop(), must_create=must_create))

    def delete(self, session_key: str | None = None) -> None:
        """Ends the session. One round trip."""
        _run(self._deleting(_clients.of_threads(), session_key or self.session_key))

    async def adelete(self, session_key: str | None = None) -> None:
        """As `delete`."""
        await _arun(self._deleting(await _clients.of_loop(), session_key or self.session_key))

    def cycle_key(self) -> None:
        """Another key for the same session, in one call: there is no moment with two of them, or none. One round trip."""
        _run(self._cycling(_clients.of_threads()))

    async def acycle_key(self) -> None:
        """As `cycle_key`."""
        await _arun(self._cycling(await _clients.of_loop()))

    @classmethod
    def clear_expired(cls) -> None:
        """What has expired has ended, whether this runs or not; it makes the events."""
        _clients.of_threads().sweep()

    @classmethod
    async def aclear_expired(cls) -> None:
        """As `clear_expired`."""
        await (await _clients.of_loop()).sweep()

    # What they do.

    def _loading(self, omni: Any) -> Steps[dict[str, Any]]:
        try:
            stored: WebSession = yield omni.session(self.session_key).state(WebSession).get()
        except _GONE:
            self._session_key = None
            return {}
        self._kept, serializer = encoded(stored.data), self.serializer()
        return {name: serializer.loads(text.encode("latin-1")) for name, text in stored.data.items()}

    def _looking(self, omni: Any, key: str | None) -> Steps[bool]:
        try:
            yield omni.session(key).load()
        except _GONE:
            return False
        return True

    def _creating(self, omni: Any) -> Steps[None]:
        data = getattr(self, "_session_cache", {})
        customer = omni.customer(_customer_of(data))
        session = yield customer.start_session(CHANNEL, idle=self._idle(data), absolute=_ABSOLUTE)
        yield from self._writing(session, data)
        self.modified = True

    def _writing(self, session: Any, data: dict[str, Any]) -> Steps[None]:
        """All of it, into a session that has none."""
        texts = self._texts(data)
        yield session.state(WebSession).set(WebSession(data=texts, is_anonymous=not _is_of_user(data)))
        self._session_key, self._session_cache, self._kept = session.token, data, encoded(texts)

    def _saving(self, omni: Any, *, must_create: bool) -> Steps[None]:
        if must_create and (yield from self._looking(omni, self.session_key)):
            raise CreateError
        if must_create or self.session_key is None:
            return (yield from self._creating(omni))
        if not hasattr(self, "_session_cache"):
            self._session_cache = yield from self._loading(omni)
        try:
            return (yield from self._storing(omni.session(self.session_key), self._session_cache))
        except _GONE:
            raise UpdateError from None

    def _storing(self, session: Any, data: dict[str, Any]) -> Steps[None]:
        yield session.touch(idle=self._idle(data))
        if _is_of_user(data) and session.customer_id != _customer_of(data):  # somebody has signed in
            session = yield session.rotate(to=_customer_of(data), grace=_AT_ONCE)
            return (yield from self._writing(session, data))
        now = encoded(self._texts(data))
        wanted = changes(self._kept, now)
        if wanted:
            yield session.state(WebSession).update(partial(apply, wanted=wanted))
            self._kept = now
        return None

    def _deleting(self, omni: Any, key: str | None) -> Steps[None]:
        if key is not None:
            with suppress(CustomerErased):  # it ended with them
                yield omni.session(key).end()

    def _cycling(self, omni: Any) -> Steps[None]:
        if not hasattr(self, "_session_cache") and self.session_key is not None:
            self._session_cache = yield from self._loading(omni)
        if self.session_key is None:
            return (yield from self._creating(omni))
        try:
            session = yield omni.session(self.session_key).rotate(grace=_AT_ONCE)
        except _GONE:  # it ended meanwhile, or another request has just given it another key
            return (yield from self._creating(omni))
        self._session_key, self.modified = session.token, True
        return None

    def _texts(self, data: dict[str, Any]) -> dict[str, str]:
        serializer = self.serializer()
        return {str(name): serializer.dumps(value).decode("latin-1") for name, value in data.items()}

    def _idle(self, data: dict[str, Any]) -> timedelta:
        """How long the session lasts from now on: `set_expiry`, else SESSION_COOKIE_AGE."""
        seconds = self.get_expiry_age(expiry=data.get("_session_expiry"))
        return min(max(timedelta(seconds=seconds), _SHORTEST), _ABSOLUTE)


def _is_of_user(data: dict[str, Any]) -> bool:
    return SESSION_KEY in data


def _customer_of(data: dict[str, Any]) -> str:
    return f"user-{data[SESSION_KEY]}" if SESSION_KEY in data else f"anon_{secrets.token_hex(16)}"
