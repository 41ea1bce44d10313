"""Sessions while replies are lost, clients and servers die, sweepers race, and the server's clock is stepped."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

import omnistate
from dying import Dies, die_at
from machine import SteppedServer
from omnistate import Client, Session, SessionExpired, SessionRotated
from omnistate.ops import Sweeper
from proxy import Proxy

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


class Draft(omnistate.State, name="FaultDraft", ttl=HOUR * 24):
    text: str = ""


@pytest.fixture
async def proxy(mortal_valkey: SteppedServer) -> AsyncIterator[Proxy]:
    mortal_valkey.set_clock(timedelta())
    async with Proxy(mortal_valkey.port) as made:
        yield made
    mortal_valkey.set_clock(timedelta())


@pytest.fixture
async def lossy(proxy: Proxy, tenant: str) -> AsyncIterator[Client]:
    """A client whose replies the proxy may lose."""
    async with omnistate.connect(proxy.url, tenant=tenant) as client:
        yield client


@pytest.fixture
async def omni(mortal_valkey: SteppedServer, proxy: Proxy, tenant: str) -> AsyncIterator[Client]:
    async with omnistate.connect(mortal_valkey.url, tenant=tenant) as client:
        yield client


@pytest.fixture
def dies(proxy: Proxy, mortal_valkey: SteppedServer, tenant: str) -> Dies:
    return partial(die_at, proxy=proxy, server=mortal_valkey, tenant=tenant)


async def lives(session: Session) -> bool:
    try:
        await session.load()
    except SessionExpired:
        return False
    return True


async def endings(omni: Client) -> list[tuple[str, str]]:
    return [(one.id, one.reason) for one in (await omni.session_endings()).endings]


@pytest.mark.parametrize("function", [b"_session_start", b"_session_touch", b"_session_load", b"_session_rotate", b"_session_end",
                                      b"_session_reauthenticated", b"_session_revoke", b"_session_list", b"_session_write",
                                      b"_session_read", b"_session_endings", b"_log_expire", b"_change"])  # fmt: skip
async def test_a_call_whose_reply_was_lost_is_made_once(lossy: Client, proxy: Proxy, function: bytes) -> None:
    ana = lossy.customer("ana")

    async def lose(work: Awaitable[Any]) -> Any:
        proxy.lose_next_reply_to = function
        return await work

    first = await lose(ana.start_session("web", reauthenticate=MINUTE))
    await lose(first.touch())
    second = await lose(first.rotate())
    assert (await lose(second.load())).id == second.id
    assert await lose(second.reauthenticated()) is not None
    await lose(second.state(Draft).patch(text="x"))
    assert (await lose(second.state(Draft).get())).text == "x"
    assert [one.id for one in await lose(ana.sessions())] == [second.id]
    third = await lose(ana.start_session("web", policy=omnistate.SessionPolicy(at_most=1)))
    assert await lose(ana.revoke_session(third.id))
    fourth, fifth = await lose(ana.start_session("web")), await lose(ana.start_session("mobile"))
    assert await lose(fourth.end())
    assert not await fourth.end()
    await lose(ana.revoke_sessions())
    sixth = await lose(ana.start_session("web"))

    async def leave() -> None:
        async with ana.transaction() as tx:
            tx.end(sixth)

    await lose(leave())
    await lose(lossy.sweep())
    proxy.lose_next_reply_to = function
    assert await endings(lossy) == [
        (first.id, "rotated"),
        (second.id, "evicted"),
        (third.id, "revoked"),
        (fourth.id, "logout"),
        (fifth.id, "revoked"),
        (sixth.id, "logout"),
    ]
    assert proxy.lost >= 1
    assert await ana.sessions() == []


async def test_a_session_that_is_killed_on_its_way_to_another_customer_is_found_at_one_of_them(
    omni: Client, dies: Dies
) -> None:
    for call in itertools.count(1):
        visitor, ana = omni.customer(f"visitor-{call}"), omni.customer(f"ana-{call}")
        old = await visitor.start_session("web")

        async def move(client: Client, token: str = old.token, to: str = ana.id) -> None:
            await client.session(token).rotate(to=to)

        died = await dies(call, move)
        if not died:
            assert call == 4
            return
        assert await lives(old)  # whoever has no other token goes on
        if call < 3:
            new = await old.rotate(to=ana.id)
            assert new.id in [one.id for one in await ana.sessions()]
            assert len(await ana.sessions()) == call  # one more, where the first try had begun one that nobody knows
        else:
            with pytest.raises(SessionRotated):  # the new token is lost: a login, when the grace is over
                await old.rotate(to=ana.id)
        assert await visitor.sessions() == []
        assert [reason for id_, reason in await endings(omni) if id_ == old.id] == ["merged"]


@pytest.mark.parametrize("function", [b"_agenda_take", b"_log_due", b"_log_expire"])
async def test_what_a_killed_sweeper_leaves_is_ended_once_by_another(
    omni: Client, dies: Dies, function: bytes, mortal_valkey: SteppedServer
) -> None:
    sessions = [await omni.customer(f"customer-{number % 6}").start_session("web") for number in range(12)]
    for session in sessions:
        await session.state(Draft).patch(text="x")
    mortal_valkey.step_clock(HOUR)

    async def sweep(client: Client) -> None:
        sweepers = [Sweeper(client.services, client.keyspace) for _ in range(2)]
        await asyncio.gather(*(one.sweep() for one in sweepers))

    assert await dies(function, sweep)
    other = Sweeper(omni.services, omni.keyspace)
    await other.sweep()
    mortal_valkey.step_clock(timedelta(seconds=31))  # the lease of the one that died
    await asyncio.gather(other.sweep(), Sweeper(omni.services, omni.keyspace).sweep())
    assert await other.sweep() == 0
    assert sorted(await endings(omni)) == sorted((one.id, "idle") for one in sessions)
    for session in sessions:
        assert not await lives(session)


async def test_nothing_of_a_session_rests_on_a_clock_that_is_always_right(
    omni: Client, mortal_valkey: SteppedServer
) -> None:
    ana = omni.customer("ana")
    seen, unseen = await ana.start_session("web", idle=HOUR / 2), await ana.start_session("web", idle=HOUR / 2)
    rotated = await unseen.rotate(grace=5 * MINUTE)
    assert await lives(unseen)
    mortal_valkey.set_clock(-HOUR)
    assert not await lives(unseen)  # the grace of a token is never longer than it was said
    assert await lives(rotated)
    mortal_valkey.set_clock(HOUR)
    assert not await lives(seen)
    assert not await lives(rotated)
    with pytest.raises(SessionExpired):
        await seen.touch()
    mortal_valkey.set_clock(timedelta(0))
    assert await lives(seen)  # nobody was told that it ended
    await seen.touch()
    mortal_valkey.set_clock(HOUR)
    assert await omni.sweep() == 2
    mortal_valkey.set_clock(timedelta(0))
    for session in (seen, unseen, rotated):
        assert not await lives(session)  # an end that was told is final
        with pytest.raises(SessionExpired):
            await session.touch()
    assert Counter(await endings(omni)) == {(unseen.id, "rotated"): 1, (seen.id, "idle"): 1, (rotated.id, "idle"): 1}


async def test_a_touch_that_races_with_sweepers_revives_nothing(omni: Client, mortal_valkey: SteppedServer) -> None:
    customers = [omni.customer(f"customer-{number}") for number in range(6)]
    sessions = [await one.start_session("web", idle=10 * MINUTE) for one in customers for _ in range(4)]
    told: Counter[str] = Counter()
    done = asyncio.Event()

    async def touch(session: Session) -> None:
        while not done.is_set():
            was_told = told[session.id]
            try:
                await session.touch()
            except SessionExpired:
                pass
            else:
                assert not was_told, session.id

    sweepers = [
        asyncio.create_task(Sweeper(omni.services, omni.keyspace).run(every=timedelta(milliseconds=1)))
        for _ in range(3)
    ]
    touching = [asyncio.create_task(touch(one)) for one in sessions[::2]]
    for minutes in (9, 18, 5, 40, 0):
        await asyncio.to_thread(mortal_valkey.set_clock, minutes * MINUTE)
        async with asyncio.timeout(30):
            for _ in range(3):
                told.update({id_: 1 for id_, _ in await endings(omni)})
    async with asyncio.timeout(30):
        while len(told) < len(sessions):
            told.update({id_: 1 for id_, _ in await endings(omni)})
            await asyncio.to_thread(mortal_valkey.step_clock, 20 * MINUTE)
    done.set()
    await asyncio.gather(*touching)
    for task in sweepers:
        task.cancel()
    await asyncio.gather(*sweepers, return_exceptions=True)
    ended = await endings(omni)
    assert Counter(ended) == {(one.id, "idle"): 1 for one in sessions}
    for session in sessions:
        assert not await lives(session)
    for customer in customers:
        assert await customer.sessions() == []


async def test_a_revocation_reaches_every_client_at_once(omni: Client, lossy: Client, proxy: Proxy) -> None:
    """Once it is acknowledged nobody's touch is answered, and one whose answer is lost has done it all the same."""
    ana = omni.customer("ana")
    for number in range(20):
        sessions = [await ana.start_session("web") for _ in range(3)]
        if number % 2:
            proxy.lose_next_reply_to = b"_session_revoke"
        await lossy.customer("ana").revoke_sessions(keep=sessions[2])
        results = await asyncio.gather(*(one.touch() for one in sessions), return_exceptions=True)
        assert [isinstance(one, SessionExpired) for one in results] == [True, True, False]
        assert len(await ana.sessions()) == 1
