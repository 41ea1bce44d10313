"""Replies that never come: every write is applied once, and what stays unknown is said."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, cast

import pytest

import omnistate
from machine import Server, raw_client
from omnistate import CUSTOMER
from omnistate.store import _connection, _link
from proxy import Proxy
from shop import Cart

IN_FLIGHT, WAITING = 2_000, 5_000


@pytest.fixture(params=["valkey", "redis"])
async def proxy(request: pytest.FixtureRequest) -> AsyncIterator[Proxy]:
    async with Proxy(request.getfixturevalue(request.param).port) as made:
        yield made


@pytest.fixture
def url(proxy: Proxy) -> str:
    return proxy.url


async def test_a_write_whose_reply_was_lost_is_applied_once(omni: omnistate.Client, proxy: Proxy) -> None:
    cart = omni.customer("ana").state(Cart)
    for number in range(1, 21):
        proxy.lose_next_reply_to = b"_state_write"
        assert await cart.increment("visits") == number
    assert proxy.lost == 20
    assert (await cart.get()).visits == 20


async def test_an_update_whose_reply_was_lost_is_applied_once_and_keeps_its_result(
    omni: omnistate.Client, proxy: Proxy
) -> None:
    cart = omni.customer("ana").state(Cart)
    for number in range(1, 21):
        proxy.lose_next_reply_to = b"_state_write"
        written = await cart.update(Cart.add, "cup")
        assert (written.result, written.value.items) == (number, {"cup": number})
    assert (await cart.get()).items == {"cup": 20}


async def test_shared_writes_with_lost_replies_lose_and_double_nothing(omni: omnistate.Client, proxy: Proxy) -> None:
    cart = omni.customer("ana").state(Cart)
    written = 0

    async def write() -> None:
        nonlocal written
        while proxy.lost < 12:
            if proxy.lose_next_reply_to is None and written % 40 == 0:
                proxy.lose_next_reply_to = b"_state_write"
            await cart.update(Cart.add, "cup")
            written += 1

    await asyncio.gather(*(write() for _ in range(16)))
    proxy.lose_next_reply_to = None
    assert (await cart.get()).items == {"cup": written}


@pytest.mark.parametrize("function", [b"_conversation_start", b"_conversation_say", b"_conversation_hand_off", b"_queue_put",
                                      b"_queue_lease", b"_conversation_take", b"_queue_settle", b"_identity_claim",
                                      b"_customer_note", b"_identity_settle", b"_identity_move", b"_customer_freeze", b"_customer_empty",
                                      b"_session_start", b"_change"])  # fmt: skip
async def test_every_flow_survives_a_lost_reply_at_every_step(
    omni: omnistate.Client, proxy: Proxy, function: bytes
) -> None:
    async def lossy(work: Any) -> Any:
        proxy.lose_next_reply_to = function
        return await work

    ana = await lossy(omni.identify("web", "ana"))
    phone = await lossy(omni.identify("whatsapp", "ana"))
    await phone.state(Cart).update(Cart.add, "cup", 2)
    await lossy(ana.merge(phone))
    assert (await ana.state(Cart).get()).items == {"cup": 2}
    talk = await lossy(ana.start_conversation("web"))
    await lossy(talk.say(CUSTOMER, "one"))
    await lossy(talk.hand_off("agents"))
    claimed = await lossy(omni.queue("agents").claim("maria"))
    assert claimed is not None
    assert await omni.queue("agents").depth() == 0
    assert (await talk.owner()).epoch == 3
    assert [one.text for one in await talk.messages()] == ["one"]
    session = await lossy(ana.start_session("web"))
    await session.touch()
    assert await lossy(ana.state(Cart).delete())
    assert proxy.lost >= 1


async def test_what_stays_unknown_is_said_and_can_be_asked_again(proxy: Proxy, tenant: str) -> None:
    async with omnistate.connect(proxy.url, tenant=tenant, timeout=timedelta(milliseconds=400)) as omni:
        cart = omni.customer("ana").state(Cart)
        await cart.update(Cart.add, "cup")
        proxy.silent = True
        with pytest.raises(omnistate.AmbiguousWrite) as caught:
            await cart.increment("visits", operation_id="visit-1")
        assert caught.value.operation_id == "visit-1"
        proxy.silent = False
        assert await cart.increment("visits", operation_id="visit-1") == 1
        assert (await cart.get()).visits == 1


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less room than there is, so that a few calls fill it."""
    for module in (_connection, _link):
        monkeypatch.setattr(module, "MAX_IN_FLIGHT", IN_FLIGHT)
    monkeypatch.setattr(_link, "MAX_WAITING", WAITING)


