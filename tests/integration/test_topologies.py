"""What is moved in order, on clusters and behind Sentinels, is seen by nobody: no error, nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from redis.crc import key_slot

import omnistate
from load import Load, Tally
from machine import SlotMove
from omnistate import Client
from omnistate.ops import LocalCluster, LocalSentinel
from omnistate.store import Keyspace


@pytest.fixture
async def on_cluster(cluster: LocalCluster, tenant: str) -> AsyncIterator[Client]:
    async with omnistate.connect(cluster.url, tenant=tenant) as client:
        yield client
    await cluster.heal()


@pytest.fixture
async def behind_sentinels(sentinel: LocalSentinel, tenant: str) -> AsyncIterator[Client]:
    async with omnistate.connect(sentinel.url, tenant=tenant) as client:
        yield client
    await sentinel.heal()


def slot_of(tenant: str, customer: str) -> int:
    return key_slot(Keyspace(tenant).customer(customer).meta)


async def test_a_planned_failover_of_a_cluster_is_not_seen(cluster: LocalCluster, on_cluster: Client) -> None:
    load = Load(on_cluster)
    async with load.running():
        for shard in await cluster.shards():
            await cluster.failover(shard.replicas[0])
    assert (load.errors, await load.lost()) == ([], 0)


async def test_slots_that_move_are_not_seen(cluster: LocalCluster, on_cluster: Client, tenant: str) -> None:
    load = Load(on_cluster)
    slots = [slot_of(tenant, f"customer-{number}") for number in range(8)]
    async with load.running():
        for slot in slots:
            shards = await cluster.shards()
            source = next(shard for shard in shards if any(slot in part for part in shard.slots))
            target = next(shard for shard in shards if shard is not source)
            move = SlotMove(cluster, slot, to=target.primary)
            await move.begin()
            await load.written(20)  # some keys are here, some there
            while await move.move_keys(3):
                await load.written(5)
            await move.finish()
    assert (load.errors, await load.lost()) == ([], 0)


async def test_a_planned_failover_by_sentinels_is_not_seen(sentinel: LocalSentinel, behind_sentinels: Client) -> None:
    load = Load(behind_sentinels)
    async with load.running():
        await sentinel.failover()
    assert (load.errors, await load.lost()) == ([], 0)


async def test_a_slot_that_nobody_serves_is_waited_for(cluster: LocalCluster, tenant: str) -> None:
    slot = slot_of(tenant, "ana")
    owner = next(one.primary for one in await cluster.shards() if any(slot in part for part in one.slots))
    others = [one.primary for one in await cluster.shards() if one.primary is not owner]

    async def everywhere(word: str) -> None:
        for node in (owner, *others):
            with contextlib.suppress(omnistate.StoreError):  # who has not heard of it yet
                await node.ask("CLUSTER", word, slot)

    async with omnistate.connect(cluster.url, tenant=tenant, timeout=timedelta(seconds=3)) as omni:
        await everywhere("DELSLOTS")
        try:
            with pytest.raises(omnistate.StoreUnavailable):
                await omni.customer("ana").state(Tally).increment("number")
            call = asyncio.create_task(omni.customer("ana").state(Tally).increment("number"))
            await asyncio.sleep(0.2)
        finally:
            await owner.ask("CLUSTER", "ADDSLOTS", slot)
        assert await call == 1
    await cluster.heal()


async def test_a_server_that_is_no_cluster_is_told(url: str) -> None:
    if not url.startswith("redis://"):
        pytest.skip("a single server")
    with pytest.raises(omnistate.StoreError, match="no cluster: connect by redis://"):
        async with omnistate.connect(url.replace("redis://", "redis+cluster://")):
            pass


async def test_a_cluster_is_no_single_server(cluster: LocalCluster, tenant: str) -> None:
    port = cluster.nodes[0].port
    with pytest.raises(omnistate.StoreError, match=r"connect by redis\+cluster://"):
        async with omnistate.connect(f"redis://127.0.0.1:{port}", tenant=tenant) as omni:
            for number in range(16):
                await omni.customer(str(number)).position()


async def test_a_service_that_no_sentinel_knows_is_told(sentinel: LocalSentinel) -> None:
    with pytest.raises(omnistate.StoreError, match="no Sentinel knows 'other'"):
        async with omnistate.connect(sentinel.url.rpartition("/")[0] + "/other"):
            pass
