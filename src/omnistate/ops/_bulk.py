"""Many customers at once: reading, updating, migrating, exporting and importing them, with memory that does not grow.

Customers are listed partition by partition from the agendas, so no key is searched for. A long job writes down how far it
came after each partition (or some lines of an import), so one that was killed goes on there; what is done twice then is the
same as done once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from omnistate.customer import Customer
from omnistate.errors import OmnistateError
from omnistate.ops._commands import count_customers, list_entries, list_page
from omnistate.state import AnyState, Origin, Services, Snapshot, Written, schema_of
from omnistate.store import PARTITIONS, Keyspace, LogKeys

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE = 64  # customers that are worked on together
_NO_ORIGIN = Origin()
_encode = msgspec.json.Encoder().encode
Progress = Callable[[int, int], None]  # how much is done, and how much there is


def silent(done: int, total: int) -> None:
    """No progress is shown."""


class Bulk:
    """What is done with all customers of a tenant."""

    def __init__(self, services: Services, keyspace: Keyspace) -> None:
        self.services, self.keyspace = services, keyspace

    def customer(self, customer_id: str) -> Customer:
        return Customer(self.services, self.keyspace, customer_id, _NO_ORIGIN)

    async def count(self) -> int:
        """How many customers there are. 256 small calls."""
        sizes = await asyncio.gather(
            *(self.services.link.execute(count_customers(self.keyspace, one)) for one in range(PARTITIONS))
        )
        return sum(size for size, _ in sizes)

    async def partition(self, index: int, kind: str = "c") -> list[str]:
        """The ids of a partition's customers, in order: 1/256 of them. A round trip for each 1,000."""
        found: set[str] = set()
        cursor = b"0"
        while True:
            cursor, names = await self.services.link.execute(list_page(self.keyspace, index, cursor))
            found.update(self.keyspace.log(name).id for name in names if name.startswith(kind + "."))
            if cursor == b"0":
                return sorted(found)

    async def customers(self) -> AsyncGenerator[str, None]:
        """The ids of all customers, in no order, those that are there from beginning to end once each."""
        for index in range(PARTITIONS):
            for customer_id in await self.partition(index):
                yield customer_id

    async def update_many(
        self, kind: type[AnyState], function: Callable[[AnyState], R], customer_ids: Iterable[str] | None = None
    ) -> AsyncGenerator[tuple[str, Written[AnyState, R] | OmnistateError], None]:
        """Runs `update(function)` on customers' documents, 64 at once; without ids, on all documents that are there.

        Gives what came of each as it is done, an error of ours too: one that fails does not stop the others. Run again after
        a crash it runs the function again: give it one that may run twice.
        """

        async def one(customer_id: str) -> tuple[str, Written[AnyState, R] | OmnistateError]:
            try:
                return customer_id, await self.customer(customer_id).state(kind).update(function)
            except OmnistateError as error:
                return customer_id, error

        if customer_ids is not None:
            for some in chunks(customer_ids):
                for done in await asyncio.gather(*map(one, some)):
                    yield done
            return
        name = schema_of(kind).name
        for index in range(PARTITIONS):
            for some in chunks(await self.partition(index)):
                logs = [self.keyspace.customer(customer_id) for customer_id in some]
                found = await asyncio.gather(*(entries_of(self, log) for log in logs))
                there = [
                    customer_id
                    for customer_id, entries in zip(some, found, strict=True)
                    if any(entry == name and owner is None for entry, owner, _ in entries)
                ]
                for done in await asyncio.gather(*map(one, there)):
                    yield done

    async def get_many(
        self, kind: type[AnyState], customer_ids: Iterable[str]
    ) -> AsyncGenerator[tuple[str, Snapshot[AnyState] | OmnistateError], None]:
        """Customers' documents in the order of the ids, 64 in one round trip; an error of ours for one that has none."""

        async def one(customer_id: str) -> tuple[str, Snapshot[AnyState] | OmnistateError]:
            try:
                return customer_id, await self.customer(customer_id).state(kind).read()
            except OmnistateError as error:
                return customer_id, error

        for some in chunks(customer_ids):
            for found in await asyncio.gather(*map(one, some)):
                yield found


def chunks(ids: Iterable[T], size: int = AT_ONCE) -> Iterable[list[T]]:
    some: list[T] = []
    for one in ids:
        some.append(one)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some


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
    """What a job did, by the name of the state or collection; `failed` are (customer, name, reason)."""

    customers: int = 0
    changed: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    failures: int = 0

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


async def entries_of(bulk: Bulk, log: LogKeys) -> list[tuple[str, tuple[str, str] | None, bytes]]:
    """Name, owner and header of each document and collection of a customer."""
    into, entries = await bulk.services.link.execute(list_entries(log))
    return [] if into else entries
