"""How a call tries again: later each time, never at the moment of the others, never past its deadline."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from omnistate.store._link import _Trial
from omnistate.store._node import FIRST_PAUSE, LONGEST_PAUSE


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made: list[float] = []

    async def note(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", note)
    return made


async def test_pauses_double_up_to_a_limit(pauses: list[float]) -> None:
    trial = _Trial(asyncio.get_running_loop().time() + 60, sent=True, said="")
    for _ in range(12):
        await trial.rest()
    expected = [min(FIRST_PAUSE * 2**number, LONGEST_PAUSE) for number in range(12)]
    assert all(0.5 * one <= pause <= 1.5 * one for one, pause in zip(expected, pauses, strict=True))


async def test_calls_that_failed_together_do_not_come_back_together(pauses: list[float]) -> None:
    for _ in range(200):
        await _Trial(asyncio.get_running_loop().time() + 60, sent=True, said="").rest(at_least=LONGEST_PAUSE)
    pauses.sort()
    assert pauses[0] < 0.6 * LONGEST_PAUSE
    assert pauses[-1] > 1.4 * LONGEST_PAUSE
    assert max(later - earlier for earlier, later in pairwise(pauses)) < 0.1


async def test_no_pause_goes_past_the_deadline(pauses: list[float]) -> None:
    trial = _Trial(asyncio.get_running_loop().time() + 0.2, sent=True, said="")
    await trial.rest(at_least=LONGEST_PAUSE)
    trial.deadline = 0
    await trial.rest()
    assert 0 < pauses[0] <= 0.2
    assert pauses[1] == 0
