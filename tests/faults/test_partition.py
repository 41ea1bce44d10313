"""A primary is cut off from the other servers, and goes on to answer clients.

Three hosts: behind Sentinels each has a server and a Sentinel; in a cluster each has a primary, and a replica of the next host's.
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
    for host in three:
        for port in (7000, 7001):
            place = directory / f"{host.address}-{port}"
            place.mkdir()
            options = (
                "--cluster-enabled",
                "yes",
                "--cluster-node-timeout",
                "1500",
                "--cluster-require-full-coverage",
                "no",
            )
            host.run(
                place,
                str(find_binary()),
                "--bind",
                host.address,
                "--port",
                str(port),
                "--dir",
                str(place),
                *COMMON,
                *options,
            )
            until("PONG", *cli(host, port, "PING"))
    primaries = [f"{host.address}:7000" for host in three]
    create = ["redis-cli", "--cluster", "create", *primaries, "--cluster-yes"]
    subprocess.run(create, check=True, capture_output=True, timeout=30)
    for index, host in enumerate(three):
        following = three[(index + 1) % 3]
        id_ = subprocess.run(
            cli(following, 7000, "CLUSTER", "MYID"), capture_output=True, text=True, check=True
        ).stdout.strip()
        subprocess.run(cli(host, 7001, "CLUSTER", "MEET", following.address, "7000"), check=True, capture_output=True)
        until(id_, *cli(host, 7001, "CLUSTER", "NODES"))
        until("OK", *cli(host, 7001, "CLUSTER", "REPLICATE", id_))
        until("master_link_status:up", *cli(host, 7001, "INFO", "replication"))
    for host in three:
        until("cluster_known_nodes:6", *cli(host, 7000, "CLUSTER", "INFO"))
        until("cluster_state:ok", *cli(host, 7000, "CLUSTER", "INFO"))
    return "redis+cluster://" + ",".join(primaries)


ALL = int(os.environ.get("OMNISTATE_EXAMPLES", "1")) > 1
WAYS: list[tuple[Callable[[list[Host], Path], str], Durability]] = [
    (make, level) for make in (behind_sentinels, as_cluster) for level in (replicated(1), ACCEPTED)
]


@pytest.mark.parametrize(
    ("make", "durability"), WAYS if ALL else WAYS[:1], ids=lambda one: getattr(one, "__name__", str(one))
)
async def test_what_was_replicated_is_not_lost_when_a_primary_is_cut_off(
    three: list[Host],
    directory: Path,
    tenant: str,
    make: Callable[[list[Host], Path], str],
    durability: Durability,
) -> None:
    url = await asyncio.to_thread(make, three, directory)
    async with omnistate.connect(url, tenant=tenant, durability=durability) as omni:
        load = Load(omni)
        async with load.running():
            three[0].cut_off(three[1:])
            await asyncio.sleep(CUT_OFF)
            three[0].join()
            await asyncio.sleep(3)  # what was cut off learns what has happened
            await load.written(500)
        lost = await load.lost()
    kinds = sorted({type(error).__name__ for error in load.errors})
    print(
        f"{make.__name__} {durability}: pause {load.longest:.2f} s, lost {lost} of {load.acknowledged.total()}, {kinds}"
    )  # type: ignore[attr-defined]
    if durability != ACCEPTED:
        assert lost == 0
    assert {*kinds} <= {"DurabilityNotReached"}
