"""The session engine for Django: what its own engines do, and what they do not, on a real server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import django
import pytest
from django.conf import settings
from django.contrib.sessions.backends.base import CreateError, UpdateError

settings.configure(
    ALLOWED_HOSTS=["*"],
    CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    OMNISTATE={},
    ROOT_URLCONF="django_shop",
    SECRET_KEY="x" * 50,
    SESSION_ENGINE="omnistate.web.django",
    USE_TZ=True,
)
django.setup()

from django.contrib.sessions.backends.cache import SessionStore as CacheStore  # noqa: E402
from django.test import AsyncClient as AsyncBrowser  # noqa: E402
from django.test import Client as Browser  # noqa: E402
from django.test import override_settings  # noqa: E402
from django.utils import timezone  # noqa: E402

import omnistate.sync  # noqa: E402
from omnistate.web import _django  # noqa: E402
from omnistate.web.django import SessionStore  # noqa: E402


@pytest.fixture(autouse=True)
async def clients(url: str, tenant: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setattr(_django, "_clients", made := _django.Clients())
    with override_settings(OMNISTATE={"url": url, "tenant": tenant}):
        yield
        await made.close()


@pytest.fixture
def omni(url: str, tenant: str) -> Iterator[omnistate.sync.Client]:
    with omnistate.sync.connect(url, tenant=tenant) as client:
        yield client


@pytest.fixture
def session() -> SessionStore:
    return SessionStore()


def saved(**data: Any) -> SessionStore:
    session = SessionStore()
    session.update(data)
    session.save()
    return session


def again(session: SessionStore) -> SessionStore:
    return SessionStore(session.session_key)


def test_a_new_one_is_empty_and_stored_nowhere(session: SessionStore, omni: omnistate.sync.Client) -> None:
    assert (session.modified, session.accessed, session.is_empty()) == (False, False, True)
    assert session.get("cat") is None
    assert session.session_key is None
    assert list(omni.customers()) == []


def test_what_is_put_in_is_there_the_next_time() -> None:
    session = saved(cat="dog", nested={"list": [1, 2.5, None, "ä\ud7ff"], "number": 2**70})
    assert session.session_key
    assert again(session)["nested"] == {"list": [1, 2.5, None, "ä\ud7ff"], "number": 2**70}
    assert dict(again(session).items()) == dict(session.items())


def test_what_is_nested_is_stored_and_what_is_removed_is_gone() -> None:
    session = saved(lines=["cup"], old=1)
    other = again(session)
    other["lines"].append("pot")
    del other["old"]
    other.save()
    assert dict(again(session).items()) == {"lines": ["cup", "pot"]}


def test_loading_makes_no_session_of_a_key_that_names_none() -> None:
    for key in ("someunknownkey" * 3, "user-7." + "a" * 43, "short", ""):
        session = SessionStore(key)
        assert session.load() == {}
        assert session.session_key is None
        assert not session.exists(key)


def test_saving_under_such_a_key_stores_nothing_there() -> None:
    session = SessionStore("1")  # no key that could be one: a new session
    session.save()
    assert session.session_key not in (None, "1")
    session = SessionStore("user-7." + "a" * 43)
    with pytest.raises(UpdateError):
        session.save()
    with pytest.raises(CreateError):
        saved().save(must_create=True)


def test_what_was_ended_elsewhere_is_not_brought_back_by_a_late_save() -> None:
    session = saved(cat="dog")
    slow = again(session)
    assert slow["cat"] == "dog"
    session.delete()
    slow["cat"] = "bird"
    with pytest.raises(UpdateError):
        slow.save()
    assert not session.exists(session.session_key)
    assert again(session).load() == {}


def test_a_session_of_somebody_erased_is_as_one_that_ended(omni: omnistate.sync.Client) -> None:
    session, other = saved(cat="dog"), saved(cat="cow")
    key, slow = session.session_key, again(session)
    assert slow["cat"] == "dog"
    omni.erase(omni.session(key).customer_id, actor="ana", reason="asked for it")
    slow["cat"] = "bird"
    with pytest.raises(UpdateError):
        slow.save()
    assert not session.exists(key)
    assert again(session).load() == {}
    session.cycle_key()
    assert session.session_key != key
    session.delete(key)
    assert again(other)["cat"] == "cow"


def test_deleting_flushing_and_clearing() -> None:
    session = saved(cat="dog")
    key = session.session_key
    session.delete("another" * 8)  # which there is not
    assert session.exists(key)
    session.clear()
    session.save()
    assert again(session).load() == {}
    assert session.exists(key)
    session["cat"] = "dog"
    session.flush()
    assert (session.session_key, session.is_empty(), session.modified) == (None, True, True)
    assert not session.exists(key)


def test_cycling_the_key_keeps_what_is_in_it() -> None:
    session = saved(cat="dog")
    session["unsaved"] = 1
    before = session.session_key
    session.cycle_key()
    assert session.session_key != before
    assert dict(again(session).items()) == {"cat": "dog"}
    session.save()
    assert dict(again(session).items()) == {"cat": "dog", "unsaved": 1}
    fresh = SessionStore()
    fresh["a"] = 1
    fresh.cycle_key()
    assert again(fresh)["a"] == 1


def test_two_that_cycle_one_key_at_once_both_have_a_session() -> None:
    session = saved(cat="dog")
    one, other = again(session), again(session)
    one.load(), other.load()
    one.cycle_key(), other.cycle_key()
    assert len({session.session_key, one.session_key, other.session_key}) == 3
    assert again(one)["cat"] == "dog"


@pytest.mark.parametrize("expiry", [10, timedelta(seconds=10), "datetime"])
def test_its_own_time(omni: omnistate.sync.Client, expiry: Any) -> None:
    session = saved(cat="dog")
    session.set_expiry(timezone.now() + timedelta(seconds=10) if expiry == "datetime" else expiry)
    session.save()
    assert 5 < again(session).get_expiry_age() <= 10
    left = omni.session(session.session_key).load().idle_deadline - timezone.now()
    assert timedelta(seconds=5) < left < timedelta(seconds=11)
    session.set_expiry(None)
    session.save()
    left = omni.session(session.session_key).load().idle_deadline - timezone.now()
    assert left > timedelta(seconds=settings.SESSION_COOKIE_AGE - 60)


def test_a_key_is_the_users_once_somebody_has_signed_in(omni: omnistate.sync.Client) -> None:
    session = saved(cat="dog")
    before = session.session_key
    session.cycle_key()
    session["_auth_user_id"] = "7"
    session.save()
    assert dict(again(session).items()) == {"cat": "dog", "_auth_user_id": "7"}
    assert again(session).exists(session.session_key)
    assert not SessionStore(before).load()
    assert len(omni.customer("user-7").sessions()) == 1
    omni.customer("user-7").revoke_sessions()
    assert again(session).load() == {}


def test_what_expired_is_cleared(omni: omnistate.sync.Client) -> None:
    session = saved(cat="dog")
    session.set_expiry(-1)
    session.save()
    deadline = timezone.now() + timedelta(seconds=10)
    while again(session).load() and timezone.now() < deadline:
        pass
    assert again(session).load() == {}
    SessionStore.clear_expired()


def change_together(store: Any, many: int = 8) -> dict[str, Any]:
    """Each of several requests puts a key of its own into one session, all at once."""
    session = store()
    session["first"] = 0
    session.save()
    gate = threading.Barrier(many)

    def request(number: int) -> None:
        mine = store(session.session_key)
        mine[f"key{number}"] = number
        gate.wait(10)
        mine.save()

    threads = [threading.Thread(target=request, args=(number,)) for number in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return dict(store(session.session_key).items())


def test_requests_that_change_different_keys_at_once_keep_all_of_them() -> None:
    assert change_together(SessionStore) == {"first": 0} | {f"key{number}": number for number in range(8)}


def test_djangos_own_engines_lose_them() -> None:
    """What the test above would see with one, so that it tests something."""
    assert len(change_together(CacheStore)) < 9


async def test_the_verbs_of_the_event_loop_do_the_same() -> None:
    session = SessionStore()
    await session.aset("cat", "dog")
    await session.asave()
    key = session.session_key
    assert await session.aexists(key)
    assert await SessionStore(key).aget("cat") == "dog"
    slow = SessionStore(key)
    assert await slow.aget("cat") == "dog"
    await session.acycle_key()
    assert session.session_key != key
    assert await SessionStore(session.session_key).aload() == {"cat": "dog"}
    await session.aset("_auth_user_id", "7")
    await session.asave()
    assert await SessionStore(session.session_key).aload() == {"cat": "dog", "_auth_user_id": "7"}
    await session.aflush()
    await slow.aset("cat", "bird")
    with pytest.raises(UpdateError):
        await slow.asave()
    with pytest.raises(CreateError):
        again_there = SessionStore()
        await again_there.acreate()
        await again_there.asave(must_create=True)
    await SessionStore.aclear_expired()
    many = [SessionStore(again_there.session_key) for _ in range(8)]
    for number, one in enumerate(many):
        await one.aset(f"key{number}", number)
    await asyncio.gather(*(one.asave() for one in many))
    assert await SessionStore(again_there.session_key).aload() == {f"key{number}": number for number in range(8)}


def test_a_browser_keeps_its_session() -> None:
    browser = Browser()
    assert browser.get("/put", {"colour": "red"}).json() == {"colour": "red"}
    cookie = browser.cookies["sessionid"]
    assert cookie["httponly"]
    first = cookie.value
    assert browser.get("/put", {"size": "9"}).json() == {"colour": "red", "size": "9"}
    assert browser.get("/enter", {"as": "7"}).json()["_auth_user_id"] == "7"
    assert browser.cookies["sessionid"].value != first
    assert browser.get("/put").json() == {"colour": "red", "size": "9", "_auth_user_id": "7"}
    assert browser.get("/leave").json() == {}
    assert browser.cookies["sessionid"].value == ""
    assert browser.get("/put").json() == {}


async def test_an_asynchronous_browser_too() -> None:
    browser = AsyncBrowser()
    assert (await browser.get("/aput", {"colour": "red"})).json() == {"colour": "red"}
    assert (await browser.get("/aput", {"size": "9"})).json() == {"colour": "red", "size": "9"}


def test_settings_that_are_missing_are_told() -> None:
    with override_settings(OMNISTATE=None), pytest.raises(Exception, match="OMNISTATE must be"):
        SessionStore("a" * 60).load()
