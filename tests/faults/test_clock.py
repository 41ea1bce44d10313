"""The server's clock is set an hour ahead or back while everything goes on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta

import pytest
from redis import Redis

import omnistate
from machine import SteppedServer
from omnistate.ops import Sweeper
from omnistate.store import Keyspace

HOUR = timedelta(hours=1)


class Hold(omnistate.State, name="ClockHold", ttl=HOUR):
    seats: dict[str, int] = {}
    note: str = ""


RECENT = omnistate.List(int, name="clock_recent", ttl=HOUR)
TASKS = omnistate.WorkQueue(str, name="clock_tasks")
JOBS = omnistate.WorkQueue(str, name="clock_jobs", ttl=HOUR)


@pytest.fixture
def server(mortal_valkey: SteppedServer) -> Iterator[SteppedServer]:
    yield mortal_valkey
    mortal_valkey.set_clock(0 * HOUR)


def test_the_servers_clock_can_be_stepped(server: SteppedServer) -> None:
    raw = Redis(port=server.port)
    for hours in (3, -2, 0):
        server.set_clock(hours * HOUR)
        assert abs(raw.time()[0] - time.time() - hours * 3600) < 5  # type: ignore[index]
    raw.close()


async def test_what_has_ended_without_an_event_is_whole_when_the_clock_goes_back(
    server: SteppedServer, tenant: str
) -> None:
    """The server removes keys by its own clock, at once or later: so not yet, or the document would be there and empty."""
    async with omnistate.connect(server.url, tenant=tenant) as omni:
        ana, log = omni.customer("ana"), Keyspace(tenant).customer("ana")
        version = await ana.state(Hold).put("seats", "a1", 1)
        await ana.collection(RECENT).append(1)
        await ana.collection(JOBS).put("job")
        server.set_clock(1.9 * HOUR)
        with Redis(port=server.port) as raw:
            assert raw.exists(log.key("doc", "ClockHold")) == 1
        assert not (await ana.state(Hold).read()).exists
        assert await ana.collection(RECENT).all() == []
        server.set_clock(0 * HOUR)
        held = await ana.state(Hold).read()
        assert (held.value, held.version) == (Hold(seats={"a1": 1}), version.offset)
        assert await ana.collection(RECENT).all() == [1]
        item = await ana.collection(JOBS).claim()
        assert item is not None
        await item.done()


@pytest.fixture
async def omni(server: SteppedServer, tenant: str) -> AsyncIterator[omnistate.Client]:
    async with omnistate.connect(server.url, tenant=tenant) as client:
        yield client


class Tally(omnistate.State, name="ClockTally"):
    count: int = 0
    entries: dict[str, int] = {}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def test_writers_and_watchers_lose_and_double_nothing(omni: omnistate.Client, server: SteppedServer) -> None:
    ana = omni.customer("ana")
    tally, recent = ana.state(Tally), ana.collection(RECENT)
    counts: list[int] = []
    versions: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    seen: list[tuple[int, int]] = []
    done = asyncio.Event()

    async def write(name: str) -> None:
        while not done.is_set():
            counts.append(await tally.increment("count"))
            written = await tally.update(lambda value: value.entries.update({name: value.entries.get(name, 0) + 1}))
            versions[name].append(written.version)

    async def watch() -> None:
        async with contextlib.aclosing(tally.watch()) as changes:
            async for change in changes:
                seen.append((change.version, change.value.count))  # noqa: PERF401 - it is looked at meanwhile

    watcher = asyncio.create_task(watch())
    writers = [asyncio.create_task(write(name)) for name in versions]
    for hours in (1, 0, -1, 0, 1, -1):
        target = len(counts) + 50
        await until(lambda target=target: len(counts) > target)  # type: ignore[misc]
        await asyncio.to_thread(server.set_clock, hours * HOUR)
        await recent.append(hours)
    done.set()
    await asyncio.gather(*writers)
    held = await tally.read()
    assert sorted(counts) == list(range(1, held.value.count + 1))
    assert held.value.entries == {name: len(found) for name, found in versions.items()}
    assert all(found == sorted(set(found)) for found in versions.values())
    await until(lambda: seen[-1][0] == held.version)
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)
    assert [pair[0] for pair in seen] == sorted({pair[0] for pair in seen})
    assert [pair[1] for pair in seen] == sorted(pair[1] for pair in seen)
    assert seen[-1][1] == held.value.count


async def test_deadlines_fire_once_while_sweepers_run(omni: omnistate.Client, server: SteppedServer) -> None:
    customers = [omni.customer(f"customer-{number}") for number in range(8)]
    events: dict[str, list[str]] = {customer.id: [] for customer in customers}

    async def follow(customer: omnistate.Customer, after: omnistate.Position) -> None:
        async with contextlib.aclosing(customer.events(after=after)) as found:
            async for event in found:
                events[customer.id].append(event.type)

    async def told(count: int) -> None:
        await until(lambda: all(len(found) >= count for found in events.values()))

    tasks = []
    for customer in customers:
        await customer.state(Hold).put("seats", "a1", 1, ttl=HOUR / 6)
        await customer.collection(RECENT).append(1)
        tasks.append(asyncio.create_task(follow(customer, await customer.position())))
    for _ in range(2):
        sweeper = Sweeper(omni.services, omni.keyspace)
        tasks.append(asyncio.create_task(sweeper.run(every=timedelta(milliseconds=1))))
    expected: list[str] = []
    for minutes, more in ((-60, []), (5, []), (20, ["state.entries_expired"]), (-60, []), (20, []),
                          (62, ["state.expired", "collection.expired"]), (0, []), (120, []), (-60, [])):  # fmt: skip
        expected += more
        await asyncio.to_thread(server.set_clock, timedelta(minutes=minutes))
        await told(len(expected))
        for customer in customers:  # what is over is over, and nothing else is
            assert (await customer.state(Hold).read()).exists == ("state.expired" not in expected)
            assert (await customer.state(Hold).get()).seats == ({} if expected else {"a1": 1})
            assert bool(await customer.collection(RECENT).all()) == ("collection.expired" not in expected)
    for customer in customers:
        await customer.state(Hold).patch(note="again")
    expected += ["state.changed"]
    await told(len(expected))
    for found in events.values():
        assert sorted(found) == sorted(expected)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_leases_sessions_and_operation_ids_outlive_a_step_back(
    omni: omnistate.Client, server: SteppedServer
) -> None:
    ana = omni.customer("ana")
    jobs, recent = ana.collection(TASKS), ana.collection(RECENT)
    session = await ana.start_session("web", idle=HOUR / 2)
    await jobs.put("first", "second")
    item = await jobs.claim(lease=HOUR / 6)
    assert item is not None
    assert await recent.append(1, operation_id="once") == 1
    server.set_clock(-1 * HOUR)
    assert await recent.append(1, operation_id="once") == 1
    await session.touch()
    other = await jobs.claim(lease=HOUR / 6)
    assert other is not None
    assert other.value == "second"
    assert await jobs.claim() is None  # both are leased, if for an hour longer
    await item.extend(HOUR / 6)
    await item.done()
    server.set_clock(1 * HOUR)
    assert await recent.append(1, operation_id="once") == 1
    again = await jobs.claim(lease=HOUR / 6)
    assert again is not None
    assert (again.value, again.attempt) == ("second", 2)
    with pytest.raises(omnistate.SessionExpired):
        await session.touch()
    with pytest.raises(omnistate.LeaseLost):
        await other.done()
    server.set_clock(0 * HOUR)
    with pytest.raises(omnistate.LeaseLost):
        await other.done()
    await again.done()
    assert await jobs.size() == (0, 0)


@pytest.mark.parametrize("ended_by", ["sweep", "write"])
async def test_a_stale_writer_does_not_bring_back_what_has_ended(
    omni: omnistate.Client, server: SteppedServer, tenant: str, ended_by: str
) -> None:
    async with omnistate.connect(server.url, tenant=tenant) as other:
        hold = omni.customer("ana").state(Hold)
        await hold.update(lambda value: value.seats.update(a1=1))  # which this client remembers
        stale = await other.customer("ana").state(Hold).read()
        server.set_clock(1.5 * HOUR)
        if ended_by == "sweep":
            assert await other.sweep() == 1
        else:
            await other.customer("ana").state(Hold).patch(note="new")
        server.set_clock(0 * HOUR)
        with pytest.raises(omnistate.Conflict):
            await hold.set(Hold(note="stale"), expect=stale)
        written = await hold.update(lambda value: value.seats.update(b2=2))
        note = "" if ended_by == "sweep" else "new"
        assert written.value == await hold.get() == Hold(seats={"b2": 2}, note=note)
        assert written.version > stale.version


async def test_a_turn_that_was_reserved_by_a_clock_ahead_keeps_nobody_off(
    omni: omnistate.Client, server: SteppedServer, tenant: str
) -> None:
    server.set_clock(1 * HOUR)
    tally, log = omni.customer("ana").state(Tally), Keyspace(tenant).customer("ana")
    await tally.increment("count")
    with Redis(port=server.port) as raw:
        seconds, microseconds = raw.time()  # type: ignore[misc]
        raw.hset(log.meta, "turn", f"doc:ClockTally somebody {seconds * 1000 + microseconds // 1000 + 50}")
        raw.hset(log.meta, "s", b"0" + raw.hget(log.meta, "s")[1:])  # type: ignore[index]
    server.set_clock(0 * HOUR)
    async with asyncio.timeout(1):
        assert await tally.increment("count") == 2
