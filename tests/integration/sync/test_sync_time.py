"""Deadlines: of documents, of their entries, of collections; and the sweeper, which makes their end an event."""

# Written by tools/unasync.py from tests/integration/test_time.py: change that one.

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from redis import Redis

import omnistate.sync as omnistate
from omnistate.store import Keyspace
from omnistate.sync import Client

SECOND = timedelta(seconds=1)


class Hold(omnistate.State, ttl=timedelta(hours=1), lifetime=timedelta(hours=3)):
    seats: dict[str, int] = {}
    note: str = ""


RECENT = omnistate.List(str, name="hourly", ttl=timedelta(hours=1))
LOCKS = omnistate.Map(str, int, name="locks")


def keys(tenant: str, customer: str = "ana") -> Any:
    return Keyspace(tenant).customer(customer)


def shift(raw: Redis, tenant: str, entry: str, *, ms: int, customer: str = "ana") -> None:
    """Moves all deadlines of a document, as if so much time had passed."""
    log = keys(tenant, customer)
    words = raw.hget(log.meta, "doc:" + entry).decode().split(" ")  # type: ignore[union-attr]
    words[0] = f"{int(words[0]) - ms:013}" if words[0] != "9" * 13 else words[0]
    words[7:] = [
        f"{n}={int(v) - ms}" if n in ("born", "next") else f"{n}={v}" for n, v in (w.split("=") for w in words[7:])
    ]
    raw.hset(log.meta, "doc:" + entry, " ".join(words))
    document = log.key("doc", entry)
    if raw.type(document) == b"hash":
        for field, value in raw.hgetall(document).items():  # type: ignore[union-attr]
            if field.startswith(b"!"):
                raw.hset(document, field, int(value) - ms)
    due = log.key("doc", entry, ".due")
    for field, score in raw.zrange(due, 0, -1, withscores=True):  # type: ignore[union-attr]
        raw.zadd(due, {field: score - ms})
    raw.zadd(log.written[4], {log.name: 0})


def types(customer: omnistate.Customer, after: omnistate.Position) -> list[str]:
    end = customer.position()
    found: list[str] = []
    if end == after:
        return found
    for event in customer.events(after=after):
        found.append(event.type)
        if event.position == end:
            return found
    return found


@pytest.fixture
def start(omni: Client) -> omnistate.Position:
    return omni.customer("ana").position()


def test_a_deadline_moves_with_each_write_but_not_beyond_the_lifetime(omni: Client, raw: Redis, tenant: str) -> None:
    hold, hour = omni.customer("ana").state(Hold), 3_600_000

    def left() -> float:
        seconds, microseconds = raw.time()  # type: ignore[misc]
        deadline = int(raw.hget(keys(tenant).meta, "doc:Hold").split()[0])  # type: ignore[union-attr]
        return deadline - seconds * 1000 - microseconds / 1000

    hold.patch(note="x")
    assert abs(left() - hour) < 5000
    for _ in range(2):
        shift(raw, tenant, "Hold", ms=hour - 60_000)
        assert abs(left() - 60_000) < 5000
        hold.put("seats", "a1", 1)
        assert abs(left() - hour) < 5000
    shift(raw, tenant, "Hold", ms=hour - 60_000)
    hold.put("seats", "a2", 1)
    assert abs(left() - 3 * 60_000) < 5000  # what is left of its three hours
    shift(raw, tenant, "Hold", ms=hour)
    assert not (hold.read()).exists
    hold.patch(note="again")
    assert hold.get() == Hold(note="again")
    assert abs(left() - hour) < 5000  # a new life


def test_a_write_that_finds_an_expired_document_says_so_first(
    omni: Client, raw: Redis, tenant: str, start: omnistate.Position
) -> None:
    ana = omni.customer("ana")
    hold, recent = ana.state(Hold), ana.collection(RECENT)
    hold.put("seats", "a1", 1)
    stale = hold.read()
    recent.append("old")
    shift(raw, tenant, "Hold", ms=7_200_000)
    shift(raw, tenant, "hourly", ms=7_200_000)
    before = ana.position()
    with pytest.raises(omnistate.Conflict):
        hold.set(Hold(note="stale"), expect=stale)
    hold.put("seats", "b2", 2)
    assert recent.append("new") == 1
    assert types(ana, before) == ["state.expired", "state.changed", "collection.expired", "collection.changed"]
    assert (hold.get()).seats == {"b2": 2}
    assert recent.all() == ["new"]
    assert omni.sweep() == 0


