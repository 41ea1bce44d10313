"""Writers and watchers that go on while servers fail, and what they have seen in the end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator

import omnistate
from omnistate import Client

CUSTOMERS, WRITERS, WATCHED = 60, 12, 12


class Tally(omnistate.State, name="LoadTally", near_cache=True):
    number: int = 0


class Load:
    """Increments, over many customers, at the client's durability. Every call has the default deadline."""

    def __init__(self, omni: Client) -> None:
        self.omni = omni
        self.acknowledged: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()  # may have been applied, or be lost in a failover
        self.errors: list[omnistate.OmnistateError] = []
        self.longest = 0.0  # seconds that a call took
        self.seen: dict[str, int] = {}
        self.hits = 0  # reads from memory
        self._goes_on = True

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        names = itertools.cycle([f"customer-{number}" for number in range(CUSTOMERS)])
        watchers = [asyncio.create_task(self._watch(f"customer-{number}")) for number in range(WATCHED)]
        readers = [asyncio.create_task(self._read(f"customer-{number}")) for number in range(WATCHED)]
        writers = [asyncio.create_task(self._write(names)) for _ in range(WRITERS)]
        try:
            await self.written(200)
            yield
            await self.written(200)
        finally:
            self._goes_on = False
            await asyncio.gather(*writers, *readers)
        async with asyncio.timeout(30):  # the watchers see the end
            while self.seen != {name: (await self._tally(name)) for name in self.seen} or len(self.seen) < WATCHED:
                await asyncio.sleep(0.05)
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        self.hits = self.omni.stats().near_cache.hits
        async with asyncio.timeout(10):  # what is kept in memory becomes what is there
            for name in self.seen:
                while (await self.omni.customer(name).state(Tally).get()).number != await self._tally(name):
                    await asyncio.sleep(0.01)

    async def written(self, more: int) -> None:
        """Returns after so many more acknowledged writes."""
        wanted = self.acknowledged.total() + more
        async with asyncio.timeout(30):
            while self.acknowledged.total() < wanted:
                await asyncio.sleep(0.01)

    async def lost(self) -> int:
        """How many acknowledged writes are not there. None was applied twice."""
        lost = 0
        for name, count in self.acknowledged.items():
            held = await self._tally(name)
            assert held <= count + self.unknown[name]
            lost += max(count - held, 0)
        return lost

    async def _tally(self, name: str) -> int:
        return (await self.omni.customer(name).state(Tally).get(fresh=True)).number

    async def _write(self, names: itertools.cycle[str]) -> None:
        while self._goes_on:
            name, started = next(names), time.monotonic()
            try:
                await self.omni.customer(name).state(Tally).increment("number")
            except omnistate.OmnistateError as error:
                self.unknown[name] += 1
                self.errors.append(error)
            else:
                self.acknowledged[name] += 1
            self.longest = max(self.longest, time.monotonic() - started)
            await asyncio.sleep(0.001)  # the servers share the machine

    async def _read(self, name: str) -> None:
        """From memory where it can: no error either, and never less than this process has been told of."""
        tally = self.omni.customer(name).state(Tally)
        while self._goes_on:
            known = self.acknowledged[name] if self.omni.services.durability != omnistate.ACCEPTED else 0
            try:
                assert (await tally.get()).number >= known
            except omnistate.OmnistateError as error:
                self.errors.append(error)
            await asyncio.sleep(0.001)

    async def _watch(self, name: str) -> None:
        async for change in self.omni.customer(name).state(Tally).watch():
            self.seen[name] = change.value.number