async def test_a_refusal_after_a_lost_reply_does_not_say_that_nothing_was_applied(
    mortal_valkey: Server, tenant: str
) -> None:
    """The server runs full in between: the second try is refused, while the first one was applied."""
    with contextlib.closing(raw_client(mortal_valkey.url)) as raw:
        async with Proxy(mortal_valkey.port) as proxy, omnistate.connect(proxy.url, tenant=tenant) as omni:
            cart = omni.customer("ana").state(Cart)
            await cart.get()
            proxy.on_loss = lambda: cast("None", raw.config_set("maxmemory", 1))
            proxy.lose_next_reply_to = b"_state_write"
            with pytest.raises(omnistate.AmbiguousWrite) as raised:
                await cart.increment("visits")
            assert isinstance(raised.value.__cause__, omnistate.OutOfMemory)
            raw.config_set("maxmemory", 0)
            assert await omni.outcome(raised.value) is not None
            assert (await cart.get()).visits == 1


@pytest.mark.parametrize("gone", ["functions", "server"])
async def test_a_server_that_comes_back_without_functions_gets_them_again(
    mortal_valkey: Server, tenant: str, gone: str
) -> None:
    """Also where the connection is lost while they are loaded."""
    with contextlib.closing(raw_client(mortal_valkey.url)) as raw:
        async with Proxy(mortal_valkey.port) as proxy, omnistate.connect(proxy.url, tenant=tenant) as omni:
            cart = omni.customer("ana").state(Cart)
            await cart.increment("visits")
            raw.function_flush()
            if gone == "server":
                proxy.lose_next_reply_to = b"\r\nLOAD\r\n"
                proxy.on_loss = mortal_valkey.crash
            assert await cart.increment("visits") == 2
            assert proxy.lost == (gone == "server")


async def test_calls_wait_for_room_before_they_are_refused(proxy: Proxy, tenant: str, narrow: None) -> None:
    async with omnistate.connect(proxy.url, tenant=tenant, timeout=timedelta(seconds=20)) as omni:
        cart = omni.customer("ana").state(Cart)
        await cart.update(Cart.add, "cup")
        proxy.silent = True
        calls = [asyncio.create_task(cart.get()) for _ in range(IN_FLIGHT + WAITING)]
        await asyncio.sleep(0)
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(30_000):
            with pytest.raises(omnistate.Overloaded):
                await cart.get()
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - kilobytes < 10_000  # who is refused takes no room
        proxy.silent = False
        assert all(value.items == {"cup": 1} for value in await asyncio.gather(*calls))
        assert (await cart.get()).items == {"cup": 1}


