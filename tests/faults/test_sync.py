"""The synchronous API while replies are lost, servers are killed, and primaries are replaced: no error, nothing twice."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import omnistate.sync as omnistate
from machine import Server, running
from omnistate.ops import LocalCluster, LocalSentinel, LocalServers, LocalSettings
from omnistate.store import find_binary
from proxy import Proxy
from shop import Cart

THREADS = 8
ALL = int(os.environ.get("OMNISTATE_EXAMPLES", "1")) > 1  # else one way for each kind of servers
WAYS = [
    (LocalCluster, "killed"),
    (LocalSentinel, "planned"),
    *([(LocalCluster, "planned"), (LocalSentinel, "killed")] if ALL else []),
]


@pytest.fixture
async def proxy(valkey: Server) -> AsyncIterator[Proxy]:
    async with Proxy(valkey.port) as made:
        yield made


async def test_writes_whose_replies_were_lost_are_applied_once(proxy: Proxy, tenant: str) -> None:
    def work(omni: omnistate.Client, number: int) -> None:
        for turn in range(60):
            if turn % 10 == number:
                proxy.lose_next_reply_to = b"_state_write"
            omni.customer("ana").state(Cart).update(Cart.add, "cup")
            omni.customer(f"customer-{number}").state(Cart).increment("items", "cup")

    def main() -> None:
        with omnistate.connect(proxy.url, tenant=tenant) as omni:
            threads = [threading.Thread(target=work, args=(omni, number)) for number in range(THREADS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert omni.customer("ana").state(Cart).get().items == {"cup": 60 * THREADS}
            for number in range(THREADS):
                assert omni.customer(f"customer-{number}").state(Cart).get().items == {"cup": 60}

    await asyncio.to_thread(main)
    assert proxy.lost >= 10


async def test_many_that_travel_together_survive_a_lost_reply(proxy: Proxy, tenant: str) -> None:
    names = [f"customer-{number}" for number in range(64)]

    def main() -> None:
        with omnistate.connect(proxy.url, tenant=tenant) as omni:
            list(omni.get_many(Cart, names))
            for _ in range(5):
                proxy.lose_next_reply_to = b"_state_write"
                for _, written in omni.update_many(Cart, lambda cart: cart.add("cup"), names):
                    assert isinstance(written, omnistate.Written)
            assert {one.value.items["cup"] for _, one in omni.get_many(Cart, names)} == {5}  # type: ignore[union-attr]

    await asyncio.to_thread(main)
    assert proxy.lost == 5


async def test_what_stays_unknown_is_said(proxy: Proxy, tenant: str) -> None:
    def main() -> None:
        with omnistate.connect(proxy.url, tenant=tenant, timeout=timedelta(milliseconds=600)) as omni:
            cart = omni.customer("ana").state(Cart)
            cart.increment("items", "cup")
            proxy.silent = True
            began = time.monotonic()
            with pytest.raises(omnistate.AmbiguousWrite) as caught:
                cart.increment("items", "cup")
            assert time.monotonic() - began < 2
            proxy.silent = False
            assert omni.outcome(caught.value)
            assert cart.get().items == {"cup": 2}

    await asyncio.to_thread(main)


def test_a_server_that_is_killed_and_comes_back_is_a_pause(mortal_valkey: Any, tenant: str) -> None:
    with omnistate.connect(mortal_valkey.url, tenant=tenant, timeout=timedelta(seconds=20)) as omni:
        load = Load(omni)
        with load:
            load.written(200)
            mortal_valkey.kill()
            mortal_valkey.start()
            load.written(200)
        assert load.errors == []
        assert load.lost() == 0


class Load:
    """Increments from some threads, over many customers, until the block ends."""

    def __init__(self, omni: omnistate.Client) -> None:
        self._omni, self._goes_on = omni, True
        self.acknowledged: Counter[str] = Counter()
        self.errors: list[omnistate.OmnistateError] = []
        self.longest = 0.0
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(THREADS)]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()
        self.written(100)

    def __exit__(self, *_: object) -> None:
        self._goes_on = False
        for thread in self._threads:
            thread.join(60)

    def written(self, more: int) -> None:
        """Returns after so many more acknowledged writes."""
        wanted, deadline = self.acknowledged.total() + more, time.monotonic() + 40
        while self.acknowledged.total() < wanted:
            assert time.monotonic() < deadline, self.errors
            time.sleep(0.01)

    def lost(self) -> int:
        """How many acknowledged writes are not there. None was applied twice."""
        held = {name: self._omni.customer(name).state(Cart).get().items["cup"] for name in self.acknowledged}
        assert all(held[name] <= count for name, count in self.acknowledged.items())
        return sum(count - held[name] for name, count in self.acknowledged.items())

    def _write(self, number: int) -> None:
        turn = 0
        while self._goes_on:
            name, turn, began = f"customer-{number}-{turn % 20}", turn + 1, time.monotonic()
            try:
                if turn % 2:
                    self._omni.customer(name).state(Cart).increment("items", "cup")
                else:
                    self._omni.customer(name).state(Cart).update(Cart.add, "cup")
            except omnistate.OmnistateError as error:
                self.errors.append(error)
            else:
                self.acknowledged[name] += 1
            self.longest = max(self.longest, time.monotonic() - began)
            time.sleep(0.002)  # the servers share the machine


@pytest.fixture
def servers(request: pytest.FixtureRequest) -> Iterator[LocalServers]:
    settings = LocalSettings(binary=Path(find_binary()), durability="none")
    if request.param is LocalCluster:
        yield from running(LocalCluster(replicas=2, node_timeout=timedelta(seconds=1.5), settings=settings))
    else:
        yield from running(LocalSentinel(replicas=2, down_after=timedelta(seconds=1), settings=settings))


@pytest.mark.parametrize(("servers", "how"), WAYS, indirect=["servers"])
def test_threads_see_a_pause_when_a_primary_is_replaced(servers: LocalServers, tenant: str, how: str) -> None:
    async def replace() -> None:
        if isinstance(servers, LocalSentinel):
            primary = await servers.primary()
        else:
            assert isinstance(servers, LocalCluster)
            primary = (await servers.shards())[0].primary
        if how == "killed":
            primary.kill()
        elif isinstance(servers, LocalSentinel):
            await servers.failover()
        else:
            assert isinstance(servers, LocalCluster)
            await servers.failover((await servers.shards())[0].replicas[0])
        async with asyncio.timeout(40):
            while await current() is primary:
                await asyncio.sleep(0.05)

    async def current() -> object:
        if isinstance(servers, LocalSentinel):
            return await servers.primary()
        assert isinstance(servers, LocalCluster)
        return (await servers.shards())[0].primary

    level = omnistate.replicated(1) if how == "killed" else omnistate.ACCEPTED
    with omnistate.connect(servers.url, tenant=tenant, durability=level, timeout=timedelta(seconds=10)) as omni:
        load = Load(omni)
        with load:
            asyncio.run(replace())
            load.written(1000)
        print(f"{type(servers).__name__} {how} {level}: pause {load.longest:.2f} s, {load.acknowledged.total()} writes")
        assert load.errors == []
        assert load.lost() == 0
