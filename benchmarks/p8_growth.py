"""P8: a thousand customers and a million: what an operation costs, and what a customer takes in memory.

Two servers side by side, one with few customers and one with many, asked in turn. The same values in a plain hash for each
customer, on a third, are what memory is compared with. With clusters many are 200,000: nine servers share a core.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio.cluster import RedisCluster

import omnistate
from harness import ROUNDS, Store, median, opened, run, throughput
from peers import by_redis_py

FEW = 1000
MANY = {
    "standalone": int(os.environ.get("CUSTOMERS", "1000000")),
    "cluster": int(os.environ.get("CUSTOMERS", "200000")),
}
CALLERS, SECONDS, AT_ONCE = 64, 1.5, 500


class Cart(omnistate.State):
    items: dict[str, int] = {}
    note: str = ""
    visits: int = 0


def a_cart() -> Cart:
    """About 1 KB of JSON."""
    return Cart(items={f"product-{number:04}-large": number for number in range(12)}, note="n" * 700, visits=1)


async def for_all(count: int, one: Callable[[int], Awaitable[object]]) -> None:
    for begin in range(0, count, AT_ONCE):
        await asyncio.gather(*(one(number) for number in range(begin, min(begin + AT_ONCE, count))))


async def memory(store: Store) -> int:
    used = 0
    for port in store.ports:
        client = by_redis_py.client(port, 1)
        used += int((await client.info("memory"))["used_memory"])
        await client.aclose()
    return used


async def fill_plain(store: Store, count: int) -> None:
    port = store.ports[0]
    client = RedisCluster(host="127.0.0.1", port=port) if store.is_cluster else by_redis_py.client(port, 1)
    cart = a_cart()
    fields = {"note": cart.note, "visits": "1"} | {f"items:{sku}": str(number) for sku, number in cart.items.items()}
    for begin in range(0, count, AT_ONCE):
        pipe = client.pipeline(transaction=False)
        for number in range(begin, min(begin + AT_ONCE, count)):
            pipe.hset(f"cart:customer-{number:012}", mapping=fields)
        await pipe.execute()
    await client.aclose()


async def plain_bytes(store: Store, count: int) -> float:
    """Of one customer in a plain hash."""
    empty = await memory(store)
    await fill_plain(store, count)
    return (await memory(store) - empty) / count


async def fill(omni: omnistate.Client, count: int) -> None:
    value = a_cart()
    await for_all(count, lambda number: omni.customer(f"customer-{number:012}").state(Cart).set(value))


async def measure(few: Store, many: Store, plain: Store, most: int) -> dict[str, Any]:
    chance, empty = random.Random(1), await memory(many)
    in_a_hash = await plain_bytes(plain, most // 10)
    found: dict[int, list[float]] = {FEW: [], most: []}
    async with omnistate.connect(few.url) as to_few, omnistate.connect(many.url) as to_many:
        clients = {FEW: to_few, most: to_many}
        for count, omni in clients.items():
            await fill(omni, count)
        ours = (await memory(many) - empty) / most
        for _ in range(ROUNDS):
            for count, omni in clients.items():

                async def call(_: int, count: int = count, omni: omnistate.Client = omni) -> None:
                    await omni.customer(f"customer-{chance.randrange(count):012}").state(Cart).increment("visits")

                rate, _ = await throughput(call, callers=CALLERS, seconds=SECONDS)
                found[count].append(rate)
    rates = {count: median(values) for count, values in found.items()}
    growth = f"{FEW:,} customers / {most:,}, operations a second"
    return {
        "per second": {f"{count:,}": round(rate) for count, rate in rates.items()},
        "bytes per customer": {"ours": round(ours), "a plain hash": round(in_a_hash)},
        "rounds": {f"{count:,}": [round(rate) for rate in values] for count, values in found.items()},
        "results": [
            {"id": many.id("P8"), "what": growth, "value": rates[FEW] / rates[most], "goal": "<= 1.1", "unit": "x"},
            {"id": many.id("P8"), "what": "bytes per customer / the same in a plain hash", "value": ours / in_a_hash, "goal": "<= 2", "unit": "x"},
        ],
    }  # fmt: skip


def main(topology: str = "standalone") -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(opened(topology)) for _ in range(3)]
        found: dict[str, Any] = run(measure(*stores, MANY[topology]))
        return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:]), indent=1))
