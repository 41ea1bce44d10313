"""Flows: what takes several round trips, written once as a generator without IO, run by a driver."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

from omnistate.errors import OmnistateError
from omnistate.store._command import Command
from omnistate.store._link import Executor

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pause:
    """Yielded by a flow that wants to wait this many seconds before it goes on."""

    seconds: float


Flow: TypeAlias = Generator[Command[Any] | Pause, Any, T]


def call(command: Command[T]) -> Flow[T]:
    """Gives the reply its type back: `reply = yield from call(command)`."""
    return cast("T", (yield command))


async def run(flow: Flow[T], execute: Callable[..., Awaitable[Any]], *, started: float | None = None) -> T:
    """Drives a flow. Errors of a command are thrown into it; a cancelled run closes it, so its `finally` runs.

    Each command has a deadline of its own; with `started`, a moment of the loop's clock, they share the one from then on.
    """
    since = {} if started is None else {"started": started}
    try:
        step = flow.send(None)
        while True:
            try:
                reply = await (asyncio.sleep(step.seconds) if isinstance(step, Pause) else execute(step, **since))
            except OmnistateError as error:
                step = flow.throw(error)
            else:
                step = flow.send(reply)
    except StopIteration as done:
        return cast("T", done.value)
    finally:
        flow.close()


async def together(flows: Iterable[Flow[T]], link: Executor) -> list[T]:
    """Drives several flows at once: their commands travel together. Raises the first error."""
    return list(await asyncio.gather(*(run(flow, link.execute) for flow in flows)))


async def pause(seconds: float) -> None:
    """Waits."""
    await asyncio.sleep(seconds)
