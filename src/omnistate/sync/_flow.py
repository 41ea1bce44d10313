"""Drives flows in the caller's thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from omnistate.errors import OmnistateError
from omnistate.store import Command, Flow, Pause
from omnistate.sync._link import Executor

T = TypeVar("T")
pause = time.sleep


def run(flow: Flow[T], execute: Callable[[Command[Any]], Any]) -> T:
    """Drives a flow. Errors of a command are thrown into it; an interrupted run closes it, so its `finally` runs."""
    try:
        step = flow.send(None)
        while True:
            try:
                reply = time.sleep(step.seconds) if isinstance(step, Pause) else execute(step)  # type: ignore[func-returns-value]
            except OmnistateError as error:
                step = flow.throw(error)
            else:
                step = flow.send(reply)
    except StopIteration as done:
        return cast("T", done.value)
    finally:
        flow.close()


def together(flows: Iterable[Flow[T]], link: Executor) -> list[T]:
    """Drives several flows at once: the commands of a moment travel together. Raises the first error."""
    driven = list(flows)
    results: list[Any] = [None] * len(driven)
    steps: dict[int, Command[Any] | Pause] = {}

    def go_on(at: int, reply: Any) -> None:
        try:
            steps[at] = driven[at].throw(reply) if isinstance(reply, OmnistateError) else driven[at].send(reply)
        except StopIteration as done:
            results[at] = done.value

    try:
        for at in range(len(driven)):
            go_on(at, None)
        while steps:
            now, steps = steps, {}
            commands = {at: step for at, step in now.items() if isinstance(step, Command)}
            replies = link.execute_all(list(commands.values()))
            pauses = [step.seconds for step in now.values() if isinstance(step, Pause)]
            if pauses:
                time.sleep(max(pauses))
            answers: dict[int, Any] = dict(zip(commands, replies, strict=True))
            for at in now:
                go_on(at, answers.get(at))
    finally:
        for flow in driven:
            flow.close()
    return results
