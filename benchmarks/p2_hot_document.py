"""P2: `update(fn)` on one hot document: 64 callers in one process, and 16 in each of two."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import omnistate
import peers
from cart import Cart, a_cart
from harness import CLIENT_CORE, ROUNDS, Store, median, opened, percentile, pin, run, throughput

SECONDS = 1.5
Found = tuple[float, list[float]]
Begin = Callable[[], Awaitable[object]]


async def at_once() -> None:
    pass


async def hot(who: str, store: Store, callers: int, begin: Begin = at_once) -> Found:
    """Calls a second and their times, after connecting and `begin`."""

    async def measured(update: Callable[[int], Awaitable[object]]) -> Found:
        await begin()
        return await throughput(update, callers=callers, seconds=SECONDS)

    if who == "ours":
        async with omnistate.connect(store.url) as omni:
            cart = omni.customer("hot").state(Cart)
            await cart.get()
            return await measured(lambda _: cart.update(Cart.add, "cup"))
    async with peers.PEERS[who](store, callers) as peer:
        return await measured(lambda _: peer.update("hot", peers.add))


async def two_processes(who: str, store: Store, callers: int) -> Found:
    """Both begin when both are connected; the sum of their rates."""
    words = [sys.executable, __file__, "worker", who, str(callers), *map(str, store.ports)]
    pipe = asyncio.subprocess.PIPE
    two = [await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe) for _ in range(2)]
    for process in two:
        assert await process.stdout.readline() == b"connected\n"
    said = [json.loads(out) for out, _ in await asyncio.gather(*(process.communicate(b"begin\n") for process in two))]
    return sum(one["rate"] for one in said), [ms for one in said for ms in one["times"]]


async def measure(store: Store) -> dict[str, Any]:
    done = dict.fromkeys(("ours", *peers.PEERS), 0)
    found: dict[str, list[float]] = {}
    slow: dict[str, list[float]] = {}
    async with omnistate.connect(store.url) as omni, peers.PEERS["redis-py"](store, 1) as peer:
        cart = omni.customer("hot").state(Cart)
        await cart.set(a_cart())
        await peer.put("hot", peers.document(a_cart()))
        for _ in range(ROUNDS):
            for who in done:
                for name, one in (("64 callers", hot(who, store, 64)), ("2 x 16", two_processes(who, store, 16))):
                    rate, times = await one
                    found.setdefault(f"{name}, {who}", []).append(rate)
                    slow.setdefault(f"{name}, {who}", []).append(percentile(times, 0.99))
                    done[who] += len(times)
        updates = done.pop("ours")
        lost = updates - (await cart.get()).items["cup"]
        assert sum(done.values()) == (await peer.get("hot"))["items"]["cup"], "the peers lose updates"
    rates = {name: median(values) for name, values in found.items()}
    p99 = {name: median(values) for name, values in slow.items()}
    return {
        "per second": {name: round(rate) for name, rate in rates.items()},
        "p99 ms": {name: round(value, 2) for name, value in p99.items()},
        "rounds": {name: [round(rate) for rate in values] for name, values in found.items()},
        "results": [
            *rows(store, rates),
            {"id": store.id("P2"), "what": "p99, 64 callers", "value": p99["64 callers, ours"], "goal": "<= 5", "unit": "ms"},
            {"id": store.id("P2"), "what": "p99, 2 processes x 16", "value": p99["2 x 16, ours"], "goal": "<= 5", "unit": "ms"},
            {"id": store.id("P2"), "what": f"lost of {updates:,} updates", "value": lost, "goal": "<= 0", "unit": ""},
        ],
    }  # fmt: skip


def rows(store: Store, rates: dict[str, float]) -> list[dict[str, Any]]:
    cases = (("64 callers", "hot document, 64 callers", ">= 500"), ("2 x 16", "2 processes x 16", ">= 250"))
    return [
        {
            "id": store.id("P2"),
            "what": f"{what} / WATCH, {name}",
            "value": rates[f"{case}, ours"] / rates[f"{case}, {name}"],
            "goal": goal if name == "redis-py" else "",
            "unit": "x",
        }
        for case, what, goal in cases
        for name in peers.PEERS
    ]


def main(topology: str = "standalone") -> dict[str, Any]:
    with opened(topology) as store:
        found: dict[str, Any] = run(measure(store))
        return found


def worker(who: str, callers: str, *ports: str) -> None:
    pin(0, CLIENT_CORE)

    async def begin() -> None:
        print("connected", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

    rate, times = run(hot(who, Store(tuple(map(int, ports))), int(callers), begin))
    print(json.dumps({"rate": rate, "times": times}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(*sys.argv[2:])
    else:
        print(json.dumps(main(*sys.argv[1:]), indent=1))
