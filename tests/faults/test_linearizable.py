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
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

import omnistate
from linearizable import UNKNOWN, Call, is_linearizable
from machine import Server
from omnistate import Client, Snapshot
from proxy import Proxy

CLIENTS, CUSTOMERS = 6, 2
FAULTS = ["kill", "pause", "cut", "cut", "silence", "delay", *["lose"] * 8]  # in an order by chance, twice
SEEDS = 3 * int(os.environ.get("OMNISTATE_EXAMPLES", "1"))


class Slip(omnistate.State, name="LinearSlip"):
    number: int = 0


class Story:
    """What the clients saw, for each customer."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.calls: dict[str, list[Call]] = defaultdict(list)
        self.lost = 0
        self.is_over = False

    def overlapping(self) -> int:
        """How many calls began while another one for the same customer was under way."""
        calls = [sorted(of_one, key=lambda call: call.began) for of_one in self.calls.values()]
        return sum(
            any(before.began < call.began < before.ended for before in of_one[max(at - CLIENTS, 0) : at])
            for of_one in calls
            for at, call in enumerate(of_one)
        )

    async def tell(self, omni: Client) -> None:
        seen: dict[str, Snapshot[Slip]] = {}
        while not self.is_over:
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
            await asyncio.sleep(self.chance.random() * 0.005)


async def trouble(chance: random.Random, server: Server, proxies: list[Proxy]) -> None:
    for fault in chance.sample(FAULTS, len(FAULTS)) + chance.sample(FAULTS, len(FAULTS)):
        await asyncio.sleep(chance.random() * 0.05)
        proxy, seconds = chance.choice(proxies), chance.random() * 0.3
        match fault:
            case "kill":
                await asyncio.to_thread(server.crash)
            case "pause":  # what was sent meanwhile is applied late, also of callers that have given up
                server.process.send_signal(signal.SIGSTOP)
                try:
                    await asyncio.sleep(seconds)
                finally:
                    server.process.send_signal(signal.SIGCONT)
            case "cut":
                proxy.cut()
            case "lose":
                lost = proxy.lost
                proxy.lose_next_reply_to = b"_state_write"
                while proxy.lost == lost:
                    await asyncio.sleep(0.001)
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
async def test_documents_are_linearizable(
    request: pytest.FixtureRequest, tenant: str, kind: str, seed: int, measured: Callable[[str], None]
) -> None:
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
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(story.tell(client))
            await trouble(chance, server, proxies)
            story.is_over = True
    count, beside, lost = sum(map(len, story.calls.values())), story.overlapping(), sum(proxy.lost for proxy in proxies)
    measured(
        f"{kind} {seed}: {count} calls, {beside} beside others, {lost} replies lost, {story.lost} unknown in the end"
    )
    for name, calls in story.calls.items():
        assert is_linearizable(calls), (seed, name, calls)
    assert lost >= 2 * FAULTS.count("lose")
    assert beside > count / 10  # else there would be one order only