async def test_who_finds_no_room_before_the_deadline_is_refused(proxy: Proxy, tenant: str, narrow: None) -> None:
    async with omnistate.connect(proxy.url, tenant=tenant, timeout=timedelta(seconds=1)) as omni:
        cart = omni.customer("ana").state(Cart)
        await cart.update(Cart.add, "cup")
        proxy.silent = True
        calls = [asyncio.create_task(cart.increment("visits")) for _ in range(IN_FLIGHT + 100)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        proxy.silent = False
        assert {type(outcome) for outcome in outcomes} <= {
            omnistate.AmbiguousWrite,
            omnistate.StoreUnavailable,
            omnistate.Overloaded,
        }
        visits = (await cart.get()).visits
        assert visits <= sum(isinstance(outcome, omnistate.AmbiguousWrite) for outcome in outcomes)


async def test_a_read_without_an_answer_is_unavailable_within_the_deadline(proxy: Proxy, tenant: str) -> None:
    async with omnistate.connect(proxy.url, tenant=tenant, timeout=timedelta(milliseconds=400)) as omni:
        proxy.silent = True
        began = asyncio.get_running_loop().time()
        with pytest.raises(omnistate.StoreUnavailable):
            await omni.customer("ana").state(Cart).get()
        assert asyncio.get_running_loop().time() - began < 2
        proxy.silent = False


async def test_a_cancelled_call_never_gives_its_reply_to_another(omni: omnistate.Client, proxy: Proxy) -> None:
    """Thousands of calls, a third cancelled at random moments; every answer must be the one that was asked for."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    customers = [omni.customer(f"customer-{number}") for number in range(50)]
    for number, customer in enumerate(customers):
        await customer.state(Cart).set(Cart(visits=number))
    answered = 0

    async def ask(number: int) -> None:
        nonlocal answered
        value = await customers[number].state(Cart).get()
        assert value.visits == number
        answered += 1

    for _ in range(60):
        proxy.delay = chance.choice([0, 0, 0.001])
        tasks = [asyncio.create_task(ask(chance.randrange(50))) for _ in range(100)]
        doomed = chance.sample(tasks, 33)
        for task in doomed:
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError | None) for result in results), results
    assert answered >= 60 * 67


async def test_cuts_at_random_moments_lose_and_double_nothing(omni: omnistate.Client, proxy: Proxy) -> None:
    cart = omni.customer("ana").state(Cart)
    seen: list[int] = []

    async def watch() -> None:
        async for change in cart.watch():
            seen.append(change.value.items.get("cup", 0))
            if seen[-1] == 600:
                return

    async def write() -> None:
        for _ in range(75):
            await cart.update(Cart.add, "cup")
            await asyncio.sleep(0.001)

    async def cut() -> None:
        for _ in range(10):
            await asyncio.sleep(0.03)
            proxy.cut()

    watcher = asyncio.create_task(watch())
    await asyncio.gather(cut(), *(write() for _ in range(8)))
    assert (await cart.get()).items == {"cup": 600}
    await asyncio.wait_for(watcher, 10)
    assert seen == sorted(set(seen))


@pytest.mark.parametrize("fault", ["silent", "deaf"])
async def test_a_call_of_unknown_outcome_is_made_again_under_its_id(proxy: Proxy, tenant: str, fault: str) -> None:
    """The id was made by omnistate; given back by the caller it is the same operation, whether it was applied or not."""
    async with omnistate.connect(proxy.url, tenant=tenant, timeout=timedelta(milliseconds=400)) as omni:
        cart = omni.customer("ana").state(Cart)
        await cart.update(Cart.add, "cup")
        ids = []
        for call in (cart.increment("visits"), cart.update(Cart.add, "cup")):
            await cart.get()  # the connection is there, so the call is sent
            setattr(proxy, fault, True)
            with pytest.raises(omnistate.AmbiguousWrite) as unknown:
                await call
            setattr(proxy, fault, False)
            ids.append(unknown.value.operation_id)
            was_applied = await omni.outcome(unknown.value)
            assert was_applied == (
                ids[1:] == [] and fault == "silent"
            )  # the update rests on what was before the increment
            assert await omni.customer("ana").outcome(ids[-1]) == was_applied
        for _ in range(3):
            assert await cart.increment("visits", operation_id=ids[0]) == 1
            await cart.update_once(ids[1], Cart.add, "cup")
        assert await cart.get() == Cart(items={"cup": 2}, visits=1)


visited = omnistate.List(int, name="visited")
tasks: omnistate.WorkQueue[int] = omnistate.WorkQueue(int, name="tasks")


async def test_collection_operations_whose_replies_were_lost_are_applied_once(
    omni: omnistate.Client, proxy: Proxy
) -> None:
    ana = omni.customer("ana")
    seen, queue = ana.collection(visited), ana.collection(tasks)
    visits = ana.collection(omnistate.Counter(name="visits_lost"))
    words = ana.collection(omnistate.Map(str, int, name="words"))
    board = ana.collection(omnistate.SortedSet(str, name="board_lost"))

    async def lossy(work: Any) -> Any:
        proxy.lose_next_reply_to = b"_change"
        return await work

    for number in range(10):
        assert await lossy(seen.append(number)) == number + 1
        assert await lossy(visits.add(3)) == 3 * (number + 1)
        assert await lossy(words.increment("cup")) == number + 1
        assert await lossy(board.increment("ana", 0.5)) == 0.5 * (number + 1)
        assert len(await lossy(queue.put(number))) == 1
    for number in range(5):
        assert await lossy(seen.popleft()) == number
        item = await lossy(queue.claim())
        assert (item.value, item.attempt) == (number, 1)
        await lossy(item.extend(timedelta(minutes=1)))
        await lossy(item.done())
    assert await lossy(board.pop_highest()) == [("ana", 5.0)]
    assert await lossy(words.pop("cup")) == 10
    assert await lossy(visits.clear())
    assert proxy.lost == 10 * 5 + 5 * 4 + 3
    assert (await seen.all(), await queue.size(), await visits.get()) == ([5, 6, 7, 8, 9], (5, 0), 0)
    assert (await board.all(), await words.all()) == ({}, {})


async def test_workers_whose_replies_are_lost_get_each_item_once(omni: omnistate.Client, proxy: Proxy) -> None:
    queue = omni.customer("ana").collection(tasks)
    await queue.put(*range(100))
    taken: list[tuple[int, int]] = []

    async def worker() -> None:
        while (item := await queue.claim()) is not None:
            taken.append((item.value, item.attempt))
            if len(taken) % 9 == 0:
                proxy.lose_next_reply_to = b"_change"
            await item.done()

    await asyncio.gather(*(worker() for _ in range(8)))
    proxy.lose_next_reply_to = None
    assert sorted(taken) == [(number, 1) for number in range(100)]
    assert proxy.lost >= 5
    assert await queue.size() == (0, 0)


async def test_an_operation_of_unknown_outcome_gives_its_first_result_when_it_is_made_again(
    proxy: Proxy, tenant: str
) -> None:
    async with omnistate.connect(proxy.url, tenant=tenant, timeout=timedelta(milliseconds=400)) as omni:
        seen = omni.customer("ana").collection(visited)
        await seen.append(1, 2, 3)
        proxy.silent = True
        with pytest.raises(omnistate.AmbiguousWrite) as unknown:
            await seen.pop()
        proxy.silent = False
        for _ in range(2):
            assert await seen.pop(operation_id=unknown.value.operation_id) == 3
        assert await seen.all() == [1, 2]


async def test_a_merge_with_lost_replies_brings_every_item_once(omni: omnistate.Client, proxy: Proxy) -> None:
    ana, ben = await omni.identify("web", "ana"), await omni.identify("app", "ben")
    await ana.collection(visited).append(0)
    await ben.collection(visited).append(*range(1, 1000))
    await ben.collection(visited).append(*range(1000, 1300))
    await ben.collection(tasks).put(*range(600))

    async def lose() -> None:
        while True:
            proxy.lose_next_reply_to = b"_change"
            while proxy.lose_next_reply_to is not None:
                await asyncio.sleep(0.001)
            passed = proxy.calls + 1  # the next try is heard
            while proxy.calls < passed:
                await asyncio.sleep(0.001)

    losing = asyncio.create_task(lose())
    await ana.merge(ben)
    losing.cancel()
    proxy.lose_next_reply_to = None
    assert proxy.lost >= 1
    assert await ana.collection(visited).all() == [*range(1, 1300), 0]
    assert [item.value for item in await ana.collection(tasks).claim_many(1000)] == list(range(600))
