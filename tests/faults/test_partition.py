"""A primary is cut off from the other servers, and goes on to answer clients; or its host is gone, for clients too.

Three hosts: behind Sentinels each has a server and a Sentinel; in a cluster each has a primary, and the other two have replicas, so
that every primary has one left, also the one that takes over.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import omnistate
from load import Load
from machine import redis_binary
from network import Host, hosts, until
from omnistate import ACCEPTED, Durability, replicated
from omnistate.store import find_binary

CUT_OFF = 7.0  # seconds
COMMON = ("--protected-mode", "no", "--save", "", "--repl-diskless-sync-delay", "0", "--repl-timeout", "5")


@pytest.fixture
def three() -> Iterator[list[Host]]:
    redis_binary()  # with it comes redis-cli
    with hosts(3) as made:
        yield made


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="omnistate-test-") as path:
        yield Path(path)


def cli(host: Host, port: int, *words: str) -> list[str]:
    return ["redis-cli", "-h", host.address, "-p", str(port), *words]


def behind_sentinels(three: list[Host], directory: Path) -> str:
    first, binary = three[0], str(find_binary())
    for host in three:
        place = directory / host.address
        place.mkdir()
        follows = () if host is first else ("--replicaof", f"{first.address} 6379")
        host.run(place, binary, "--bind", host.address, "--dir", str(place), *COMMON, *follows)
        until("PONG", *cli(host, 6379, "PING"))
    for host in three[1:]:
        until("master_link_status:up", *cli(host, 6379, "INFO", "replication"))
    for host in three:
        settings = directory / host.address / "sentinel.conf"
        settings.write_text(
            f"port 26379\nbind {host.address}\nprotected-mode no\nsentinel monitor shop {first.address} 6379 2\n"
            "sentinel down-after-milliseconds shop 1000\nsentinel failover-timeout shop 6000\n"
        )
        host.run(settings.parent, binary, str(settings), "--sentinel")
    for host in three:
        until("num-other-sentinels\n2\n", *cli(host, 26379, "SENTINEL", "MASTER", "shop"))
        until("num-slaves\n2\n", *cli(host, 26379, "SENTINEL", "MASTER", "shop"))
    return "redis+sentinel://" + ",".join(f"{host.address}:26379" for host in three) + "/shop"


def as_cluster(three: list[Host], directory: Path) -> str:
    first, second, third = three
    follows = [(second, 7001, first), (third, 7001, first), (third, 7002, second), (second, 7002, third)]
    for host, port in [(host, 7000) for host in three] + [(host, port) for host, port, _ in follows]:
        start_in_cluster(host, port, directory / f"{host.address}-{port}")
    primaries = [f"{host.address}:7000" for host in three]
    create = ["redis-cli", "--cluster", "create", *primaries, "--cluster-yes"]
    subprocess.run(create, check=True, capture_output=True, timeout=30)
    for host, port, followed in follows:
        id_ = subprocess.run(
            cli(followed, 7000, "CLUSTER", "MYID"), capture_output=True, text=True, check=True
        ).stdout.strip()
        subprocess.run(cli(host, port, "CLUSTER", "MEET", followed.address, "7000"), check=True, capture_output=True)
        until(id_, *cli(host, port, "CLUSTER", "NODES"))
        until("OK", *cli(host, port, "CLUSTER", "REPLICATE", id_))
        until("master_link_status:up", *cli(host, port, "INFO", "replication"))
    for host in three:
        until("cluster_known_nodes:7", *cli(host, 7000, "CLUSTER", "INFO"))
        until("cluster_state:ok", *cli(host, 7000, "CLUSTER", "INFO"))
    return "redis+cluster://" + ",".join(primaries)


def start_in_cluster(host: Host, port: int, place: Path) -> None:
    place.mkdir()
    options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1500", "--cluster-require-full-coverage", "no"]
    where = ["--bind", host.address, "--port", str(port), "--dir", str(place)]
    host.run(place, str(find_binary()), *where, *COMMON, *options)
    until("PONG", *cli(host, port, "PING"))


ALL = int(os.environ.get("OMNISTATE_EXAMPLES", "1")) > 1
Make = Callable[[list[Host], Path], str]
WAYS: list[tuple[Make, bool, Durability]] = [
    (make, is_gone, level)
    for make in (behind_sentinels, as_cluster)
    for is_gone in (False, True)
    for level in (replicated(1), ACCEPTED)
]


def named(one: object) -> str:
    return {True: "gone", False: "cut_off"}[one] if isinstance(one, bool) else str(getattr(one, "__name__", one))


@pytest.mark.parametrize(("make", "is_gone", "durability"), WAYS if ALL else WAYS[:1], ids=named)
async def test_what_was_replicated_is_not_lost_when_a_primary_is_cut_off(
    three: list[Host],
    directory: Path,
    tenant: str,
    make: Make,
    is_gone: bool,
    durability: Durability,
    measured: Callable[[str], None],
) -> None:
    url = await asyncio.to_thread(make, three, directory)
    async with omnistate.connect(url, tenant=tenant, durability=durability) as omni:
        load = Load(omni)
        async with load.running():
            three[0].cut_off(three[1:], from_all=is_gone)
            if is_gone:
                await load.written(500)  # by who has taken over
            await asyncio.sleep(CUT_OFF)
            three[0].join()
            await asyncio.sleep(3)  # what was cut off learns what has happened
            await load.written(500)
        lost = await load.lost()
    measured(
        f"{named(make)} {named(is_gone)}, {durability}: pause {load.longest:.2f} s, lost {lost} of "
        f"{load.acknowledged.total()}"
    )
    if durability != ACCEPTED:
        assert lost == 0
    assert load.errors == []
