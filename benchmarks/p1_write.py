"""P1 and P1b: a whole mutation by operation, and by `update(fn)`; 64 callers, 10,000 customers."""

from __future__ import annotations

import contextlib
import json
import random
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import omnistate
import peers
from cart import Cart, a_cart
from harness import CLIENT_CORE, ROUNDS, Store, median, opened, run, throughput
from omnistate.store import Command, library
from omnistate.store._cluster import slot_of
from peers import by_redis_py

CALLERS, CUSTOMERS, SECONDS = 64, 10_000, 1.0
LIMIT_CALLS = 200_000
RANDOM = "__rand_int__"  # for which redis-benchmark puts a random number of as many digits


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


def spelled(command: Command[Any]) -> list[bytes]:
    """A command as it goes to the server, word by word."""
    words = [b"FCALL", library().function(command.function), len(command.keys), *command.keys, *command.arguments]
    return [word if isinstance(word, bytes) else str(word).encode() for word in words]


async def calls_of(
    omni: omnistate.Client, store: Store, make: Callable[[Any], Awaitable[Any]]
) -> dict[int, list[bytes]]:
    """For each server a call that redis-benchmark can send, of random customers in one slot of it."""
    found: dict[int, list[bytes]] = {}
    for attempt in count():
        cart = omni.customer(f"customer-{attempt}-{RANDOM}").state(Cart)
        command = await caught(make(cart), cart._services.link)
        found.setdefault(store.port_of(slot_of(command.keys[0])), spelled(command))
        if len(found) == len(store.ports):
            return found
    raise AssertionError


def limit(calls: dict[int, list[bytes]]) -> float:
    """redis-benchmark on the same call: what the servers do with no client of ours in the way.

    On a cluster it runs once for each server, all at the same time: with --cluster it can spell a slot's tag in a key, but
    then all calls that it sends together are of one customer.
    """
    running = []
    for port, words in calls.items():
        command = ["taskset", "-c", str(CLIENT_CORE), "redis-benchmark", "-p", str(port), "-c", "50", "-P", "64"]
        command += ["-n", str(LIMIT_CALLS // len(calls)), "-r", str(CUSTOMERS // len(calls)), "--csv"]
        command += [word.decode() for word in words]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
    said = [process.communicate()[0].splitlines()[-1] for process in running]
    assert not any(process.returncode for process in running)
    return sum(float(re.findall(r'"([\d.]+)"', line)[-7]) for line in said)  # requests a second, then six latencies


class Spent:
    """What the servers' own time went into, command by command."""

    def __init__(self, store: Store) -> None:
        self._clients = [by_redis_py.client(port, 1) for port in store.ports]
        self._rounds: dict[str, list[float]] = {}

    async def forget(self) -> None:
        for client in self._clients:
            await client.config_resetstat()

    async def note(self) -> None:
        """Each inner command of a function is counted too."""
        total: dict[str, float] = {}
        for client in self._clients:
            for name, said in (await client.info("commandstats")).items():
                if said["calls"] > 1000:
                    total[name] = total.get(name, 0) + said["usec"]
        for name, microseconds in total.items():
            self._rounds.setdefault(name.removeprefix("cmdstat_"), []).append(microseconds / LIMIT_CALLS)

    async def close(self) -> dict[str, float]:
        for client in self._clients:
            await client.aclose()
        return {name: round(median(values), 2) for name, values in self._rounds.items()}


async def measure(store: Store) -> dict[str, Any]:
    ids, chance = count(), random.Random(1)
    names = [f"customer-{number:012}" for number in range(CUSTOMERS)]
    found: dict[str, list[float]] = {}
    async with contextlib.AsyncExitStack() as stack:
        omni = await stack.enter_async_context(omnistate.connect(store.url))
        carts = [omni.customer(name).state(Cart) for name in names]
        for cart in carts:
            await cart.set(a_cart())
        others = {name: await stack.enter_async_context(one(store, CALLERS)) for name, one in peers.PEERS.items()}
        for name in names:
            await others["redis-py"].put(name, peers.document(a_cart()))

        def by(peer: peers.Peer) -> dict[str, Any]:
            return {
                "operation": lambda _: peer.mutate(chance.choice(names), f"op-{next(ids)}", "cup"),
                "update": lambda _: peer.update(chance.choice(names), peers.add),
            }

        ours = {
            "operation": lambda _: chance.choice(carts).increment("items", "cup"),
            "update": lambda _: chance.choice(carts).update(Cart.add, "cup"),
        }
        cases = {f"{what}, ours": call for what, call in ours.items()}
        cases |= {f"{what}, {name}": call for name, peer in others.items() for what, call in by(peer).items()}
        limit(await calls_of(omni, store, lambda cart: cart.set(a_cart())))  # what is there is as large as ours
        spent = Spent(store)
        for number in range(ROUNDS):
            for name, call in cases.items():
                rate, _ = await throughput(call, callers=CALLERS, seconds=SECONDS)
                found.setdefault(name, []).append(rate)
            # It may draw the same random numbers in two rounds, so the operation ids hold the round's number.
            operation_id = f"{number:04}-{RANDOM}"
            calls = await calls_of(
                omni, store, lambda cart, its=operation_id: cart.increment("items", "cup", operation_id=its)
            )
            await spent.forget()
            found.setdefault("limit", []).append(limit(calls))
            await spent.note()
        server_time = await spent.close()
    rates = {name: median(values) for name, values in found.items()}
    return {
        "per second": {name: round(rate) for name, rate in rates.items()},
        "server time of one operation, us": server_time,
        "rounds": {name: [round(rate) for rate in values] for name, values in found.items()},
        "results": rows(store, rates),
    }


def rows(store: Store, rates: dict[str, float]) -> list[dict[str, Any]]:
    def against(benchmark: str, what: str, by: str, ours: str, theirs: str, goal: str) -> dict[str, Any]:
        ratio = rates[f"{ours}, ours"] / rates[theirs]
        return {"id": store.id(benchmark), "what": f"{what} / {by}", "value": ratio, "goal": goal, "unit": "x"}

    first = next(iter(peers.PEERS))  # what the goals are about
    return [
        *(against("P1", "operation", f"MULTI+PUBLISH, {name}", "operation", f"operation, {name}", ">= 12" if name == first else "") for name in peers.PEERS),
        against("P1", "operation", "redis-benchmark on the function", "operation", "limit", ">= 0.75"),
        *(against("P1b", "update(fn), 1 KB", f"WATCH, {name}", "update", f"update, {name}", ">= 10" if name == first else "") for name in peers.PEERS),
    ]  # fmt: skip


def main(topology: str = "standalone") -> dict[str, Any]:
    with opened(topology) as store:
        found: dict[str, Any] = run(measure(store))
        return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:]), indent=1))
