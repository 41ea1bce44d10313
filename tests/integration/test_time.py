"""Deadlines: of documents, of their entries, of collections; and the sweeper, which makes their end an event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from redis import Redis

import omnistate
from omnistate import Client
from omnistate.ops import Sweeper
from omnistate.store import Keyspace
from shop import Cart

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


async def types(customer: omnistate.Customer, after: omnistate.Position) -> list[str]:
    end = await customer.position()
    found: list[str] = []
    if end == after:
        return found
    async for event in customer.events(after=after):
        found.append(event.type)
        if event.position == end:
            return found
    return found


@pytest.fixture
async def start(omni: Client) -> omnistate.Position:
    return await omni.customer("ana").position()


async def test_a_deadline_moves_with_each_write_but_not_beyond_the_lifetime(
    omni: Client, raw: Redis, tenant: str
) -> None:
    hold, hour = omni.customer("ana").state(Hold), 3_600_000

    def left() -> float:
        seconds, microseconds = raw.time()  # type: ignore[misc]
        deadline = int(raw.hget(keys(tenant).meta, "doc:Hold").split()[0])  # type: ignore[union-attr]
        return deadline - seconds * 1000 - microseconds / 1000

    await hold.patch(note="x")
    assert abs(left() - hour) < 5000
    for _ in range(2):
        shift(raw, tenant, "Hold", ms=hour - 60_000)
        assert abs(left() - 60_000) < 5000
        await hold.put("seats", "a1", 1)
        assert abs(left() - hour) < 5000
    shift(raw, tenant, "Hold", ms=hour - 60_000)
    await hold.put("seats", "a2", 1)
    assert abs(left() - 3 * 60_000) < 5000  # what is left of its three hours
    shift(raw, tenant, "Hold", ms=hour)
    assert not (await hold.read()).exists
    await hold.patch(note="again")
    assert await hold.get() == Hold(note="again")
    assert abs(left() - hour) < 5000  # a new life


async def test_the_sweeper_makes_an_expiry_an_event_once(
    omni: Client, raw: Redis, tenant: str, start: omnistate.Position
) -> None:
    ana = omni.customer("ana")
    await ana.state(Hold).patch(note="x")
    await ana.collection(RECENT).append("x")
    await ana.state(Cart).patch(note="stays")
    assert await omni.sweep() == 0
    shift(raw, tenant, "Hold", ms=7_200_000)
    shift(raw, tenant, "hourly", ms=7_200_000)
    before = await ana.position()
    sweepers = [Sweeper(omni.services, omni.keyspace) for _ in range(5)]
    assert sum(await asyncio.gather(*(one.sweep() for one in sweepers))) == 2
    assert sorted(await types(ana, before)) == ["collection.expired", "state.expired"]
    assert await omni.sweep() == 0
    log = keys(tenant)
    assert raw.smembers(log.written[3]) == {b"doc:Cart"}
    assert not raw.exists(log.key("doc", "Hold"))
    assert not raw.exists(log.key("doc", "hourly"))
    assert (await ana.state(Cart).get()).note == "stays"


async def test_a_sweeper_that_dies_after_taking_is_replaced_after_its_lease(
    omni: Client, raw: Redis, tenant: str
) -> None:
    ana = omni.customer("ana")
    await ana.state(Hold).patch(note="x")
    shift(raw, tenant, "Hold", ms=7_200_000)
    dying = Sweeper(omni.services, omni.keyspace)

    async def die(name: str) -> int:
        raise RuntimeError(name)

    dying._end = die  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        await dying.sweep()
    assert await omni.sweep() == 0  # it is leased
    raw.zincrby(keys(tenant).written[4], -30_001, keys(tenant).name)
    assert await omni.sweep() == 1


async def test_a_write_that_finds_an_expired_document_says_so_first(
    omni: Client, raw: Redis, tenant: str, start: omnistate.Position
) -> None:
    ana = omni.customer("ana")
    hold, recent = ana.state(Hold), ana.collection(RECENT)
    await hold.put("seats", "a1", 1)
    stale = await hold.read()
    await recent.append("old")
    shift(raw, tenant, "Hold", ms=7_200_000)
    shift(raw, tenant, "hourly", ms=7_200_000)
    before = await ana.position()
    with pytest.raises(omnistate.Conflict):
        await hold.set(Hold(note="stale"), expect=stale)
    await hold.put("seats", "b2", 2)
    assert await recent.append("new") == 1
    assert await types(ana, before) == ["state.expired", "state.changed", "collection.expired", "collection.changed"]
    assert (await hold.get()).seats == {"b2": 2}
    assert await recent.all() == ["new"]
    assert await omni.sweep() == 0


async def test_an_expiry_is_seen_by_watchers(omni: Client, raw: Redis, tenant: str) -> None:
    ana = omni.customer("ana")
    await ana.state(Hold).patch(note="x")
    await ana.collection(RECENT).append("x")
    seen: list[Any] = []

    async def watch(changes: Any) -> None:
        async for change in changes:
            seen.append(change.value)
            if change.version == 0:
                return

    tasks = [
        asyncio.create_task(watch(ana.state(Hold).watch())),
        asyncio.create_task(watch(ana.collection(RECENT).watch())),
    ]
    await until(lambda: len(seen) == 2)
    shift(raw, tenant, "Hold", ms=7_200_000)
    shift(raw, tenant, "hourly", ms=7_200_000)
    await omni.sweep()
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    assert Hold() in seen
    assert [] in seen


async def until(condition: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + 5
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.005)


async def test_an_entry_has_a_deadline_of_its_own(
    omni: Client, raw: Redis, tenant: str, start: omnistate.Position
) -> None:
    hold = omni.customer("ana").state(Hold)
    await hold.put("seats", "a1", 1, ttl=60 * SECOND)
    await hold.put("seats", "a2", 2, ttl=600 * SECOND)
    await hold.put("seats", "a3", 3)
    await hold.patch(note="soon gone")
    await hold.expire("note", after=60 * SECOND)
    await hold.put("seats", "a1", 7)  # the deadline stays
    await hold.increment("seats", "a1")
    await hold.update(lambda value: value.seats.update(a1=9))
    assert await hold.get() == Hold(seats={"a1": 9, "a2": 2, "a3": 3}, note="soon gone")
    shift(raw, tenant, "Hold", ms=61_000)
    assert await hold.get() == Hold(seats={"a2": 2, "a3": 3})  # also before it is swept
    before = await omni.customer("ana").position()
    seen = await hold.read()
    assert await omni.sweep() == 1
    assert await types(omni.customer("ana"), before) == ["state.entries_expired"]
    with pytest.raises(omnistate.Conflict):
        await hold.set(Hold(), expect=seen)  # it changed, by itself
    assert await hold.get() == Hold(seats={"a2": 2, "a3": 3})
    shift(raw, tenant, "Hold", ms=600_000)
    assert await hold.increment("seats", "a2") == 1  # what had expired counts as absent
    assert await hold.get() == Hold(seats={"a2": 1, "a3": 3})
    assert raw.hgetall(keys(tenant).key("doc", "Hold")).keys() == {b"seats:a2", b"seats:a3"}  # type: ignore[union-attr]


async def test_a_sum_is_not_refused_for_what_an_expired_entry_was(omni: Client, raw: Redis, tenant: str) -> None:
    hold = omni.customer("ana").state(Hold)
    await hold.put("seats", "a1", 2**53 - 1, ttl=60 * SECOND)
    await hold.put("seats", "a2", 1)
    shift(raw, tenant, "Hold", ms=61_000)
    assert await hold.increment("seats", "a1") == 1
    assert (await hold.get()).seats == {"a1": 1, "a2": 1}


async def test_an_update_never_starts_from_an_entry_that_has_expired(omni: Client, raw: Redis, tenant: str) -> None:
    hold = omni.customer("ana").state(Hold)
    await hold.put("seats", "a1", 1, ttl=60 * SECOND)
    await hold.update(lambda value: value.seats.update(b=1))
    shift(raw, tenant, "Hold", ms=61_000)
    seen = (await hold.update(lambda value: dict(value.seats))).result
    assert seen == {"b": 1}


async def test_a_refused_update_never_goes_on_with_an_entry_that_has_expired(
    omni: Client, connect: Any, raw: Redis, tenant: str
) -> None:
    hold = omni.customer("ana").state(Hold)
    await hold.update(lambda value: value.seats.update(b=1))  # this process knows the document
    async with connect() as other:
        await other.customer("ana").state(Hold).put("seats", "a1", 1, ttl=60 * SECOND)
    shift(raw, tenant, "Hold", ms=61_000)
    seen = []
    written = await hold.update(lambda value: (seen.append(dict(value.seats)), setattr(value, "note", "new")))
    assert seen[-1] == {"b": 1}
    assert written.value == await hold.get() == Hold(seats={"b": 1}, note="new")


@pytest.mark.parametrize("how", ["set", "transaction"])
async def test_what_was_read_before_an_entry_expired_is_not_brought_back(
    omni: Client, raw: Redis, tenant: str, start: omnistate.Position, how: str
) -> None:
    ana = omni.customer("ana")
    hold = ana.state(Hold)
    await hold.put("seats", "a1", 1, ttl=60 * SECOND)
    await hold.put("seats", "a2", 2)
    before, seen = await ana.position(), await hold.read()
    shift(raw, tenant, "Hold", ms=61_000)

    async def write() -> None:
        if how == "set":
            await hold.set(seen.value, expect=seen)
        else:
            async with ana.transaction() as tx:
                tx.state(Hold).expect(seen)
                tx.state(Hold).set(seen.value)

    with pytest.raises(omnistate.Conflict):
        await write()
    assert await types(ana, before) == ["state.entries_expired"]  # noted at once
    assert await omni.sweep() == 0
    seen = await hold.read()
    await write()
    assert await hold.get() == Hold(seats={"a2": 2})


async def test_a_deadline_goes_with_its_entry_and_can_be_taken_away(omni: Client, raw: Redis, tenant: str) -> None:
    hold = omni.customer("ana").state(Hold)
    await hold.put("seats", "a1", 1, ttl=60 * SECOND)
    await hold.put("seats", "a2", 1, ttl=60 * SECOND)
    await hold.expire("seats", "a2", after=None)
    await hold.expire("seats", "none", after=SECOND)
    await hold.remove("seats", "a1")
    await hold.put("seats", "a1", 2)
    shift(raw, tenant, "Hold", ms=61_000)
    assert (await hold.get()).seats == {"a1": 2, "a2": 1}
    assert await omni.sweep() == 0
    with pytest.raises(omnistate.InvalidValue):
        await hold.expire("seats", after=SECOND)


async def test_an_expired_entry_is_seen_by_watchers(omni: Client, raw: Redis, tenant: str) -> None:
    ana = omni.customer("ana")
    await ana.state(Hold).put("seats", "a1", 1, ttl=60 * SECOND)
    await ana.collection(LOCKS).put("x", 1, ttl=60 * SECOND)
    await ana.collection(LOCKS).put("y", 2)
    seen: list[Any] = []

    async def watch(changes: Any, last: Any) -> None:
        async for change in changes:
            seen.append(change.value)
            if change.value == last:
                return

    tasks = [
        asyncio.create_task(watch(ana.state(Hold).watch(), Hold())),
        asyncio.create_task(watch(ana.collection(LOCKS).watch(), {"y": 2})),
    ]
    await until(lambda: len(seen) == 2)
    shift(raw, tenant, "Hold", ms=61_000)
    shift(raw, tenant, "locks", ms=61_000)
    assert await omni.sweep() == 2
    await asyncio.wait_for(asyncio.gather(*tasks), 5)


async def test_a_client_that_sweeps_does_so_by_itself(connect: Any, raw: Redis, tenant: str) -> None:
    async with connect(sweep=True) as omni:
        recent = omni.customer("ana").collection(omnistate.List(int, name="brief", ttl=timedelta(milliseconds=30)))
        start = await omni.customer("ana").position()
        await recent.append(1)
        async with asyncio.timeout(5):
            async for event in omni.customer("ana").events(after=start):
                if event.type == "collection.expired":
                    break


async def test_what_belongs_to_a_session_or_a_conversation_or_the_tenant_has_a_place_of_its_own(omni: Client) -> None:
    ana = omni.customer("ana")
    session, talk = await ana.start_session("web"), await ana.start_conversation("web")
    await ana.state(Hold).patch(note="ana")
    await session.state(Hold).patch(note="session")
    await talk.state(Hold).patch(note="talk")
    assert [(await one.state(Hold).get()).note for one in (ana, session, talk)] == ["ana", "session", "talk"]
    for place in (ana, session, talk, omni):
        assert await place.collection(RECENT).append(type(place).__name__) == 1
    assert await session.collection(RECENT).all() == ["Session"]
    assert await omni.collection(RECENT).all() == ["Client"]
    with pytest.raises(omnistate.InvalidDeclaration, match="ttl"):
        session.state(type("Endless", (omnistate.State,), {}))


async def test_the_agenda_forgets_a_customer_of_whom_nothing_is_left(omni: Client, raw: Redis, tenant: str) -> None:
    await omni.customer("ana").state(Hold).patch(note="x")
    log = keys(tenant)
    raw.delete(*log.written[:3], log.key("doc", "Hold"))
    raw.zadd(log.written[4], {log.name: 0})
    assert await omni.sweep() == 0
    assert not raw.exists(log.written[3])
    assert raw.zscore(log.written[4], log.name) is None


class Kept(omnistate.State):
    seats: dict[str, int] = {}


class Summed(Kept):
    total: int = 0

    def merge(self, other: Summed) -> None:
        self.total += other.total
        self.seats.update(other.seats)


@pytest.mark.parametrize("kind", [Kept, Summed])
async def test_a_merge_that_goes_on_after_an_entry_has_expired_is_finished(
    omni: Client, raw: Redis, tenant: str, kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ana, ben = omni.customer("ben"), omni.customer("ana")
    await ben.state(kind).put("seats", "a1", 1, ttl=60 * SECOND)
    await ben.state(kind).put("seats", "a2", 2)
    if kind is Summed:
        await ben.state(kind).patch(total=5)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("omnistate.customer._api.finish_merge", _die)
        await ana.merge(ben)
    shift(raw, tenant, kind.__name__, ms=61_000)
    await ana.merge(ben)
    found = await ana.state(kind).get()
    assert found.seats == {"a1": 1, "a2": 2}  # as it was when they were merged
    assert getattr(found, "total", 5) == 5
    with pytest.raises(omnistate.CustomerMerged):
        await ben.state(kind).get()


def _die(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["set", "delete", "put"])
async def test_undo_never_brings_back_an_entry_that_has_expired(
    omni: Client, raw: Redis, tenant: str, start: omnistate.Position, how: str
) -> None:
    class Past(omnistate.State, history=10):
        seats: dict[str, int] = {}

    ana = omni.customer("ana").via("desk", actor="agent")
    past = ana.state(Past)
    await past.put("seats", "a1", 1, ttl=60 * SECOND)
    await past.put("seats", "a2", 2)
    before = await ana.position()
    if how == "put":
        await past.put("seats", "a1", 7)
    shift(raw, tenant, "Past", ms=61_000)
    if how == "set":
        await past.set(Past(seats={"b": 3}))
    elif how == "delete":
        await past.delete()
    if how == "put":  # the past ends where the entry did
        with pytest.raises(omnistate.PositionLost):
            await past.undo(actor="agent", since=before)
    else:
        await past.undo(actor="agent", since=before)
    assert await past.get() == Past(seats={"a2": 2})


@pytest.mark.parametrize(("how", "is_late"), [("set", False), ("delete", False), ("remove", False), ("set", True)])
async def test_undo_gives_an_entry_its_deadline_back(
    omni: Client, raw: Redis, tenant: str, how: str, is_late: bool
) -> None:
    class Past(omnistate.State, history=10):
        seats: dict[str, int] = {}

    ana = omni.customer("ana").via("desk", actor="agent")
    past = ana.state(Past)
    await past.put("seats", "a1", 1, ttl=SECOND if is_late else 60 * SECOND)
    await past.put("seats", "a2", 2)
    before = await ana.position()
    await past.put("seats", "a1", 7)
    await past.remove("seats", "a2")
    if how == "set":
        await past.set(Past(seats={"b": 3}))
    elif how == "delete":
        await past.delete()
    else:
        await past.remove("seats", "a1")
    if is_late:
        await asyncio.sleep(1.01)
    await past.undo(actor="agent", since=before)
    assert await past.get() == Past(seats={"a2": 2} if is_late else {"a1": 1, "a2": 2})
    shift(raw, tenant, "Past", ms=61_000)
    assert await past.get() == Past(seats={"a2": 2})
