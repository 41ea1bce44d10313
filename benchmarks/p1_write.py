"""P1 and P1b: a whole mutation by operation, and by `update(fn)`; 64 callers, 10,000 customers."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from datetime import timedelta
from itertools import count
from typing import Any

import omnistate
import peers
from harness import ROUNDS, median, run, server, throughput
from omnistate.store import Keyspace, library

CALLERS, CUSTOMERS, SECONDS = 64, 10_000, 1.5
LINES = 12


class Cart(omnistate.State, ttl=timedelta(days=7)):
    items: dict[str, int] = {}
    note: str = ""
    visits: int = 0

    def add(self, sku: str) -> None:
        self.items[sku] = self.items.get(sku, 0) + 1


def a_cart() -> Cart:
    """About 1 KB of JSON."""
    return Cart(items={f"product-{number:04}-large": number for number in range(LINES)}, note="n" * 700)


def limit(port: int) -> float:
    """redis-benchmark on our function: what this server does at most, with no client of ours in the way."""
    keys = Keyspace("limit").customer("__rand_int__")
    names = [key.decode() for key in (*keys.written, keys.key("doc", "Cart"), keys.key("docs"))]
    function = library().function("state_write").decode()
    arguments = ["1", "op-__rand_int__", "", "1000", "Cart", "*", "", "patch", str(7 * 86400_000), "262144", "json 1"]
    arguments += [
        '{"type":"state.changed","state":"Cart"',
        "}}",
        "0",
        "0",
        "3",
        "items:cup",
        "1",
        ',"put":{"items":{"cup":',
    ]
    command = ["taskset", "-c", "1", "redis-benchmark", "-p", str(port), "-c", "50", "-P", "64", "-n", "250000"]
    command += ["-r", str(CUSTOMERS), "--csv", "FCALL", function, str(len(names)), *names, *arguments]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    return float(re.findall(r'"([\d.]+)"', said)[-7])  # requests a second, and six latencies after it


async def measure(port: int) -> dict[str, Any]:
    ids = count()
    chance = random.Random(1)
    names = [f"customer-{number}" for number in range(CUSTOMERS)]
    found: dict[str, list[float]] = {}
    async with omnistate.connect(f"redis://127.0.0.1:{port}") as omni:
        carts = [omni.customer(name).state(Cart) for name in names]
        for cart in carts:
            await cart.set(a_cart())
        r = peers.client(port, CALLERS)
        for name in names:
            await r.set(f"{{{name}}}:doc", peers.encode({"items": a_cart().items, "note": "n" * 700, "visits": 0}))

        async def ours(_: int) -> None:
            await chance.choice(carts).increment("items", "cup")

        async def ours_update(_: int) -> None:
            await chance.choice(carts).update(Cart.add, "cup")

        async def peer(_: int) -> None:
            await peers.mutate(r, chance.choice(names), f"op-{next(ids)}", "cup")

        async def peer_update(_: int) -> None:
            await peers.update(
                r, chance.choice(names), lambda v: v["items"].__setitem__("cup", v["items"].get("cup", 0) + 1)
            )

        cases = {"operation": ours, "operation, redis-py": peer, "update": ours_update, "update, redis-py": peer_update}
        for _ in range(ROUNDS):
            for name, call in cases.items():
                rate, _ = await throughput(call, callers=CALLERS, seconds=SECONDS)
                found.setdefault(name, []).append(rate)
            found.setdefault("limit", []).append(limit(port))
        await r.aclose()
    rates = {name: median(values) for name, values in found.items()}
    return {
        "per second": {name: round(rate) for name, rate in rates.items()},
        "rounds": {name: [round(rate) for rate in values] for name, values in found.items()},
        "results": [
            {"id": "P1", "what": "operation / MULTI+PUBLISH by redis-py", "value": rates["operation"] / rates["operation, redis-py"], "goal": ">= 12", "unit": "x"},
            {"id": "P1", "what": "operation / redis-benchmark on the same function", "value": rates["operation"] / rates["limit"], "goal": ">= 0.75", "unit": "x"},
            {"id": "P1b", "what": "update(fn), 1 KB / WATCH by redis-py", "value": rates["update"] / rates["update, redis-py"], "goal": ">= 10", "unit": "x"},
        ],
    }  # fmt: skip


def main() -> dict[str, Any]:
    with server() as port:
        found: dict[str, Any] = run(measure(port))
        return found


if __name__ == "__main__":
    print(main(), file=sys.stdout)
