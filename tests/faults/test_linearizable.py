"""Documents on one server are linearizable, whatever happens to the server, the sockets and the replies meanwhile.

Several clients read, write with preconditions and add, on few documents, while the server is killed and paused, sockets are
cut, and replies lost or late. Then a checker looks for an order in which all of it makes sense.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

import omnistate
from linearizable import UNKNOWN, Call, is_linearizable
from machine import Server
from omnistate import Client, Snapshot
from proxy import Proxy

CLIENTS, CUSTOMERS, CALLS = 6, 3, 60  # calls of each client
SEEDS = 3 * int(os.environ.get("OMNISTATE_EXAMPLES", "1"))


class Slip(omnistate.State, name="LinearSlip"):
    number: int = 0


class Story:
    """What the clients saw, for each customer."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.calls: dict[str, list[Call]] = defaultdict(list)
        self.lost = 0

    async def tell(self, omni: Client) -> None:
        seen: dict[str, Snapshot[Slip]] = {}
        for _ in range(CALLS):
            name, number = f"customer-{self.chance.randrange(CUSTOMERS)}", self.chance.randrange(1, 100)
            slip, held = omni.customer(name).state(Slip), seen.get(name)
            kind, began = self.chance.choice(["read", "put", "put", "add"]), time.monotonic()
            argument = None if kind == "read" else number if kind == "add" else (held and held.version, number)
            try:
                if kind == "read":
                    held = await slip.read()
                    result: object = (held.version, held.value.number)
                elif kind == "add":
                    written = await slip.update(lambda value, by=number: setattr(value, "number", value.number + by))
                    held, result = written, (written.version, written.value.number)
                elif held is None:
                    result = ((await slip.set(Slip(number=number))).offset,)
                else:
                    expect = held if held.exists else omnistate.ABSENT
                    result = ((await slip.set(Slip(number=number), expect=expect)).offset,)
            except omnistate.Conflict:
                result = ("refused",)
            except omnistate.StoreUnavailable as error:  # AmbiguousWrite too
                if not isinstance(error, omnistate.AmbiguousWrite):
                    continue  # it was not sent
                result, self.lost = UNKNOWN, self.lost + 1
            self.calls[name].append(Call(kind, argument, result, began, time.monotonic()))
            if held is not None:
                seen[name] = held
            await asyncio.sleep(self.chance.random() * 0.01)


async def trouble(chance: random.Random, server: Server, proxies: list[Proxy]) -> None:
    while True:
        await asyncio.sleep(chance.random() * 0.15)
        proxy, seconds = chance.choice(proxies), chance.random() * 0.3
        match chance.choice(["kill", "pause", "cut", "cut", "lose", "lose", "silence", "delay"]):
            case "kill":
                await asyncio.to_thread(server.crash)
            case "pause":
                server.process.send_signal(signal.SIGSTOP)
                try:
                    await asyncio.sleep(seconds)
                finally:
                    server.process.send_signal(signal.SIGCONT)
            case "cut":
                proxy.cut()
            case "lose":
                proxy.lose_call = chance.randrange(1, 8)
            case "silence":
                proxy.silent = True
                await asyncio.sleep(seconds)
                proxy.silent = False
            case "delay":
                proxy.delay = 0.02
                await asyncio.sleep(seconds)
                proxy.delay = 0.0


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("kind", ["mortal_valkey", "mortal_redis"])
async def test_documents_are_linearizable(request: pytest.FixtureRequest, tenant: str, kind: str, seed: int) -> None:
    server: Server = request.getfixturevalue(kind)
    chance = random.Random(seed)
    story = Story(chance)
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Proxy(server.port)) for _ in range(CLIENTS)]
        clients = [
            await stack.enter_async_context(
                omnistate.connect(proxy.url, tenant=tenant, timeout=timedelta(seconds=chance.choice([0.2, 0.5, 5])))
            )
            for proxy in proxies
        ]
        nemesis = asyncio.create_task(trouble(chance, server, proxies))
        try:
            async with asyncio.timeout(60):
                await asyncio.gather(*(story.tell(client) for client in clients))
        finally:
            nemesis.cancel()
            await asyncio.gather(nemesis, return_exceptions=True)
    print(f"{sum(map(len, story.calls.values()))} calls, {story.lost} without an answer")
    for name, calls in story.calls.items():
        assert is_linearizable(calls), (seed, name, calls)
