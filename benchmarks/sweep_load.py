"""S1: ordinary updates while a sweeper ends 100,000 expired documents and entries; nothing missed, nothing twice."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import timedelta
from typing import Any

import msgspec

import omnistate
from harness import median, percentile, run, server
from omnistate.ops import Sweeper
from omnistate.store import Position, read_log

DOCUMENTS, ENTRIES, OF_ONE = 90_000, 10_000, 100  # entries of maps, and how many a map has
CALLERS, PAUSE = 16, 0.002
LIFE = timedelta(seconds=20)


class Brief(omnistate.State, ttl=LIFE):
    word: str = ""


class Cart(omnistate.State, ttl=timedelta(days=7)):
    items: dict[str, int] = {}


LOCKS = omnistate.Map(str, int, name="locks")


async def in_parts(calls: Any, size: int = 500) -> None:
    some: list[Any] = []
    for call in calls:
        some.append(call)
        if len(some) == size:
            await asyncio.gather(*some)
            some = []
    await asyncio.gather(*some)


async def load(omni: omnistate.Client, stop: asyncio.Event) -> list[float]:
    """Milliseconds of each of the updates that go on until `stop`: about as many a second as a busy gateway makes."""
    times: list[float] = []

    async def caller(number: int) -> None:
        cart = omni.customer(f"busy-{number}").state(Cart)
        while not stop.is_set():
            began = time.perf_counter()
            await cart.increment("items", "cup")
            times.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(PAUSE)

    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    return times


async def measured(omni: omnistate.Client, work: Any) -> tuple[list[float], Any]:
    stop = asyncio.Event()
    task = asyncio.create_task(load(omni, stop))
    try:
        done = await work
    finally:
        stop.set()
    return await task, done


async def events_of(omni: omnistate.Client, customer: str) -> Counter[str]:
    log = omni.keyspace.customer(customer)
    end = await omni.customer(customer).position()
    page = await omni.services.link.execute(read_log(log, Position(end.epoch, 0), limit=1000))
    found: Counter[str] = Counter()
    for entry in page.entries:
        event = msgspec.json.decode(entry.event)
        found[event["type"]] += len(event["fields"]) if "fields" in event else 1
    return found


async def story(port: int) -> dict[str, Any]:
    url = f"redis://127.0.0.1:{port}"
    async with omnistate.connect(url) as omni, omnistate.connect(url) as other:
        await in_parts(omni.customer(f"c{n}").state(Brief).patch(word="x") for n in range(DOCUMENTS))
        maps = range(ENTRIES // OF_ONE)
        await in_parts(
            omni.customer(f"m{n}").collection(LOCKS).update({f"k{k}": k for k in range(OF_ONE)}, ttl=LIFE) for n in maps
        )
        written = time.monotonic()
        quiet, _ = await measured(omni, asyncio.sleep(4))
        await asyncio.sleep(max(0, LIFE.total_seconds() + 1 - (time.monotonic() - written)))
        sweeper = Sweeper(other.services, other.keyspace)  # a process of its own has a connection of its own
        started = time.monotonic()
        busy, ended = await measured(omni, sweeper.sweep())
        seconds = time.monotonic() - started
        found: Counter[str] = Counter()
        for first in range(0, DOCUMENTS, 1000):
            counts = await asyncio.gather(*(events_of(omni, f"c{n}") for n in range(first, first + 1000)))
            found.update(str(count["state.expired"]) for count in counts)
        entries = [await events_of(omni, f"m{n}") for n in maps]
        once = found["1"] == DOCUMENTS and all(one["collection.entries_expired"] == OF_ONE for one in entries)
        return {
            "quiet p99": percentile(quiet, 0.99), "busy p99": percentile(busy, 0.99), "quiet p50": median(quiet),
            "busy p50": median(busy), "seconds": seconds, "events": ended, "once": once, "again": await sweeper.sweep(),
        }  # fmt: skip


def main() -> dict[str, Any]:
    with server() as port:
        found = run(story(port))
    wrong = 0 if found["once"] and found["again"] == 0 else 1
    rate = (DOCUMENTS + ENTRIES) / found["seconds"]
    results = [
        {"id": "S1", "what": "p99 of updates while 100,000 expired are swept / without", "goal": "<= 2", "unit": "x",
         "value": found["busy p99"] / found["quiet p99"]},
        {"id": "S1", "what": "expiries that were missed, or told twice (0: none)", "value": wrong, "goal": "<= 0", "unit": ""},
        {"id": "S1", "what": "expired documents and entries that are swept", "value": rate, "goal": "", "unit": "/s"},
    ]  # fmt: skip
    return {"results": results, "rounds": found}


if __name__ == "__main__":
    print(main())
