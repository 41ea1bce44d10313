"""The server is killed between any two calls of what takes several, and so is the client: another client finishes it.

The n-th call is applied and its reply lost, the server killed and started again, and the client's task ended there.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import omnistate
from dying import Dies, die_at
from machine import Server, SteppedServer
from omnistate import Client, Customer, migrate
from omnistate.ops import Bulk, Sweeper, export_all, import_all, migrate_all
from proxy import Proxy

HOUR = timedelta(hours=1)


class Ledger(omnistate.State, name="RestartLedger"):
    total: int = 0
    lines: dict[str, int] = {}

    def merge(self, other: Ledger) -> None:
        self.total += other.total
        for key, number in other.lines.items():
            self.lines[key] = self.lines.get(key, 0) + number


class Old(omnistate.State, name="RestartOld"):
    total: int = 0


class New(omnistate.State, name="RestartOld", version=2):
    sum: int = 0

    @migrate(1, 2)
    def rename(fields: dict[str, Any]) -> None:  # noqa: N805
        fields["sum"] = fields.pop("total", 0)


class Card(omnistate.State, name="RestartCard", ttl=HOUR):
    name: str = ""


VISITED = omnistate.List(str, name="restart_visited")
TAGS = omnistate.Set(str, name="restart_tags")
PRICES = omnistate.Map(str, int, name="restart_prices")
BOARD = omnistate.SortedSet(str, name="restart_board")
POINTS = omnistate.Counter(name="restart_points")
SEEN = omnistate.UniqueCounter(str, name="restart_seen")
JOBS = omnistate.WorkQueue(str, name="restart_jobs")
RECENT = omnistate.List(str, name="restart_recent", ttl=HOUR)
COLLECTIONS = {one.name: one for one in (VISITED, TAGS, PRICES, BOARD, POINTS, SEEN, JOBS)}
KINDS: dict[str, Any] = {"RestartLedger": Ledger, "RestartCard": Card}


@pytest.fixture
async def proxy(mortal_valkey: SteppedServer) -> AsyncIterator[Proxy]:
    mortal_valkey.set_clock(timedelta())
    async with Proxy(mortal_valkey.port) as made:
        yield made
    mortal_valkey.set_clock(timedelta())


@pytest.fixture
def dies(proxy: Proxy, mortal_valkey: SteppedServer, tenant: str) -> Dies:
    return partial(die_at, proxy=proxy, server=mortal_valkey, tenant=tenant)


@pytest.fixture
async def omni(mortal_valkey: Server, tenant: str) -> AsyncIterator[Client]:
    async with omnistate.connect(mortal_valkey.url, tenant=tenant) as client:
        yield client


async def fill(customer: Customer, who: str, number: int) -> None:
    await customer.state(Ledger).set(Ledger(total=number, lines={"both": number, who: 1}))
    await customer.collection(VISITED).append(f"{who}-1", f"{who}-2")
    await customer.collection(TAGS).add("both", who)
    await customer.collection(PRICES).update({"both": number, who: number})
    await customer.collection(BOARD).update({"both": number, who: number})
    await customer.collection(POINTS).add(number)
    await customer.collection(SEEN).add("both", who)
    await customer.collection(JOBS).put(f"{who}-1", f"{who}-2")


async def contents(customer: Customer) -> list[Any]:
    held = [await customer.state(Ledger).get(), await customer.state(Card).get()]
    held += [await customer.collection(one).all() for one in (VISITED, TAGS, PRICES, BOARD)]
    return [*held, await customer.collection(POINTS).get(), await customer.collection(SEEN).count()]


async def test_a_merge_that_is_killed_at_any_call_is_finished_by_another_client(omni: Client, dies: Dies) -> None:
    for number in itertools.count(1):
        ana = await omni.identify("web", f"ana-{number}")
        ben = await omni.identify("app", f"ben-{number}")
        await ben.link("mail", f"ben-{number}")
        await fill(ana, "ana", 1)
        await fill(ben, "ben", 10)
        await ben.state(Card).patch(name="Ben")

        async def merge(client: Client, ana: Customer = ana, ben: Customer = ben) -> None:
            await client.customer(ana.id).merge(client.customer(ben.id))

        died = await dies(number, merge)
        for _ in range(2):
            await merge(omni)
            assert await contents(ana) == [
                Ledger(total=11, lines={"both": 11, "ana": 1, "ben": 1}), Card(name="Ben"),
                ["ben-1", "ben-2", "ana-1", "ana-2"], {"both", "ana", "ben"},
                {"both": 1, "ana": 1, "ben": 10}, {"both": 10, "ana": 1, "ben": 10}, 11, 3,
            ]  # fmt: skip
        items = await ana.collection(JOBS).claim_many(10)
        assert [item.value for item in items] == ["ana-1", "ana-2", "ben-1", "ben-2"]
        for channel, address in (("web", "ana"), ("app", "ben"), ("mail", "ben")):
            assert (await omni.identify(channel, f"{address}-{number}")).id == ana.id
        with pytest.raises(omnistate.CustomerMerged):
            await ben.state(Ledger).patch(total=1)
        if not died:
            assert number > 15
            return


async def test_a_transaction_that_is_killed_at_any_call_is_applied_once(omni: Client, dies: Dies) -> None:
    for number in itertools.count(1):
        name = f"ana-{number}"
        await fill(omni.customer(name), "ana", 5)

        async def buy(client: Client, name: str = name) -> bool:
            async with client.customer(name).transaction(operation_id="order-1") as tx:
                await tx.get(Card)
                total = tx.state(Ledger).increment("total")
                points = tx.collection(POINTS).add(-1)
                job = tx.collection(JOBS).put("pack")
                tx.collection(PRICES).put("last", 1)
            assert (total.value, points.value, len(job.value)) == (6, 4, 1)
            return tx.repeated

        died = await dies(number, buy)
        repeated = await buy(omni)
        assert repeated == (number > 2 or not died)  # it reads, looks the id up, and is applied
        assert await buy(omni)
        held = await contents(omni.customer(name))
        assert (held[0].total, held[4]["last"], held[6]) == (6, 1, 4)
        assert await omni.customer(name).collection(JOBS).size() == (3, 0)
        if not died:
            assert number == 4
            return


async def types(customer: Customer, after: omnistate.Position) -> list[str]:
    end, found = await customer.position(), []
    while len(found) < end.offset - after.offset:
        async for event in customer.events(after=after):
            found.append(event.type)
            if event.position == end:
                break
    return found


@pytest.mark.parametrize("function", [b"_agenda_take", b"_log_due", b"_log_expire"])
async def test_what_a_killed_sweeper_leaves_is_ended_once_by_another(
    omni: Client, dies: Dies, function: bytes, mortal_valkey: SteppedServer
) -> None:
    customers = [omni.customer(f"customer-{number}") for number in range(12)]
    for customer in customers:
        await customer.state(Card).patch(name="x")
        await customer.collection(RECENT).append("x")
    starts = [await customer.position() for customer in customers]
    mortal_valkey.step_clock(1.5 * HOUR)

    async def sweep(client: Client) -> None:
        sweepers = [Sweeper(client.services, client.keyspace) for _ in range(2)]
        await asyncio.gather(*(one.sweep() for one in sweepers))

    assert await dies(function, sweep)
    other = Sweeper(omni.services, omni.keyspace)
    await other.sweep()
    mortal_valkey.step_clock(timedelta(seconds=31))  # the lease of the one that died
    await asyncio.gather(other.sweep(), Sweeper(omni.services, omni.keyspace).sweep())
    assert await other.sweep() == 0
    for customer, start in zip(customers, starts, strict=True):
        assert sorted(await types(customer, start)) == ["collection.expired", "state.expired"]


@pytest.mark.parametrize("call", [1, 100, 257, 258, 262, 270])
async def test_an_update_of_many_that_is_killed_is_finished_by_another_client(
    omni: Client, dies: Dies, call: int
) -> None:
    customers = [omni.customer(f"customer-{number}") for number in range(12)]
    for customer in customers:
        await customer.state(Ledger).patch(total=1)
    before = [(await customer.position()).offset for customer in customers]

    async def update(client: Client) -> None:
        async for _, result in client.update_many(Ledger, lambda ledger: setattr(ledger, "total", 2)):
            assert not isinstance(result, Exception)

    assert await dies(call, update)
    await update(omni)
    for customer, offset in zip(customers, before, strict=True):
        assert (await customer.state(Ledger).get()).total == 2
        assert (await customer.position()).offset == offset + 1


@pytest.mark.parametrize("calls", [(1, 2), (100, 5), (256, 10), (257, 20), (300, 40), (400, 60), (520, 80)])
async def test_an_export_and_an_import_that_are_killed_go_on(
    omni: Client, dies: Dies, calls: tuple[int, int], tmp_path: Path, mortal_valkey: Server, tenant: str
) -> None:
    for number in range(8):
        customer = await omni.identify("web", f"visitor-{number}")
        await fill(customer, "ana", number)
    path = tmp_path / "export"
    path.touch()

    async def exports(client: Client) -> None:
        with open(path, "r+b") as file:
            report = await export_all(
                Bulk(client.services, client.keyspace), file, KINDS, COLLECTIONS, journal=tmp_path / "exported"
            )
        assert not report.failed

    assert await dies(calls[0], exports)
    await exports(omni)
    lines = path.read_bytes().splitlines()
    assert len(lines) == 8

    async def imports(client: Client) -> None:
        async with omnistate.connect(str(client.url), tenant=tenant + "-other") as other:
            with open(path, "rb") as file:
                report = await import_all(
                    Bulk(other.services, other.keyspace), file, KINDS, COLLECTIONS, journal=tmp_path / "imported"
                )
            assert not report.failed

    assert await dies(calls[1], imports)
    await imports(omni)
    async with omnistate.connect(mortal_valkey.url, tenant=tenant + "-other") as other:
        for number in range(8):
            old, new = await omni.identify("web", f"visitor-{number}"), await other.identify("web", f"visitor-{number}")
            assert new.id == old.id
            assert await contents(new) == await contents(old)
            assert await new.collection(JOBS).size() == (2, 0)


@pytest.mark.parametrize("call", [1, 256, 257, 300, 515, 525, 530, 535])
async def test_a_migration_that_is_killed_goes_on(omni: Client, dies: Dies, call: int, tmp_path: Path) -> None:
    customers = [omni.customer(f"customer-{number}") for number in range(12)]
    for number, customer in enumerate(customers):
        await customer.state(Old).patch(total=number)
    before = [(await customer.position()).offset for customer in customers]

    async def migrates(client: Client) -> None:
        bulk = Bulk(client.services, client.keyspace)
        await migrate_all(bulk, {"RestartOld": New}, journal=tmp_path / "journal")

    assert await dies(call, migrates)
    await migrates(omni)
    for number, (customer, offset) in enumerate(zip(customers, before, strict=True)):
        assert (await customer.state(New).get()).sum == number
        assert (await customer.position()).offset == offset + 1
