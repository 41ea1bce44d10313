"""One deadline for each call, whatever the server does meanwhile: says nothing, answers drop by drop, cuts every connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

import omnistate
from machine import Server
from omnistate.store import _link
from proxy import Proxy
from shop import Cart

DEADLINE, SLACK = 1.0, 0.9  # seconds; the machine may be busy, and twice the deadline would be wrong


@pytest.fixture
async def proxy(valkey: Server) -> AsyncIterator[Proxy]:
    async with Proxy(valkey.port) as made:
        yield made


@pytest.fixture
async def omni(proxy: Proxy, tenant: str) -> AsyncIterator[omnistate.Client]:
    async with omnistate.connect(proxy.url, tenant=tenant, timeout=timedelta(seconds=DEADLINE)) as client:
        await client.customer("ana").state(Cart).update(Cart.add, "cup")
        yield client
        proxy.heal()


async def timed(*calls: asyncio.Future[object]) -> tuple[list[object], float]:
    began = asyncio.get_running_loop().time()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    return outcomes, asyncio.get_running_loop().time() - began


async def test_a_server_that_accepts_and_never_answers(tenant: str) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                await reader.read()
        finally:
            writer.transport.abort()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        for scheme, path in (("redis", ""), ("redis+cluster", ""), ("redis+sentinel", "/shop"), ("rediss", "")):
            began = asyncio.get_running_loop().time()
            with pytest.raises(omnistate.StoreUnavailable, match=f"{port}"):
                async with omnistate.connect(
                    f"{scheme}://127.0.0.1:{port}{path}", tenant=tenant, timeout=timedelta(seconds=DEADLINE)
                ):
                    pass
            assert asyncio.get_running_loop().time() - began < DEADLINE + SLACK, scheme


async def test_a_server_that_answers_drop_by_drop(omni: omnistate.Client, proxy: Proxy) -> None:
    """It is never silent for long, so the connection stays; who waits too long is told all the same."""
    proxy.trickle = 64  # bytes in a tenth of a second
    carts = [omni.customer(f"customer-{number}").state(Cart) for number in range(2000)]
    outcomes, took = await timed(*(cart.increment("visits") for cart in carts))
    assert took < DEADLINE + SLACK
    assert {type(outcome) for outcome in outcomes} == {int, omnistate.AmbiguousWrite}
    proxy.heal()
    for cart, outcome in zip(carts, outcomes, strict=True):
        if isinstance(outcome, omnistate.AmbiguousWrite):
            assert await omni.outcome(outcome) == ((await cart.get()).visits == 1)
    assert await asyncio.gather(*(cart.increment("visits") for cart in carts[:100])) == [2] * 100


async def test_writers_of_one_document_who_wait_for_each_other(omni: omnistate.Client, proxy: Proxy) -> None:
    cart = omni.customer("ana").state(Cart)
    proxy.silent = True
    outcomes, took = await timed(*(cart.update(Cart.add, "cup") for _ in range(500)))
    assert took < DEADLINE + SLACK
    assert all(isinstance(outcome, omnistate.StoreUnavailable) for outcome in outcomes)
    proxy.silent = False
    applied = sum(
        [await omni.outcome(outcome) for outcome in outcomes if isinstance(outcome, omnistate.AmbiguousWrite)]
    )
    assert (await cart.get()).items == {"cup": 1 + applied}


async def test_the_steps_of_an_update_share_the_deadline(omni: omnistate.Client, proxy: Proxy) -> None:
    proxy.delay = 0.45 * DEADLINE  # the read is answered in time, and the write is not
    asyncio.get_running_loop().call_later(0.2 * DEADLINE, setattr, proxy, "silent", True)
    (outcome,), took = await timed(omni.customer("ben").state(Cart).update(Cart.add, "cup"))
    assert isinstance(outcome, omnistate.AmbiguousWrite)
    assert took < DEADLINE + 0.4  # the write alone would take 0.45 longer


async def test_callers_of_little_patience_are_connected_in_the_end(omni: omnistate.Client, proxy: Proxy) -> None:
    """Each gives up long before a connection is made; it is made all the same."""
    link: Any = omni.services.link
    proxy.delay = 0.05
    proxy.cut()
    await link._node.connection.closed
    async with asyncio.timeout(5):
        while not link._node.connection.is_open:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await omni.customer("ana").state(Cart).get()


@pytest.mark.parametrize(("budget", "most"), [(20_000, 50 * 12), (30, 50 * 5)])
async def test_a_server_in_trouble_is_not_asked_more_and_more(
    proxy: Proxy, tenant: str, monkeypatch: pytest.MonkeyPatch, budget: int, most: int
) -> None:
    monkeypatch.setattr(_link, "_RETRIES", budget)
    monkeypatch.setattr(_link, "_RETRIES_A_SECOND", 10)
    async with omnistate.connect(proxy.url, tenant=tenant, timeout=timedelta(seconds=DEADLINE)) as omni:
        cart = omni.customer("ana").state(Cart)
        await cart.increment("visits")
        proxy.lose_every_reply_to, proxy.calls = b"_state_write", 0
        await timed(*(cart.increment("visits") for _ in range(50)))
        assert 100 <= proxy.calls <= most  # else 6,000
        proxy.heal()
        assert await cart.increment("visits") == 52


async def test_a_server_that_cuts_every_connection(omni: omnistate.Client, proxy: Proxy) -> None:
    cart = omni.customer("ana").state(Cart)
    proxy.lose_every_reply_to = b"_state_write"
    outcomes, took = await timed(*(cart.increment("visits") for _ in range(50)))
    assert all(isinstance(outcome, omnistate.AmbiguousWrite) for outcome in outcomes)
    assert took < DEADLINE + SLACK
    assert (await cart.get()).visits == 50  # each was applied once, however often it was sent
    assert [await omni.outcome(outcome) for outcome in outcomes] == [True] * 50
