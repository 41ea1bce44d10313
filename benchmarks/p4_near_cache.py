"""P4: reads that a near cache answers: how many, how soon a change is seen, and what is read after a lost connection.

The peers read by GET and decode, and through the client caches that there are, which keep what the server sent. Each with one
caller and with 64, and its better figure counts. A hit of ours does not wait, so callers make no difference to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import msgspec

import omnistate
import peers
from harness import ROUNDS, Store, median, opened, percentile, run
from p4_freshness import KILLS, hop, lost_connections, seen_after
from peers.caches import CACHES

DOCUMENTS, CALLERS, SECONDS = 100, 64, 0.5
Read = Callable[[], Awaitable[object]]


class Cart(omnistate.State, near_cache=True):
    """Each reader gets a copy of its own."""

    items: dict[str, int] = {}
    note: str = ""
    visits: int = 0


class Profile(omnistate.State, near_cache=True, frozen=True):
    """Nobody can change it, so all readers share one."""

    name: str = ""
    email: str = ""
    segments: tuple[str, ...] = ()
    note: str = ""
    visits: int = 0


VALUES = {
    "frozen": Profile(name="Ana", email="ana@example.com", segments=tuple(f"segment-{n:04}" for n in range(12)), note="n" * 700),
    "mutable": Cart(items={f"product-{number:04}-large": number for number in range(12)}, note="n" * 700),
}  # fmt: skip


def customers(kind: str) -> list[str]:
    return [f"{kind}-{number}" for number in range(DOCUMENTS)]


async def rate(reads: Sequence[Read], callers: int) -> float:
    """Reads a second of so many callers, who look at the clock once for all documents."""
    done, began = 0, time.perf_counter()
    end = began + SECONDS

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < end:
            for read in reads:
                await read()
            done += len(reads)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return done / (time.perf_counter() - began)


async def reads_of(
    stack: contextlib.AsyncExitStack, store: Store, omni: omnistate.Client
) -> dict[str, dict[str, list[Read]]]:
    """For each kind of document: who reads it, and how."""
    by_get = {name: await stack.enter_async_context(one(store, CALLERS)) for name, one in peers.PEERS.items()}
    by_cache = {name: await stack.enter_async_context(one(store)) for name, one in CACHES.items()}
    found: dict[str, dict[str, list[Read]]] = {}
    for kind, value in VALUES.items():
        its = customers(kind)
        handles = [omni.customer(name).state(type(value)) for name in its]
        for name, handle in zip(its, handles, strict=True):
            await handle.set(value)
            await by_get["redis-py"].put(name, msgspec.to_builtins(value))
        found[kind] = {"ours": [handle.get for handle in handles]}
        for how, clients in (("GET", by_get), ("cache", by_cache)):
            found[kind] |= {f"{how}, {name}": [partial(each.get, one) for one in its] for name, each in clients.items()}
    for readers in found.values():
        for reads in readers.values():
            await rate(reads, 1)  # what has a cache has them in it now
    return found


async def measure_reads(store: Store, found: dict[str, list[float]]) -> None:
    async with omnistate.connect(store.url) as omni, contextlib.AsyncExitStack() as stack:
        readers = await reads_of(stack, store, omni)
        for _ in range(ROUNDS):
            for kind, its in readers.items():
                for who, reads in its.items():
                    for callers in (1,) if who == "ours" else (1, CALLERS):
                        name = f"{kind}, {who}, {callers}"
                        found.setdefault(name, []).append(await rate(reads, callers))
        assert omni.stats().near_cache.hit_rate > 0.99, "what was measured are no hits"


async def measure(store: Store) -> dict[str, Any]:
    found: dict[str, list[float]] = {}
    await measure_reads(store, found)
    slow: dict[str, list[float]] = {}
    reads = stale = 0
    for _ in range(ROUNDS):
        gone, seen = await seen_after(store, Profile)
        for name, times in (("publish hop", await hop(store)), ("invalidated", gone), ("read", seen)):
            slow.setdefault(name, []).append(percentile(times, 0.99))
        more, wrong = await lost_connections(store, Profile)
        reads, stale = reads + more, stale + wrong
    rates = {name: median(values) for name, values in found.items()}
    p99 = {name: median(values) for name, values in slow.items()}
    return {
        "per second": {name: round(rate) for name, rate in rates.items()},
        "p99 us": {name: round(value * 1e6, 1) for name, value in p99.items()},
        "rounds": {name: [round(rate) for rate in values] for name, values in found.items()},
        "rounds, p99 us": {name: [round(value * 1e6, 1) for value in values] for name, values in slow.items()},
        "results": [
            *rows(store, rates),
            {"id": store.id("P4"), "what": "until it is not read any more, p99 / a publish hop", "value": p99["invalidated"] / p99["publish hop"], "goal": "<= 1.5", "unit": "x"},
            {"id": store.id("P4"), "what": "until the new one is read, p99 / a publish hop", "value": p99["read"] / p99["publish hop"], "goal": "<= 1.5", "unit": "x"},
            {"id": store.id("P4"), "what": f"stale of {reads:,} reads, connections cut {KILLS * ROUNDS} times", "value": stale, "goal": "<= 0", "unit": ""},
        ],
    }  # fmt: skip


def rows(store: Store, rates: dict[str, float]) -> list[dict[str, Any]]:
    """All peers for the frozen document; for the mutable one those that the goals name."""

    def best(kind: str, who: str) -> float:
        return max(rates[f"{kind}, {who}, {callers}"] for callers in (1, CALLERS))

    def row(kind: str, who: str, what: str, goal: str) -> dict[str, Any]:
        ratio = rates[f"{kind}, ours, 1"] / best(kind, who)
        return {
            "id": store.id("P4"),
            "what": f"cached read, {kind} / {what}",
            "value": ratio,
            "goal": goal,
            "unit": "x",
        }

    found = []
    for name in peers.PEERS:
        goal = ">= 200" if name == "redis-py" else ""
        found.append(row("frozen", f"GET, {name}", f"GET and decode, {name}", goal))
    found += [row("frozen", f"cache, {name}", f"the cache of {name}", ">= 80") for name in CACHES]
    found.append(row("mutable", "GET, redis-py", "GET and decode, redis-py", ">= 200"))
    fastest = max(CACHES, key=lambda name: best("mutable", f"cache, {name}"))
    found.append(row("mutable", f"cache, {fastest}", f"the best cache, {fastest}'s", ">= 80"))
    return found


def main(topology: str = "standalone") -> dict[str, Any]:
    with opened(topology) as store:
        found: dict[str, Any] = run(measure(store))
        return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:]), indent=1))
