"""Writers of one document in one process share writes: each has its own result, error and operation id, whatever happens."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

import omnistate
from machine import Server
from omnistate.state import _combiner
from proxy import Proxy
from shop import Cart


@pytest.fixture
async def proxy(valkey: Server) -> AsyncIterator[Proxy]:
    async with Proxy(valkey.port) as made:
        yield made


@pytest.fixture
async def omni(proxy: Proxy, tenant: str) -> AsyncIterator[omnistate.Client]:
    async with omnistate.connect(proxy.url, tenant=tenant, timeout=timedelta(seconds=1)) as client:
        await client.customer("ana").state(Cart).update(Cart.add, "cup")
        yield client


@pytest.fixture
def writes(omni: omnistate.Client) -> list[str]:
    """The customers of the writes of `update`, as they are sent."""
    sent: list[str] = []
    combiner: Any = omni.services.combiner
    execute, hot = combiner._execute, omni.keyspace.customer("ana").meta

    async def noted(command: Any, **options: Any) -> Any:
        if command.operation_id is not None:
            sent.append("ana" if command.keys[0] == hot else "ben")
        return await execute(command, **options)

    combiner._execute = noted
    return sent


async def test_a_hot_document_does_not_hold_up_a_quiet_one(omni: omnistate.Client, writes: list[str]) -> None:
    hot, quiet = omni.customer("ana").state(Cart), omni.customer("ben").state(Cart)
    served: Counter[int] = Counter()
    await quiet.update(Cart.add, "cup")

    async def write(number: int) -> None:
        while True:
            await hot.update(Cart.add, f"cup-{number % 10}")
            served[number] += 1

    writers = [asyncio.create_task(write(number)) for number in range(500)]
    while served.total() < 2000:
        await asyncio.sleep(0)
    for _ in range(20):
        writes.clear()
        await quiet.update(Cart.add, "cup")
        assert writes.count("ben") == 1
        assert writes.count("ana") <= 3  # shared writes of the hot one meanwhile
    assert len(served) == 500
    assert max(served.values()) - min(served.values()) <= 2  # nor does a writer hold up another
    for writer in writers:
        writer.cancel()
    await asyncio.gather(*writers, return_exceptions=True)
    sold = (await hot.get()).items
    assert sum(sold.values()) - 1 >= served.total()


async def test_each_caller_of_a_shared_write_is_told_the_truth_of_its_own(
    omni: omnistate.Client, proxy: Proxy, writes: list[str]
) -> None:
    cart = omni.customer("ana").state(Cart)

    async def refuse() -> Any:
        return await cart.update(lambda value: value.items["tea"])

    for fault in ("silent", "deaf"):
        before = (await cart.get()).items["cup"]
        writes.clear()
        leader = asyncio.create_task(cart.update(Cart.add, "cup"))
        await asyncio.sleep(0)
        others = [asyncio.create_task(cart.update(Cart.add, "cup")) for _ in range(20)]
        others.append(asyncio.create_task(refuse()))
        assert (await leader).result == before + 1
        proxy.begins = b"_state_write", fault  # what the others share is not answered, or does not even arrive
        outcomes = await asyncio.gather(*others, return_exceptions=True)
        proxy.heal()
        assert len(writes) == 2
        *sent, refused = outcomes
        assert all(type(outcome) is omnistate.AmbiguousWrite for outcome in sent), outcomes
        assert (
            type(refused) is omnistate.StoreUnavailable
        )  # what it has refused may not exist, and nothing of it was sent
        assert len({outcome.operation_id for outcome in sent}) == 20
        was_applied = [await omni.outcome(outcome) for outcome in sent]
        assert was_applied == [fault == "silent"] * 20
        ids = [outcome.operation_id for outcome in sent]
        assert [await omni.customer("ana").outcome(one) for one in ids] == was_applied
        await asyncio.gather(*(cart.update_once(one, Cart.add, "cup") for one in ids))
        assert (await cart.get()).items["cup"] == before + 21
        with pytest.raises(KeyError):
            await refuse()


async def test_callers_with_ids_of_their_own_among_the_others(omni: omnistate.Client) -> None:
    cart = omni.customer("ana").state(Cart)
    calls = [cart.update_once(f"order-{number % 5}", Cart.add, "pot") for number in range(50)]
    calls += [cart.update(Cart.add, "cup") for _ in range(50)]
    written = await asyncio.gather(*calls)
    assert (await cart.get()).items == {"cup": 51, "pot": 5}
    assert sum(one.repeated for one in written) == 45
    assert sorted(one.result for one in written[50:]) == list(range(2, 52))


async def test_who_waits_for_a_caller_that_is_cancelled_goes_on(omni: omnistate.Client, proxy: Proxy) -> None:
    cart = omni.customer("ana").state(Cart)
    proxy.silent = True
    calls = [asyncio.create_task(cart.update(Cart.add, "cup")) for _ in range(11)]
    await asyncio.sleep(0.01)
    calls[0].cancel()  # it is under way, and the others wait for it
    calls[1].cancel()
    await asyncio.gather(*calls[:2], return_exceptions=True)
    proxy.silent = False
    results = [(await call).result for call in calls[2:]]
    assert results == list(range(results[0], results[0] + 9))
    assert (await cart.get()).items == {"cup": results[-1]}
    assert results[0] == 3  # what was under way was applied, what waited was not


async def test_who_waits_when_the_client_is_closed_is_told(proxy: Proxy, tenant: str) -> None:
    for level in (omnistate.ACCEPTED, omnistate.replicated(1)):
        async with omnistate.connect(proxy.url, tenant=tenant, durability=level) as omni:
            cart = omni.customer(str(level)).state(Cart)
            await omni.durable(omnistate.ACCEPTED).customer(str(level)).state(Cart).update(Cart.add, "cup")
            proxy.silent = True
            calls = [asyncio.create_task(cart.update(Cart.add, "cup")) for _ in range(300)]
            await asyncio.sleep(0.05)
        proxy.silent = False
        leader, *others = await asyncio.gather(*calls, return_exceptions=True)
        assert type(leader) in (omnistate.AmbiguousWrite, omnistate.NotConnected)
        assert {type(outcome) for outcome in others} == {omnistate.NotConnected}


async def test_so_many_writers_may_wait_and_no_more(
    omni: omnistate.Client, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_combiner, "MAX_WAITING", 100)
    cart = omni.customer("ana").state(Cart)
    proxy.silent = True
    calls = [asyncio.create_task(cart.update(Cart.add, "cup")) for _ in range(150)]
    done, _ = await asyncio.wait(calls, timeout=0.2)
    assert [type(call.exception()) for call in done] == [omnistate.Overloaded] * 49
    proxy.silent = False
    await asyncio.gather(*(call for call in calls if call not in done))
    assert (await cart.get()).items == {"cup": 102}
