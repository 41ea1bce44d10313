"""How soon a near cache gives a change up, and whether it is ever stale after it has lost its connections."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

import omnistate
from harness import Store
from omnistate.store._cluster import slot_of
from omnistate.store._connection import open_connection
from omnistate.store._url import Endpoint
from peers import by_redis_py, pack

CHANGES = 500
DOCUMENTS, KILLS = 50, 10
GRACE = 0.1
"""Seconds after which every change has arrived. A cache may give the value before for a moment: the time that a message takes."""


async def seen_after(store: Store, kind: type[Any]) -> tuple[list[float], list[float]]:
    """Seconds from a write on another connection until the value before it is not read any more, and until the new one is.

    The reader asks again and again, so what the machine needs to wake a process up is in neither this nor `hop`.
    """
    chance, gone, seen = random.Random(4), [], []
    async with omnistate.connect(store.url) as reads, omnistate.connect(store.url) as writes:
        for number in range(CHANGES):
            customer = f"change-{number % DOCUMENTS}"
            reader, writer = reads.customer(customer).state(kind), writes.customer(customer).state(kind)
            visits = (await reader.get()).visits + 1
            await asyncio.sleep(chance.uniform(0.0005, 0.002))
            began = time.perf_counter()
            write = asyncio.ensure_future(writer.increment("visits"))
            while True:
                asked = time.perf_counter()
                if (await reader.get()).visits == visits:
                    break
                await asyncio.sleep(0)
            gone.append(asked - began)
            seen.append(time.perf_counter() - began)
            await write
    return gone, seen


async def hop(store: Store) -> list[float]:
    """Seconds from a publish on one connection until it has arrived on another, by the same connections as omnistate's."""
    topic, chance, found = b"{hop}", random.Random(5), []
    endpoint = Endpoint(host="127.0.0.1", port=store.port_of(slot_of(topic)))
    says, hears = [await open_connection(endpoint, stall=5) for _ in range(2)]
    heard: list[Any] = []
    hears.listen(heard.append)
    hears.write(pack("SSUBSCRIBE", topic))
    for number in range(CHANGES + 1):  # the first that is heard is that the subscription has begun
        began = time.perf_counter()
        if number:
            says.send_unheard(pack("SPUBLISH", topic, "x" * 150))
        while len(heard) <= number:
            await asyncio.sleep(0)
        if number:
            found.append(time.perf_counter() - began)
        await asyncio.sleep(chance.uniform(0.0005, 0.002))
    says.close()
    hears.close()
    return found


@dataclass
class Acknowledged:
    """What the writer knows to be written: the number of each document's writes, and when the last one was answered."""

    writes: list[int] = field(default_factory=lambda: [0] * DOCUMENTS)
    at: list[float] = field(default_factory=lambda: [0.0] * DOCUMENTS)
    done: bool = False

    def settled(self, document: int) -> int:
        """The writes that were answered so long ago that every reader must have them."""
        is_new = time.perf_counter() - self.at[document] < GRACE
        return self.writes[document] - is_new


class Killer:
    """Ends connections of clients that came after it."""

    def __init__(self, store: Store) -> None:
        self._clients = [by_redis_py.client(port, 1) for port in store.ports]
        self._spared: list[set[str]] = []
        self._chance = random.Random(6)

    async def spare(self) -> None:
        """Who is connected now is left alone."""
        self._spared = [{one["id"] for one in await client.client_list()} for client in self._clients]

    async def kill(self) -> None:
        """All of the others' connections, or some of them."""
        share = self._chance.choice((1.0, 0.5))
        for client, spared in zip(self._clients, self._spared, strict=True):
            for one in await client.client_list():
                if one["id"] not in spared and self._chance.random() <= share:
                    await client.client_kill_filter(_id=one["id"])

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()


async def write(handles: list[Any], killer: Killer, known: Acknowledged) -> None:
    """Each document once in a cycle, with a cut among the writes. Then a rest, in which what got lost stays lost."""
    chance = random.Random(7)
    for _ in range(KILLS):
        order = chance.sample(range(DOCUMENTS), DOCUMENTS)
        cut = chance.randrange(DOCUMENTS // 2)
        for number, document in enumerate(order):
            if number == cut:
                await killer.kill()
            await handles[document].increment("visits")
            known.writes[document] += 1
            known.at[document] = time.perf_counter()
            await asyncio.sleep(chance.uniform(0, 0.001))
        await asyncio.sleep(GRACE + 0.05)
    known.done = True


async def read(omni: omnistate.Client, handles: list[Any], known: Acknowledged) -> tuple[int, int]:
    """Reads, and how many were stale: older than what has settled, or, once the cache has been emptied, than what had
    been acknowledged before that.
    """
    reads = stale = 0
    flushes, before, floor = omni.stats().near_cache.flushes, list(known.writes), [0] * DOCUMENTS
    while not known.done:
        for document, handle in enumerate(handles):
            if (now := omni.stats().near_cache.flushes) != flushes:
                flushes, floor = now, before  # it was emptied during the last read or since
            before = list(known.writes)
            least = max(known.settled(document), floor[document])
            stale += (await handle.get()).visits < least
            reads += 1
        await asyncio.sleep(0)
    return reads, stale


async def lost_connections(store: Store, kind: type[Any]) -> tuple[int, int]:
    """Reads while the reader's connections are cut again and again and another client writes, and how many were stale."""
    killer, known = Killer(store), Acknowledged()
    async with omnistate.connect(store.url) as writes:
        written = [writes.customer(f"cut-{number}").state(kind) for number in range(DOCUMENTS)]
        for handle in written:
            await handle.set(kind())
        await killer.spare()
        async with omnistate.connect(store.url) as reads:
            cached = [reads.customer(f"cut-{number}").state(kind) for number in range(DOCUMENTS)]
            writing = asyncio.create_task(write(written, killer, known))
            reading = asyncio.create_task(read(reads, cached, known))
            await asyncio.gather(writing, reading)
    await killer.close()
    return reading.result()
