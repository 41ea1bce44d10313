"""A cluster of one node, which refuses every call and subscription that is not in one slot."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

import pytest
from redis import Redis

import omnistate
from everything import everything
from machine import Server, free_port
from omnistate.store._binary import find_binary
from shop import Cart


@pytest.fixture(scope="module")
def cluster() -> Iterator[Server]:
    server = Server(find_binary(), "--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        raw = stack.enter_context(Redis(port=server.port))
        raw.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        end = time.monotonic() + 10
        while b"cluster_state:ok" not in raw.execute_command("CLUSTER", "INFO"):
            assert time.monotonic() < end
            time.sleep(0.01)
        yield server


class Order(omnistate.State, indexes={"total", omnistate.UPDATED}):
    total: int = 0


async def test_every_call_stays_in_one_slot(cluster: Server) -> None:
    async with omnistate.connect(cluster.url, sweep=True) as omni:
        await everything(omni, "x")
        orders = {f"c{number}": number for number in range(60)}
        await asyncio.gather(*(omni.customer(name).state(Order).patch(total=total) for name, total in orders.items()))
        found, cursor = set(), None
        while True:
            page = await omni.query(Order).where("total", at_least=10).page(limit=7, after=cursor)
            found |= {one.customer_id for one in page.found}
            cursor = page.cursor
            if cursor is None:
                break
        assert found == {name for name, total in orders.items() if total >= 10}


async def test_logs_of_many_slots_are_followed(cluster: Server) -> None:
    async with omnistate.connect(cluster.url) as omni, contextlib.AsyncExitStack() as stack:
        carts = [omni.customer(f"c{number}").state(Cart) for number in range(50)]
        watched = [await stack.enter_async_context(contextlib.aclosing(cart.watch())) for cart in carts]
        for changes in watched:
            await anext(changes)
        await asyncio.gather(*(cart.update(Cart.add, "cup") for cart in carts))
        async with asyncio.timeout(5):
            seen = [await anext(changes) for changes in watched]
        assert all(change.value.items == {"cup": 1} for change in seen)
