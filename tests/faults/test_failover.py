"""A primary is killed, stops answering for a while, or is replaced in order, while clients write and watch.

Callers see a pause and no error at the default deadline. At `replicated(1)` nothing that was acknowledged is lost; at `accepted`
what was lost is told at the end of the run, as are the pauses.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

import omnistate
from load import Load
from machine import redis_binary, running
from omnistate import ACCEPTED, Durability, replicated
from omnistate.ops import LocalCluster, LocalSentinel, LocalServers, LocalSettings, Node
from omnistate.store import find_binary

ALL = int(os.environ.get("OMNISTATE_EXAMPLES", "1")) > 1  # else one way for each kind of servers
HOW = ("killed", "paused", "planned", "planned plainly")
WAYS = [(how, level) for how in HOW for level in (ACCEPTED, replicated(1))] if ALL else [("killed", replicated(1))]
NODE_TIMEOUT, DOWN_AFTER = timedelta(seconds=1.5), timedelta(seconds=1)
SERVICE = "omnistate"  # as the Sentinels of `LocalSentinel` call it
AWAY = 5.0  # seconds that a primary does not answer


@pytest.fixture(scope="module", params=["valkey", "redis"] if ALL else ["valkey"])
def settings(request: pytest.FixtureRequest) -> LocalSettings:
    binary = find_binary() if request.param == "valkey" else Path(redis_binary())
    return LocalSettings(binary=binary, durability="none")


@pytest.fixture(scope="module", params=[LocalCluster, LocalSentinel])
def servers(request: pytest.FixtureRequest, settings: LocalSettings) -> Iterator[LocalServers]:
    if request.param is LocalCluster:
        yield from running(LocalCluster(replicas=2, node_timeout=NODE_TIMEOUT, settings=settings))
    else:
        yield from running(LocalSentinel(replicas=2, down_after=DOWN_AFTER, settings=settings))


@pytest.fixture
async def load(servers: LocalServers, tenant: str, durability: Durability) -> AsyncIterator[Load]:
    await servers.heal()
    async with omnistate.connect(servers.url, tenant=tenant, durability=durability) as omni:
        yield Load(omni)


async def primary_of(servers: LocalServers) -> Node:
    if isinstance(servers, LocalSentinel):
        return await servers.primary()
    assert isinstance(servers, LocalCluster)
    return (await servers.shards())[0].primary


@pytest.mark.parametrize(("how", "durability"), WAYS, ids=str)
async def test_callers_see_a_pause_when_a_primary_is_replaced(
    servers: LocalServers,
    load: Load,
    how: str,
    durability: Durability,
    settings: LocalSettings,
    measured: Callable[[str], None],
) -> None:
    if how == "planned plainly" and isinstance(servers, LocalCluster):
        pytest.skip("a cluster knows one way")
    primary = await primary_of(servers)
    async with load.running():
        if how == "killed":
            primary.kill()
        elif how == "paused":
            primary.pause()
            await asyncio.sleep(AWAY)
            primary.resume()
        elif how == "planned plainly":
            assert isinstance(servers, LocalSentinel)
            await servers.sentinels[0].ask("SENTINEL", "FAILOVER", SERVICE)
        elif isinstance(servers, LocalSentinel):
            await servers.failover()  # coordinated, where the server knows it
        else:
            assert isinstance(servers, LocalCluster)
            await servers.failover((await servers.shards())[0].replicas[0])
        while await primary_of(servers) is primary:
            await asyncio.sleep(0.05)
        await load.written(2000)
    lost = await load.lost()
    unplanned = (
        DOWN_AFTER.total_seconds() + 2.5 if isinstance(servers, LocalSentinel) else 2 * NODE_TIMEOUT.total_seconds() + 1
    )
    wanted = f" (wanted: {unplanned:g})" if how in ("killed", "paused") else ""
    measured(
        f"{settings.binary and settings.binary.name} {type(servers).__name__} {how}, {durability}: pause {load.longest:.2f} s"
        f"{wanted}, lost {lost} of {load.acknowledged.total()}"
    )
    assert load.errors == []
    if durability != ACCEPTED:
        assert lost == 0
