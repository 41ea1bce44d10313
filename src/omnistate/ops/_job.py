"""What long jobs over many customers share: how far they came, what they did, and how they show it.

A long job writes down how far it came after each partition (or some lines of an import), so one that was killed goes on there;
what is done twice then is the same as done once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from omnistate.ops._bulk import chunks

T = TypeVar("T")
_encode = msgspec.json.Encoder().encode
Progress = Callable[[int, int], None]  # how much is done, and how much there is


def silent(done: int, total: int) -> None:
    """No progress is shown."""


class Journal:
    """How far a long job came, in a small file that is replaced as a whole. `about` says what job: another one starts anew."""

    def __init__(self, path: Path | None, about: str) -> None:
        self._path, self._about = path, about
        self.state: dict[str, int] = {}
        if path is not None:
            with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
                held = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
                if held.get("about") == about:
                    self.state = held["state"]

    def write(self, **state: int) -> None:
        self.state = state
        if self._path is None:
            return
        beside = self._path.with_name(self._path.name + ".new")
        with open(beside, "wb") as file:
            file.write(_encode({"about": self._about, "state": state}))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)

    def done(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


@dataclass
class Report:
    """What a job did, by the name of the state or collection; `failed` are (customer, name, reason).

    `erased`: customers that were left out, as they had been erased here.
    """

    customers: int = 0
    changed: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    failures: int = 0
    erased: int = 0

    MOST_FAILURES = 1000  # that are listed; all are counted

    def fail(self, customer_id: str, name: str, error: Exception) -> None:
        self.failures += 1
        if len(self.failed) < self.MOST_FAILURES:
            fields = getattr(error, "fields", None)
            why = f" ({'; '.join(f'{one}: {reason}' for one, reason in fields.items())})" if fields else ""
            self.failed.append((customer_id, name, f"{error}{why}"))


def count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


async def each(items: Iterable[T], work: Callable[[T], Awaitable[Any]]) -> None:
    """Works on the items, some at once; the first error ends it."""
    for some in chunks(items):
        await asyncio.gather(*map(work, some))
