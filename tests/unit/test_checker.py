"""The checker that the faults tests rely on finds what is wrong, and nothing else."""

from __future__ import annotations

import random

import pytest

from linearizable import UNKNOWN, Call, Register, is_linearizable


def read(version: int, value: int, began: float, ended: float) -> Call:
    return Call("read", None, (version, value), began, ended)


def put(value: int, version: int, began: float, ended: float, expect: int | None = None) -> Call:
    return Call("put", (expect, value), (version,), began, ended)


RIGHT = {
    "one after the other": [put(5, 1, 0, 1), read(1, 5, 2, 3)],
    "a read beside a write may see either": [put(5, 1, 0, 9), read(0, 0, 1, 2), read(1, 5, 3, 4)],
    "two writes beside each other in any order": [put(5, 2, 0, 9), put(6, 1, 0, 9), read(2, 5, 10, 11)],
    "a precondition that does not hold": [put(5, 1, 0, 1), Call("put", (0, 7), ("refused",), 2, 3), read(1, 5, 4, 5)],
    "a lost answer of what was applied": [Call("add", 2, UNKNOWN, 0), read(0, 0, 1, 2), read(1, 2, 3, 4)],
    "a lost answer of what was not": [Call("add", 2, UNKNOWN, 0), read(0, 0, 1, 2), put(5, 1, 3, 4)],
    "two additions": [Call("add", 2, (1, 2), 0, 9), Call("add", 3, (2, 5), 0, 9)],
}
WRONG = {
    "a read of the past": [put(5, 1, 0, 1), read(0, 0, 2, 3)],
    "reads that go back": [put(5, 1, 0, 9), read(1, 5, 1, 2), read(0, 0, 3, 4)],
    "a lost update": [Call("add", 2, (1, 2), 0, 9), Call("add", 3, (1, 3), 0, 9)],
    "a write that was lost": [put(5, 1, 0, 1), put(6, 1, 2, 3)],
    "a precondition that was ignored": [put(5, 1, 0, 1), put(6, 2, 2, 3, expect=0)],
    "a precondition that was refused though it held": [put(5, 1, 0, 1), Call("put", (1, 7), ("refused",), 2, 3)],
    "a lost answer that was applied twice": [Call("add", 2, UNKNOWN, 0), read(2, 4, 1, 2)],
    "a lost answer that was applied before it was asked": [read(1, 2, 0, 1), Call("add", 2, UNKNOWN, 2)],
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_can_be_told_as_a_story_is_accepted(name: str) -> None:
    assert is_linearizable(RIGHT[name])


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_found(name: str) -> None:
    assert not is_linearizable(WRONG[name])


@pytest.mark.parametrize("seed", range(20))
def test_real_stories_are_accepted_and_one_wrong_answer_is_found(seed: int) -> None:
    chance, register, calls = random.Random(seed), Register(), []
    for moment in range(60):  # each happens at its moment, and is asked and answered around it
        began, ended = moment - chance.random() * 3, moment + chance.random() * 3
        kind = chance.choice(["read", "add", "put"])
        argument = {"read": None, "add": chance.randrange(1, 5)}.get(kind, (None, chance.randrange(9)))
        if chance.random() < 0.1:
            calls.append(Call(kind, argument, UNKNOWN, began))
            if chance.random() < 0.5:
                continue
        made = register.after(Call(kind, argument, UNKNOWN, 0))
        assert made is not None
        if (calls and calls[-1].result is not UNKNOWN) or not calls or calls[-1].began != began:
            result = {"read": tuple(register), "add": tuple(made)}.get(kind, (made.version,))
            calls.append(Call(kind, argument, result, began, ended))
        register = made
    assert is_linearizable(calls)
    calls.append(read(register.version + 1000, 7, 100, 101))
    assert not is_linearizable(calls)
