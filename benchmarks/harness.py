"""What the benchmarks share: a server on one core, clients on the other, interleaved rounds, medians."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

ROUNDS = int(os.environ.get("ROUNDS", "5"))
SERVER_CORE, CLIENT_CORE = 0, 1
SLOTS = 16384


@dataclass(frozen=True, slots=True)
class Store:
    """What a benchmark runs on: one server, or a cluster of primaries, which share the servers' core."""

    ports: tuple[int, ...]

    @property
    def is_cluster(self) -> bool:
        return len(self.ports) > 1

    @property
    def url(self) -> str:
        return ("redis+cluster://" if self.is_cluster else "redis://") + ",".join(f"127.0.0.1:{p}" for p in self.ports)

    def id(self, benchmark: str) -> str:
        """How the benchmark's rows are called."""
        return f"{benchmark} cluster" if self.is_cluster else benchmark

    def port_of(self, slot: int) -> int:
        """Who serves it: each has the same share, in order."""
        last = [(number + 1) * SLOTS // len(self.ports) - 1 for number in range(len(self.ports))]
        return next(port for port, end in zip(self.ports, last, strict=True) if slot <= end)


@contextlib.contextmanager
def opened(topology: str) -> Iterator[Store]:
    """`standalone` or `cluster`."""
    with (cluster if topology == "cluster" else standalone)() as store:
        yield store


@contextlib.contextmanager
def standalone() -> Iterator[Store]:
    with server() as port:
        yield Store((port,))


@contextlib.contextmanager
def cluster(shards: int = 3) -> Iterator[Store]:
    """Primaries without replicas and persistence on the servers' core; this process is pinned to the other."""
    from omnistate.ops import LocalCluster, LocalSettings

    binary = Path(os.environ["SERVER"]) if "SERVER" in os.environ else None
    servers = LocalCluster(shards, replicas=0, settings=LocalSettings(durability="none", binary=binary))
    pin(0, SERVER_CORE)  # which the servers inherit
    asyncio.run(servers.start())
    pin(0, CLIENT_CORE)
    try:
        yield Store(tuple(node.port for node in servers.nodes))
    finally:
        asyncio.run(servers.stop())


@contextlib.contextmanager
def server(binary: str | None = None) -> Iterator[int]:
    """A server without persistence, pinned to its core; this process is pinned to the other.

    Its allocator is set as the embedded server's is.
    """
    from omnistate.store import find_binary
    from omnistate.store._process import ALLOCATOR

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    directory = tempfile.mkdtemp(prefix="omnistate-bench-")
    command = [
        binary or os.environ.get("SERVER") or str(find_binary()),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        directory,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={"GLIBC_TUNABLES": ALLOCATOR, **os.environ})
    pin(process.pid, SERVER_CORE)
    pin(0, CLIENT_CORE)
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.01)
        yield port
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(directory, ignore_errors=True)


def pin(pid: int, core: int) -> None:
    """All threads of a process, 0 for this one: a client may have some of its own."""
    if (os.cpu_count() or 1) > 1:
        for thread in Path(f"/proc/{pid or 'self'}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), {core})


def run(work: Awaitable[Any]) -> Any:
    async def main() -> Any:
        return await work

    return uvloop.run(main())


async def throughput(
    call: Callable[[int], Awaitable[object]], *, callers: int, seconds: float
) -> tuple[float, list[float]]:
    """Calls a second of so many callers, and the time of each call in milliseconds."""
    end = time.perf_counter() + seconds
    times: list[float] = []

    async def caller(number: int) -> None:
        while (began := time.perf_counter()) < end:
            await call(number)
            times.append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(callers)))
    return len(times) / (time.perf_counter() - began), times


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def median(values: list[float]) -> float:
    return statistics.median(values)


def versions() -> dict[str, str]:
    from omnistate.store import find_binary

    said = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, check=True).stdout.split()
    server_version = next((word.removeprefix("v=") for word in said if word.startswith("v=")), "?")
    names = ["redis", "coredis", "valkey-glide", "hiredis", "msgspec", "uvloop", "starlette", "uvicorn", "websockets"]
    packages = {name: version(name) for name in names}
    return {"python": platform.python_version(), "server": f"{said[0].lower()} {server_version}", **packages}
