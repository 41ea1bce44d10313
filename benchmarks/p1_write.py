"""P1 and P1b: a whole mutation by operation, and by `update(fn)`; 64 callers, 10,000 customers."""

from __future__ import annotations

import contextlib
import json
import random
import re
import subprocess
from collections.abc import Awaitable
from datetime import timedelta
from itertools import count
from typing import Any

import omnistate
import peers
from harness import CLIENT_CORE, ROUNDS, median, run, server, throughput
from omnistate.store import Command, library

CALLERS, CUSTOMERS, SECONDS = 64, 10_000, 1.5
LINES = 12
LIMIT_CALLS = 200_000
CUSTOMER, OPERATION = "__customer__", "__operation__"


class Cart(omnistate.State, ttl=timedelta(days=7)):
    items: dict[str, int] = {}
    note: str = ""
    visits: int = 0

    def add(self, sku: str) -> None:
        self.items[sku] = self.items.get(sku, 0) + 1


def a_cart() -> Cart:
    """About 1 KB of JSON."""
    return Cart(items={f"product-{number:04}-large": number for number in range(LINES)}, note="n" * 700)


def customer(number: int) -> str:
    return f"customer-{number:012}"  # as redis-benchmark spells its random numbers


def limit(port: int, increment: Command[Any], number: int) -> float:
    """redis-benchmark on the same call and the same customers: what the server does with no client of ours in the way.

    It may draw the same random numbers in two runs, so the operation ids hold the run's number.
    """
    words = [b"FCALL", library().function(increment.function), str(len(increment.keys)).encode(), *increment.keys]
    words += [word if isinstance(word, bytes) else str(word).encode() for word in increment.arguments]
    spelled = {CUSTOMER: customer(0)[:-12] + "__rand_int__", OPERATION: f"{number}.__rand_int__"}
    for before, after in spelled.items():
        words = [word.replace(before.encode(), after.encode()) for word in words]
    command = ["taskset", "-c", str(CLIENT_CORE), "redis-benchmark", "-p", str(port), "-c", "50", "-P", "64"]
    command += ["-n", str(LIMIT_CALLS), "-r", str(CUSTOMERS), "--csv", *(word.decode() for word in words)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    return float(re.findall(r'"([\d.]+)"', said)[-7])  # requests a second, and six latencies after it


async def caught(call: Awaitable[Any], link: Any) -> Command[Any]:
    """The command that a call sends, caught on its way."""
    commands: list[Command[Any]] = []

    async def catch(command: Command[Any]) -> Any:
        commands.append(command)
        raise omnistate.StoreUnavailable("caught")

    link.execute = catch
    with contextlib.suppress(omnistate.StoreUnavailable):
        await call
    del link.execute
    return commands[0]


async def measure(port: int) -> dict[str, Any]:
    ids = count()
    chance = random.Random(1)
    names = [customer(number) for number in range(CUSTOMERS)]
    found: dict[str, list[float]] = {}
    spent: dict[str, list[float]] = {}
    async with omnistate.connect(f"redis://127.0.0.1:{port}") as omni:
        carts = [omni.customer(name).state(Cart) for name in names]
        for cart in carts:
            await cart.set(a_cart())
        cart = omni.customer(CUSTOMER).state(Cart)
        increment = await caught(cart.increment("items", "cup", operation_id=OPERATION), cart._services.link)
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
            await peers.update(r, chance.choice(names), peers.add)

        cases = {"operation": ours, "operation, redis-py": peer, "update": ours_update, "update, redis-py": peer_update}
        for number in range(ROUNDS):
            for name, call in cases.items():
                rate, _ = await throughput(call, callers=CALLERS, seconds=SECONDS)
                found.setdefault(name, []).append(rate)
            await r.config_resetstat()
            found.setdefault("limit", []).append(limit(port, increment, number))
            for name, said in (await r.info("commandstats")).items():
                if said["calls"] > 1000:  # each inner command of a function is counted too
                    per_call = said["usec"] / LIMIT_CALLS
                    spent.setdefault(name.removeprefix("cmdstat_"), []).append(per_call)
        await r.aclose()
    rates = {name: median(values) for name, values in found.items()}
    return {
        "per second": {name: round(rate) for name, rate in rates.items()},
        "server time of one operation, us": {name: round(median(values), 2) for name, values in spent.items()},
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
    print(json.dumps(main(), indent=1))
