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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

ROUNDS = int(os.environ.get("ROUNDS", "5"))
SERVER_CORE, CLIENT_CORE = 0, 1


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
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(pid, {core})


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
    packages = {
        name: version(name) for name in ("redis", "hiredis", "msgspec", "uvloop", "starlette", "uvicorn", "websockets")
    }
    return {"python": platform.python_version(), "server": f"{said[0].lower()} {server_version}", **packages}
