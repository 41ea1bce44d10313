"""P2: `update(fn)` on one hot document: 64 callers in one process, and 16 in each of two."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import omnistate
import peers
from harness import CLIENT_CORE, ROUNDS, median, percentile, pin, run, server, throughput
from p1_write import Cart, a_cart

SECONDS = 1.5


async def ours(port: int, callers: int, seconds: float) -> tuple[float, list[float]]:
    async with omnistate.connect(f"redis://127.0.0.1:{port}") as omni:
        cart = omni.customer("hot").state(Cart)
        await cart.get()
        return await throughput(lambda _: cart.update(Cart.add, "cup"), callers=callers, seconds=seconds)


async def peer(port: int, callers: int, seconds: float) -> tuple[float, list[float]]:
    r = peers.client(port, callers)

    async def update(_: int) -> None:
        await peers.update(r, "hot", peers.add)

    found = await throughput(update, callers=callers, seconds=seconds)
    await r.aclose()
    return found


async def two_processes(who: str, port: int) -> tuple[float, list[float]]:
    """Both begin at the same moment; the sum of their rates."""
    words = [sys.executable, __file__, who, str(port), "16", str(time.time() + 1.0)]
    pipe = asyncio.subprocess.PIPE
    two = [await asyncio.create_subprocess_exec(*words, stdout=pipe) for _ in range(2)]
    said = [json.loads((await process.communicate())[0]) for process in two]
    return sum(one["rate"] for one in said), [ms for one in said for ms in one["times"]]


async def measure(port: int) -> dict[str, Any]:
    r = peers.client(port, 2)
    await r.set("{hot}:doc", peers.encode({"items": a_cart().items, "note": "n" * 700, "visits": 0}))
    updates = 0
    found: dict[str, list[float]] = {}
    slow: dict[str, list[float]] = {}
    async with omnistate.connect(f"redis://127.0.0.1:{port}") as omni:
        cart = omni.customer("hot").state(Cart)
        await cart.set(a_cart())
        for _ in range(ROUNDS):
            for name, one in (
                ("64 callers", ours(port, 64, SECONDS)),
                ("64 callers, redis-py", peer(port, 64, SECONDS)),
                ("2 x 16 callers", two_processes("ours", port)),
                ("2 x 16 callers, redis-py", two_processes("peer", port)),
            ):
                rate, times = await one
                found.setdefault(name, []).append(rate)
                slow.setdefault(name, []).append(percentile(times, 0.99))
                updates += 0 if "redis-py" in name else len(times)
        lost = updates - (await cart.get()).items["cup"]
    await r.aclose()
    rates = {name: median(values) for name, values in found.items()}
    p99 = {name: median(values) for name, values in slow.items()}
    return {
        "per second": {name: round(rate) for name, rate in rates.items()},
        "p99 ms": {name: round(value, 2) for name, value in p99.items()},
        "rounds": {name: [round(rate) for rate in values] for name, values in found.items()},
        "results": [
            {"id": "P2", "what": "hot document, 64 callers / WATCH by redis-py", "value": rates["64 callers"] / rates["64 callers, redis-py"], "goal": ">= 500", "unit": "x"},
            {"id": "P2", "what": "hot document, 2 processes x 16 / WATCH", "value": rates["2 x 16 callers"] / rates["2 x 16 callers, redis-py"], "goal": ">= 250", "unit": "x"},
            {"id": "P2", "what": "p99, 64 callers", "value": p99["64 callers"], "goal": "<= 5", "unit": "ms"},
            {"id": "P2", "what": "p99, 2 processes x 16", "value": p99["2 x 16 callers"], "goal": "<= 5", "unit": "ms"},
            {"id": "P2", "what": f"lost of {updates:,} updates", "value": lost, "goal": "<= 0", "unit": ""},
        ],
    }  # fmt: skip


def main() -> dict[str, Any]:
    with server() as port:
        found: dict[str, Any] = run(measure(port))
        return found


def worker(who: str, port: str, callers: str, starts: str) -> None:
    pin(0, CLIENT_CORE)

    async def work() -> tuple[float, list[float]]:
        await asyncio.sleep(float(starts) - time.time())
        return await (ours if who == "ours" else peer)(int(port), int(callers), SECONDS)

    rate, times = run(work())
    print(json.dumps({"rate": rate, "times": times}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        worker(*sys.argv[1:])
    else:
        print(json.dumps(main(), indent=1))
