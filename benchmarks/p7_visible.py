"""P7: from an update on one channel to its arrival on another WebSocket, idle and with 1,000 clients under load.

Ours is `omnistate serve`; the peer is Starlette and redis-py doing the same by hand, on the same uvicorn; the limit is a
bare publish from one connection to another, with no gateway between.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import hiredis
from websockets.asyncio.client import ClientConnection, connect

import omnistate
import peers
from harness import ROUNDS, SERVER_CORE, median, percentile, pin, run, server

CLIENTS, RATE, SECONDS = 1000, 300, 4.0
IDLE_UPDATES = 300


class Cart(omnistate.State):
    items: dict[str, int] = {}

    @omnistate.action
    def add(self, sku: str) -> None:
        self.items[sku] = self.items.get(sku, 0) + 1


app = omnistate.App(Cart)


@contextlib.contextmanager
def process(port: int, *command: str) -> Iterator[None]:
    """A gateway, on the server's core: the clients have the other one."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    silent = subprocess.DEVNULL
    started = subprocess.Popen([sys.executable, *command], env=environment, stdout=silent, stderr=silent)
    pin(started.pid, SERVER_CORE)
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert started.poll() is None, "the gateway ended"
            assert time.monotonic() < deadline, "the gateway did not start"
            time.sleep(0.05)
        yield
    finally:
        started.terminate()
        started.wait(20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Pair:
    """Two sockets of one customer: one changes the cart, the other sees it."""

    def __init__(self, mobile: ClientConnection, web: ClientConnection, change: str) -> None:
        self._mobile, self._web, self._change = mobile, web, change
        self.arrived: asyncio.Queue[float] = asyncio.Queue()
        self.tasks = [asyncio.create_task(self._hear()), asyncio.create_task(self._ignore())]

    async def update(self) -> float:
        """Milliseconds until the other socket has it."""
        began = time.perf_counter()
        await self._mobile.send(self._change)
        return (await self.arrived.get() - began) * 1000

    async def _hear(self) -> None:
        async for said in self._web:
            if b"cup" in (said if isinstance(said, bytes) else said.encode()):
                self.arrived.put_nowait(time.perf_counter())

    async def _ignore(self) -> None:
        async for said in self._mobile:
            assert "error" not in str(said), said


async def our_pair(url: str, user: str) -> Pair:
    sockets = []
    for channel in ("mobile", "web"):
        opened = await connect(url + "/connection/websocket", compression=None)
        await opened.send(json.dumps({"id": 1, "connect": {"token": f"dev:{channel}:{user}"}}))
        await opened.recv()
        sockets.append(opened)
    await sockets[1].send(json.dumps({"id": 2, "subscribe": {"channel": f"customer:{user}"}}))
    await sockets[1].recv()
    return Pair(*sockets, json.dumps({"id": 3, "rpc": {"method": "Cart.add", "data": {"sku": "cup"}}}))


async def peer_pair(url: str, user: str) -> Pair:
    mobile = await connect(f"{url}/ws/{user}", compression=None)
    web = await connect(f"{url}/ws/{user}?follow=1", compression=None)
    await web.recv()
    return Pair(mobile, web, json.dumps({"add": "cup"}))


async def idle(pair: Pair) -> list[float]:
    chance, found = random.Random(1), []
    for _ in range(IDLE_UPDATES):
        found.append(await pair.update())
        await asyncio.sleep(chance.uniform(0.001, 0.004))
    return found


async def loaded(pairs: list[Pair]) -> list[float]:
    """RATE updates a second, of random customers, at random times."""
    chance, tasks = random.Random(2), []
    free = set(range(len(pairs)))

    async def one(number: int) -> float:
        milliseconds = await pairs[number].update()
        free.add(number)
        return milliseconds

    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        await asyncio.sleep(chance.expovariate(RATE))
        number = chance.choice(sorted(free))
        free.discard(number)
        tasks.append(asyncio.create_task(one(number)))
    return list(await asyncio.gather(*tasks))


@contextlib.asynccontextmanager
async def pairs_of(make: Callable[[str, str], Awaitable[Pair]], url: str, many: int) -> AsyncIterator[list[Pair]]:
    pairs: list[Pair] = []
    for first in range(0, many, 50):
        pairs += await asyncio.gather(*(make(url, f"user-{number}") for number in range(first, min(first + 50, many))))
    try:
        yield pairs
    finally:
        for pair in pairs:
            for task in pair.tasks:
                task.cancel()
            pair._mobile.transport.abort()
            pair._web.transport.abort()


async def hop(port: int) -> list[float]:
    """A publish on one connection until it is read on another."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    heard, said = await asyncio.open_connection("127.0.0.1", port)
    said.write(peers.pack("SUBSCRIBE", "hop"))
    parser = hiredis.Reader()
    parser.feed(await heard.read(1000))
    chance, found = random.Random(3), []
    for _ in range(IDLE_UPDATES):
        began = time.perf_counter()
        writer.write(peers.pack("PUBLISH", "hop", "x" * 150))
        parser.feed(await heard.read(1000))
        found.append((time.perf_counter() - began) * 1000)
        await reader.read(100)
        await asyncio.sleep(chance.uniform(0.001, 0.004))
    writer.close()
    said.close()
    return found


async def measure(redis_port: int, ours: str, peer: str) -> dict[str, Any]:
    found: dict[str, list[list[float]]] = {}
    gateways = {"omnistate": (our_pair, ours), "starlette": (peer_pair, peer)}
    for _ in range(ROUNDS):
        found.setdefault("bare publish", []).append(await hop(redis_port))
        for name, (make, url) in gateways.items():
            async with pairs_of(make, url, 1) as pairs:
                found.setdefault(f"{name}, idle", []).append(await idle(pairs[0]))
            async with pairs_of(make, url, CLIENTS // 2) as pairs:
                found.setdefault(f"{name}, loaded", []).append(await loaded(pairs))
    p50 = {name: median([percentile(times, 0.5) for times in rounds]) for name, rounds in found.items()}
    p99 = {name: median([percentile(times, 0.99) for times in rounds]) for name, rounds in found.items()}
    return {
        "p50 ms": {name: round(value, 3) for name, value in p50.items()},
        "p99 ms": {name: round(value, 3) for name, value in p99.items()},
        "rounds, p99 ms": {name: [round(percentile(one, 0.99), 3) for one in rounds] for name, rounds in found.items()},
        "updates": {name: sum(map(len, rounds)) for name, rounds in found.items()},
        "results": [
            {"id": "P7", "what": "seen on another channel, idle, p99", "value": p99["omnistate, idle"], "goal": "<= 3", "unit": "ms"},
            {"id": "P7", "what": f"the same at {CLIENTS:,} clients, {RATE} updates a second, p99", "value": p99["omnistate, loaded"], "goal": "<= 20", "unit": "ms"},
            {"id": "P7", "what": "idle, p50 / Starlette and redis-py", "value": p50["omnistate, idle"] / p50["starlette, idle"], "goal": "", "unit": "x"},
            {"id": "P7", "what": "loaded, p50 / Starlette and redis-py", "value": p50["omnistate, loaded"] / p50["starlette, loaded"], "goal": "", "unit": "x"},
            {"id": "P7", "what": "idle, p50 / a bare publish", "value": p50["omnistate, idle"] / p50["bare publish"], "goal": "", "unit": "x"},
        ],
    }  # fmt: skip


def main() -> dict[str, Any]:
    ours, peer = free_port(), free_port()
    with server() as port:
        url = f"redis://127.0.0.1:{port}"
        serve = ("-m", "omnistate", "serve", "p7_visible:app", "--dev", "--port", str(ours), "--url", url)
        uvicorn = ("-m", "uvicorn", "peer_gateway:app", "--port", str(peer), "--log-level", "error")
        os.environ["REDIS_PORT"] = str(port)
        with process(ours, *serve), process(peer, *uvicorn):
            found: dict[str, Any] = run(measure(port, f"ws://127.0.0.1:{ours}", f"ws://127.0.0.1:{peer}"))
            return found


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
