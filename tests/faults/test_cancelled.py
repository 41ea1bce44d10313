"""Callers that give up: nobody gets another's reply, and nothing is left of them."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import resource
from pathlib import Path

import pytest

import omnistate
from machine import Server, raw_client
from omnistate import Durability

CALLS, AT_ONCE, STAY = 100_000, 500, 100  # so many are cancelled, of so many at once; others among them are not


class Mark(omnistate.State, name="CancelledMark"):
    owner: str = ""
    number: int = 0


def descriptors() -> int:
    return len(list(Path(f"/proc/{os.getpid()}/fd").iterdir()))


@pytest.mark.parametrize("durability", [omnistate.ACCEPTED, omnistate.SYNCED], ids=str)
async def test_a_hundred_thousand_cancelled_calls(mortal_valkey: Server, tenant: str, durability: Durability) -> None:
    """Every tenth time the server cuts all connections meanwhile, so callers also give up while others are made."""
    chance, raw, cuts = random.Random(7), raw_client(mortal_valkey.url), 0
    calls = CALLS if durability == omnistate.ACCEPTED else CALLS // 10
    answers = 0

    async def ask(name: str) -> None:
        nonlocal answers
        mark = omni.customer(name).state(Mark)
        if chance.random() < 0.3:
            await mark.increment("number")
        else:
            assert (await mark.get()).owner == name  # another's reply would say another name
        answers += 1

    async with omnistate.connect(mortal_valkey.url, tenant=tenant, durability=durability) as omni:
        names = [f"customer-{number}" for number in range(50)]
        await asyncio.gather(*(omni.customer(name).state(Mark).patch(owner=name) for name in names))
        before = peak = 0
        for done in range(0, calls, AT_ONCE):
            tasks = [asyncio.create_task(ask(chance.choice(names))) for _ in range(AT_ONCE + STAY)]
            doomed = chance.sample(tasks, AT_ONCE)
            await asyncio.sleep(chance.random() * 0.004)
            if done // AT_ONCE % 10 == 5:
                cuts += raw.client_kill_filter(_type="normal", skipme=True) > 0
                await asyncio.sleep(chance.random() * 0.004)
            for task in doomed:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
            if done == calls // 5:  # everything has its size by now
                gc.collect()
                before, open_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, descriptors()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert await asyncio.wait_for(omni.customer("customer-0").state(Mark).get(), 5)
        assert descriptors() <= open_before + 1  # a lane may be between two connections
        assert len(asyncio.all_tasks()) < 10
    raw.close()
    assert cuts >= calls // AT_ONCE // 10 - 2  # once nobody may be connected
    assert calls // AT_ONCE * STAY <= answers < calls
    assert peak - before < 30_000, "kilobytes more than after a fifth of the calls"
