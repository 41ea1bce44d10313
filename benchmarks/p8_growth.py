"""P8: a thousand customers and a million: what an operation costs, and what a customer takes in memory.

Two servers side by side, one with few customers and one with many, asked in turn. The same values in a plain hash for each
customer, on a third, are what memory is compared with.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any

import omnistate
import peers
from harness import ROUNDS, median, run, server, throughput

FEW, MANY = 1000, int(os.environ.get("CUSTOMERS", "1000000"))
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


async def memory(port: int) -> int:
    client = peers.client(port, 1)
    used = int((await client.info("memory"))["used_memory"])
    await client.aclose()
    return used


async def fill_plain(port: int, count: int) -> None:
    client = peers.client(port, CALLERS)
    cart = a_cart()
    fields = {"note": cart.note, "visits": "1"} | {f"items:{sku}": str(number) for sku, number in cart.items.items()}
    for begin in range(0, count, AT_ONCE):
        pipe = client.pipeline(transaction=False)
        for number in range(begin, min(begin + AT_ONCE, count)):
            pipe.hset(f"cart:customer-{number:012}", mapping=fields)
        await pipe.execute()
    await client.aclose()


async def measure(few_port: int, many_port: int, plain_port: int) -> dict[str, Any]:
    chance, value = random.Random(1), a_cart()
    empty_plain, empty = await memory(plain_port), await memory(many_port)
    await fill_plain(plain_port, MANY // 10)
    plain = (await memory(plain_port) - empty_plain) / (MANY // 10)
    found: dict[int, list[float]] = {FEW: [], MANY: []}
    async with (
        omnistate.connect(f"redis://127.0.0.1:{few_port}") as few,
        omnistate.connect(f"redis://127.0.0.1:{many_port}") as many,
    ):
        clients = {FEW: few, MANY: many}
        for count, omni in clients.items():
            await for_all(
                count, lambda number, omni=omni: omni.customer(f"customer-{number:012}").state(Cart).set(value)
            )  # type: ignore[misc]
        ours = (await memory(many_port) - empty) / MANY
        for _ in range(ROUNDS):
            for count, omni in clients.items():

                async def call(_: int, count: int = count, omni: omnistate.Client = omni) -> None:
                    await omni.customer(f"customer-{chance.randrange(count):012}").state(Cart).increment("visits")

                rate, _ = await throughput(call, callers=CALLERS, seconds=SECONDS)
                found[count].append(rate)
    rates = {count: median(values) for count, values in found.items()}
    growth = f"{FEW:,} customers / {MANY:,}, operations a second"
    return {
        "per second": {f"{count:,}": round(rate) for count, rate in rates.items()},
        "bytes per customer": {"ours": round(ours), "a plain hash": round(plain)},
        "rounds": {f"{count:,}": [round(rate) for rate in values] for count, values in found.items()},
        "results": [
            {"id": "P8", "what": growth, "value": rates[FEW] / rates[MANY], "goal": "<= 1.1", "unit": "x"},
            {"id": "P8", "what": "bytes per customer / the same in a plain hash", "value": ours / plain, "goal": "<= 2", "unit": "x"},
        ],
    }  # fmt: skip


def main() -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(server()) for _ in range(3)]
        found: dict[str, Any] = run(measure(*ports))
        return found


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