def test_an_entry_has_a_deadline_of_its_own(omni: Client, raw: Redis, tenant: str, start: omnistate.Position) -> None:
    hold = omni.customer("ana").state(Hold)
    hold.put("seats", "a1", 1, ttl=60 * SECOND)
    hold.put("seats", "a2", 2, ttl=600 * SECOND)
    hold.put("seats", "a3", 3)
    hold.patch(note="soon gone")
    hold.expire("note", after=60 * SECOND)
    hold.put("seats", "a1", 7)  # the deadline stays
    hold.increment("seats", "a1")
    hold.update(lambda value: value.seats.update(a1=9))
    assert hold.get() == Hold(seats={"a1": 9, "a2": 2, "a3": 3}, note="soon gone")
    shift(raw, tenant, "Hold", ms=61_000)
    assert hold.get() == Hold(seats={"a2": 2, "a3": 3})  # also before it is swept
    before = omni.customer("ana").position()
    seen = hold.read()
    assert omni.sweep() == 1
    assert types(omni.customer("ana"), before) == ["state.entries_expired"]
    with pytest.raises(omnistate.Conflict):
        hold.set(Hold(), expect=seen)  # it changed, by itself
    assert hold.get() == Hold(seats={"a2": 2, "a3": 3})
    shift(raw, tenant, "Hold", ms=600_000)
    assert hold.increment("seats", "a2") == 1  # what had expired counts as absent
    assert hold.get() == Hold(seats={"a2": 1, "a3": 3})
    assert raw.hgetall(keys(tenant).key("doc", "Hold")).keys() == {b"seats:a2", b"seats:a3"}  # type: ignore[union-attr]


def test_a_sum_is_not_refused_for_what_an_expired_entry_was(omni: Client, raw: Redis, tenant: str) -> None:
    hold = omni.customer("ana").state(Hold)
    hold.put("seats", "a1", 2**53 - 1, ttl=60 * SECOND)
    hold.put("seats", "a2", 1)
    shift(raw, tenant, "Hold", ms=61_000)
    assert hold.increment("seats", "a1") == 1
    assert (hold.get()).seats == {"a1": 1, "a2": 1}


def test_an_update_never_starts_from_an_entry_that_has_expired(omni: Client, raw: Redis, tenant: str) -> None:
    hold = omni.customer("ana").state(Hold)
    hold.put("seats", "a1", 1, ttl=60 * SECOND)
    hold.update(lambda value: value.seats.update(b=1))
    shift(raw, tenant, "Hold", ms=61_000)
    seen = (hold.update(lambda value: dict(value.seats))).result
    assert seen == {"b": 1}


def test_a_refused_update_never_goes_on_with_an_entry_that_has_expired(
    omni: Client, connect: Any, raw: Redis, tenant: str
) -> None:
    hold = omni.customer("ana").state(Hold)
    hold.update(lambda value: value.seats.update(b=1))  # this process knows the document
    with connect() as other:
        other.customer("ana").state(Hold).put("seats", "a1", 1, ttl=60 * SECOND)
    shift(raw, tenant, "Hold", ms=61_000)
    seen = []
    written = hold.update(lambda value: (seen.append(dict(value.seats)), setattr(value, "note", "new")))
    assert seen[-1] == {"b": 1}
    assert written.value == hold.get() == Hold(seats={"b": 1}, note="new")


