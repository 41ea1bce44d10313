"""Clusters and Sentinel set-ups on this machine: complete when they are ready, the same when they come back, gone when they
are stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from redis import Redis, RedisCluster
from redis.crc import key_slot
from redis.exceptions import RedisError
from redis.sentinel import Sentinel

import omnistate
from machine import SlotMove, free_block, is_running, listening, redis_binary
from omnistate.ops import LocalCluster, LocalSentinel, LocalServers, LocalSettings, Shard
from omnistate.store import find_binary

QUICK = timedelta(seconds=1)
KINDS = [LocalCluster, LocalSentinel]


@pytest.fixture(params=["valkey", "redis"])
def binary(request: pytest.FixtureRequest) -> Path:
    return find_binary() if request.param == "valkey" else Path(redis_binary())


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> type[LocalCluster | LocalSentinel]:
    return request.param  # type: ignore[no-any-return]


async def until(condition: Callable[[], Awaitable[bool]], seconds: float) -> float:
    """How long it took."""
    started = time.monotonic()
    while not await condition():
        assert time.monotonic() < started + seconds, "it did not happen"
        await asyncio.sleep(0.02)
    return time.monotonic() - started


async def shard_of(cluster: LocalCluster, key: str) -> Shard:
    slot = key_slot(key.encode())
    return next(shard for shard in await cluster.shards() if any(slot in part for part in shard.slots))


async def roles(servers: LocalServers) -> dict[int, str]:
    return {node.port: await node.role() for node in servers.nodes}


async def test_every_slot_is_served_as_soon_as_a_cluster_is_ready(binary: Path) -> None:
    async with LocalCluster(settings=LocalSettings(binary=binary, durability="none")) as cluster:
        pids, directory = [node.pid for node in cluster.nodes], cluster.directory
        with RedisCluster.from_url(cluster.url.replace("redis+cluster", "redis").split(",")[0]) as client:
            for number in range(200):
                assert client.set(f"key-{number}", number)
            assert client.wait(1, 1000, target_nodes=client.get_primaries())
        assert [sum(map(len, shard.slots)) for shard in await cluster.shards()] == [5461, 5461, 5462]
        assert all(len(shard.replicas) == 1 for shard in await cluster.shards())
    assert not any(map(is_running, pids))
    assert not directory.exists()


async def test_the_sentinels_know_each_other_as_soon_as_they_are_ready(binary: Path) -> None:
    async with LocalSentinel(2, settings=LocalSettings(binary=binary, durability="none")) as servers:
        pids, directory = [node.pid for node in servers.nodes], servers.directory
        for node in servers.sentinels:
            assert (await node.ask("SENTINEL", "CKQUORUM", "omnistate")).startswith(b"OK 3 usable Sentinels")
        with contextlib.closing(Sentinel([("127.0.0.1", servers.sentinels[0].port)])) as found:
            assert found.discover_master("omnistate") == ("127.0.0.1", (await servers.primary()).port)
            assert len(found.discover_slaves("omnistate")) == 2
    assert not any(map(is_running, pids))
    assert not directory.exists()


async def test_it_comes_back_as_it_was(binary: Path, data_dir: Path, kind: type[LocalCluster | LocalSentinel]) -> None:
    settings = LocalSettings(directory=data_dir / "kept", binary=binary)
    async with kind(settings=settings) as servers:
        if isinstance(servers, LocalCluster):
            await servers.failover((await shard_of(servers, "a")).replicas[0])
            primary = (await shard_of(servers, "a")).primary
        else:
            primary = await servers.primary()
        await primary.ask("SET", "a", "kept")
        before, url = await roles(servers), servers.url
    assert before[primary.port] == "primary"
    async with kind(settings=settings) as again:
        assert (await roles(again), again.url) == (before, url)
        at = next(node for node in again.nodes if node.port == primary.port)
        assert await at.ask("GET", "a") == b"kept"


async def test_the_sentinels_choice_lasts(data_dir: Path) -> None:
    settings = LocalSettings(directory=data_dir)
    async with LocalSentinel(settings=settings) as servers:
        before = await servers.primary()
        primary = await servers.failover()
        await servers.wait_until_ready()
        assert await before.role() == "replica"
    async with LocalSentinel(settings=settings) as again:
        assert (await again.primary()).port == primary.port != before.port


async def test_a_replica_of_a_cluster_takes_over_when_its_primary_is_killed(binary: Path) -> None:
    settings = LocalSettings(binary=binary, durability="none")
    async with LocalCluster(node_timeout=QUICK, settings=settings) as cluster:
        shard = await shard_of(cluster, "a")
        [replica] = shard.replicas
        shard.primary.kill()
        assert not shard.primary.is_running

        async def took_over() -> bool:
            with contextlib.suppress(RedisError):
                return bool(Redis(port=replica.port).set("a", "x"))
            return False

        assert await until(took_over, 10) > 0.5
        await cluster.heal()
        assert (await shard_of(cluster, "a")).primary is replica
        assert await shard.primary.role() == "replica"


async def test_a_replica_takes_over_when_the_sentinels_primary_is_killed(binary: Path) -> None:
    settings = LocalSettings(binary=binary, durability="none")
    async with LocalSentinel(down_after=QUICK, settings=settings) as servers:
        primary, [replica] = await servers.primary(), await servers.replicas()
        primary.kill()

        async def took_over() -> bool:
            return await servers.primary() is replica and bool(Redis(port=replica.port).set("a", "x"))

        assert await until(took_over, 15) > 0.5


async def test_a_paused_primary_is_replaced_and_follows_when_it_goes_on(cluster: LocalCluster) -> None:
    shard = (await cluster.shards())[0]
    shard.primary.pause()
    assert shard.primary.is_running

    async def took_over() -> bool:
        return await shard.replicas[0].role() == "primary"

    await until(took_over, 10)
    await cluster.heal()
    assert await shard.primary.role() == "replica"


async def test_a_planned_failover_is_known_to_all_when_it_returns(
    cluster: LocalCluster, sentinel: LocalSentinel
) -> None:
    shard = (await cluster.shards())[2]
    await cluster.failover(shard.replicas[0])
    assert (await cluster.shards())[2].primary is shard.replicas[0]
    before = await sentinel.primary()
    assert await sentinel.failover() is not before
    await sentinel.wait_until_ready()


async def test_a_slot_moves_with_its_keys(cluster: LocalCluster) -> None:
    names = [f"{{ana}}{number}" for number in range(5)]
    source, target = (await shard_of(cluster, "ana")).primary, (await shard_of(cluster, "cup")).primary
    assert source is not target
    with RedisCluster("127.0.0.1", source.port) as client:
        client.mset_nonatomic({name: name for name in names})
        move = SlotMove(cluster, key_slot(b"ana"), to=target)
        await move.begin()
        assert await move.move_keys(2) == 2
        assert [client.get(name) for name in names] == [name.encode() for name in names]  # some by ASK
        await move.run()
        assert (await shard_of(cluster, "ana")).primary is target
        assert sorted(Redis(port=target.port).keys("{ana}*")) == [name.encode() for name in names]
        await SlotMove(cluster, key_slot(b"ana"), to=source).run()
        assert [client.get(name) for name in names] == [name.encode() for name in names]
    await cluster.wait_until_ready()


async def test_a_port_in_use_is_told_and_nothing_is_left(
    data_dir: Path, kind: type[LocalCluster | LocalSentinel]
) -> None:
    port = free_block()
    further = 10_000 if kind is LocalCluster else 20_000
    with listening(port + further + 1), pytest.raises(omnistate.PortInUse, match=str(port + further + 1)):
        await kind(settings=LocalSettings(directory=data_dir / "new", first_port=port)).start()
    assert not (data_dir / "new").exists()


async def test_a_program_that_ends_is_told_with_its_last_words_and_nothing_is_left(
    data_dir: Path, kind: type[LocalCluster | LocalSentinel]
) -> None:
    script = data_dir / "server"
    script.write_text("#!/bin/sh\necho the disk is full\nexit 3\n")
    script.chmod(0o700)
    with pytest.raises(omnistate.ServerFailed, match="ended with 3(.|\n)*the disk is full"):
        await kind(settings=LocalSettings(directory=data_dir / "new", binary=script)).start()
    with pytest.raises(omnistate.ServerBinaryMissing, match="not a program"):
        await kind(settings=LocalSettings(binary=data_dir / "none")).start()
    assert list(data_dir.iterdir()) == [script]


async def test_an_option_that_the_server_refuses_is_told(kind: type[LocalCluster | LocalSentinel]) -> None:
    with pytest.raises(omnistate.ServerFailed, match="nonsense 3"):
        await kind(settings=LocalSettings(options=["nonsense 3"])).start()


async def test_a_directory_of_something_else_is_left_alone(data_dir: Path) -> None:
    settings = LocalSettings(directory=data_dir, durability="none")
    (data_dir / "holiday.jpg").write_text("x")
    with pytest.raises(omnistate.DataDirectoryUnusable, match="not a local cluster's"):
        await LocalSentinel(settings=settings).start()
    (data_dir / "holiday.jpg").unlink()
    async with LocalSentinel(settings=settings) as servers:
        first = servers.layout.first_port
        with pytest.raises(omnistate.DataDirectoryInUse, match=f"process {os.getpid()}"):
            await LocalSentinel(settings=settings).start()
    with pytest.raises(
        omnistate.DataDirectoryUnusable, match="a primary with 1 replica and 3 sentinels, not a cluster"
    ):
        await LocalCluster(settings=settings).start()
    with pytest.raises(omnistate.DataDirectoryUnusable, match=f"ports from {first}"):
        await LocalSentinel(settings=LocalSettings(directory=data_dir, first_port=first + 1)).start()
    (data_dir / "topology.json").write_text("{")
    with pytest.raises(omnistate.DataDirectoryUnusable, match="cannot be read"):
        await LocalSentinel(settings=settings).start()
    (data_dir / "topology.json").write_text('{"kind": "cluster", "replicas": 1, "format": 2}')
    with pytest.raises(omnistate.DataDirectoryTooNew, match="upgrade"):
        await LocalSentinel(settings=settings).start()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LocalCluster(2), "3 shards or more"),
        (lambda: LocalCluster(3, -1), "-1 replicas"),
        (lambda: LocalSentinel(0), "needs a replica"),
        (lambda: LocalSentinel(1, 2), "3 sentinels or more"),
    ],
)
def test_what_cannot_work_is_refused(make: Callable[[], LocalServers], words: str) -> None:
    with pytest.raises(omnistate.InvalidInput, match=words):
        make()


HOLDER = """
import asyncio, sys
from pathlib import Path
from omnistate.ops import LocalSentinel, LocalSettings
async def main():
    async with LocalSentinel(settings=LocalSettings(directory=Path(sys.argv[1]))) as servers:
        print(*(node.pid for node in servers.nodes), flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_the_servers_die_with_their_parent_and_come_back(data_dir: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(data_dir)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        pids = [int(pid) for pid in holder.stdout.readline().split()]
        holder.send_signal(signal.SIGKILL)
    assert len(pids) == 5
    async with LocalSentinel(settings=LocalSettings(directory=data_dir)):
        assert not any(map(is_running, pids))