@pytest.mark.parametrize("how", ["set", "transaction"])
def test_what_was_read_before_an_entry_expired_is_not_brought_back(
    omni: Client, raw: Redis, tenant: str, start: omnistate.Position, how: str
) -> None:
    ana = omni.customer("ana")
    hold = ana.state(Hold)
    hold.put("seats", "a1", 1, ttl=60 * SECOND)
    hold.put("seats", "a2", 2)
    before, seen = ana.position(), hold.read()
    shift(raw, tenant, "Hold", ms=61_000)

    def write() -> None:
        if how == "set":
            hold.set(seen.value, expect=seen)
        else:
            with ana.transaction() as tx:
                tx.state(Hold).expect(seen)
                tx.state(Hold).set(seen.value)

    with pytest.raises(omnistate.Conflict):
        write()
    assert types(ana, before) == ["state.entries_expired"]  # noted at once
    assert omni.sweep() == 0
    seen = hold.read()
    write()
    assert hold.get() == Hold(seats={"a2": 2})


def test_a_deadline_goes_with_its_entry_and_can_be_taken_away(omni: Client, raw: Redis, tenant: str) -> None:
    hold = omni.customer("ana").state(Hold)
    hold.put("seats", "a1", 1, ttl=60 * SECOND)
    hold.put("seats", "a2", 1, ttl=60 * SECOND)
    hold.expire("seats", "a2", after=None)
    hold.expire("seats", "none", after=SECOND)
    hold.remove("seats", "a1")
    hold.put("seats", "a1", 2)
    shift(raw, tenant, "Hold", ms=61_000)
    assert (hold.get()).seats == {"a1": 2, "a2": 1}
    assert omni.sweep() == 0
    with pytest.raises(omnistate.InvalidValue):
        hold.expire("seats", after=SECOND)


def test_what_belongs_to_a_session_or_a_conversation_or_the_tenant_has_a_place_of_its_own(omni: Client) -> None:
    ana = omni.customer("ana")
    session, talk = ana.start_session("web"), ana.start_conversation("web")
    ana.state(Hold).patch(note="ana")
    session.state(Hold).patch(note="session")
    talk.state(Hold).patch(note="talk")
    assert [(one.state(Hold).get()).note for one in (ana, session, talk)] == ["ana", "session", "talk"]
    for place in (ana, session, talk, omni):
        assert place.collection(RECENT).append(type(place).__name__) == 1
    assert session.collection(RECENT).all() == ["Session"]
    assert omni.collection(RECENT).all() == ["Client"]
    with pytest.raises(omnistate.InvalidDeclaration, match="ttl"):
        session.state(type("Endless", (omnistate.State,), {}))


def test_the_agenda_forgets_a_customer_of_whom_nothing_is_left(omni: Client, raw: Redis, tenant: str) -> None:
    omni.customer("ana").state(Hold).patch(note="x")
    log = keys(tenant)
    raw.delete(*log.written[:3], log.key("doc", "Hold"))
    raw.zadd(log.written[4], {log.name: 0})
    assert omni.sweep() == 0
    assert not raw.exists(log.written[3])
    assert raw.zscore(log.written[4], log.name) is None


class Kept(omnistate.State):
    seats: dict[str, int] = {}


class Summed(Kept):
    total: int = 0

    def merge(self, other: Summed) -> None:
        self.total += other.total
        self.seats.update(other.seats)


def _die(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["set", "delete", "put"])
def test_undo_never_brings_back_an_entry_that_has_expired(
    omni: Client, raw: Redis, tenant: str, start: omnistate.Position, how: str
) -> None:
    class Past(omnistate.State, history=10):
        seats: dict[str, int] = {}

    ana = omni.customer("ana").via("desk", actor="agent")
    past = ana.state(Past)
    past.put("seats", "a1", 1, ttl=60 * SECOND)
    past.put("seats", "a2", 2)
    before = ana.position()
    if how == "put":
        past.put("seats", "a1", 7)
    shift(raw, tenant, "Past", ms=61_000)
    if how == "set":
        past.set(Past(seats={"b": 3}))
    elif how == "delete":
        past.delete()
    if how == "put":  # the past ends where the entry did
        with pytest.raises(omnistate.PositionLost):
            past.undo(actor="agent", since=before)
    else:
        past.undo(actor="agent", since=before)
    assert past.get() == Past(seats={"a2": 2})
