"""Many customers at once: listing, reading and updating them, with memory that does not grow.

Customers are listed partition by partition from the agendas, so no key is searched for.
"""

# Written by tools/unasync.py from src/omnistate/ops/_bulk.py: change that one.

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

from omnistate.customer import list_entries
from omnistate.errors import OmnistateError
from omnistate.ops._commands import count_customers, list_page
from omnistate.state import AnyState, Origin, Snapshot, Written, schema_of
from omnistate.store import PARTITIONS, Flow, Keyspace, LogKeys, call
from omnistate.sync._customer import Customer
from omnistate.sync._flow import run, together
from omnistate.sync._state import Services

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE = 64  # customers that are worked on together
_NO_ORIGIN = Origin()


class Bulk:
    """What is done with all customers of a tenant."""

    def __init__(self, services: Services, keyspace: Keyspace) -> None:
        self.services, self.keyspace = services, keyspace

    def customer(self, customer_id: str) -> Customer:
        return Customer(self.services, self.keyspace, customer_id, _NO_ORIGIN)

    def count(self) -> int:
        """How many customers there are. 256 small calls."""
        asked = (call(count_customers(self.keyspace, one)) for one in range(PARTITIONS))
        sizes = together(asked, self.services.link)
        return sum(size for size, _ in sizes)

    def partition(self, index: int, kind: str = "c") -> list[str]:
        """The ids of a partition's customers, in order: 1/256 of them. A round trip for each 1,000."""
        found: set[str] = set()
        cursor = b"0"
        while True:
            cursor, names = self.services.link.execute(list_page(self.keyspace, index, cursor))
            found.update(self.keyspace.log(name).id for name in names if name.startswith(kind + "."))
            if cursor == b"0":
                return sorted(found)

    def entries(self, log: LogKeys) -> list[tuple[str, tuple[str, str] | None, bytes]]:
        """Name, owner and header of each document and collection of a customer. One round trip."""
        return run(entries_of(log), self.services.link.execute)

    def customers(self) -> Generator[str, None, None]:
        """The ids of all customers, in no order, those that are there from beginning to end once each."""
        for index in range(PARTITIONS):
            for customer_id in self.partition(index):
                yield customer_id

    def update_many(
        self, kind: type[AnyState], function: Callable[[AnyState], R], customer_ids: Iterable[str] | None = None
    ) -> Generator[tuple[str, Written[AnyState, R] | OmnistateError], None, None]:
        """Runs `update(function)` on customers' documents, 64 at once; without ids, on all documents that are there.

        Gives what came of each as it is done, an error of ours too: one that fails does not stop the others. Run again after
        a crash it runs the function again: give it one that may run twice.
        """

        def one(customer_id: str) -> Flow[tuple[str, Written[AnyState, R] | OmnistateError]]:
            try:
                return customer_id, (yield from self.customer(customer_id).state(kind).updating(function))
            except OmnistateError as error:
                return customer_id, error

        if customer_ids is not None:
            for some in chunks(customer_ids):
                for done in together(map(one, some), self.services.link):
                    yield done
            return
        name = schema_of(kind).name
        for index in range(PARTITIONS):
            for some in chunks(self.partition(index)):
                logs = [self.keyspace.customer(customer_id) for customer_id in some]
                found = together(map(entries_of, logs), self.services.link)
                there = [
                    customer_id
                    for customer_id, entries in zip(some, found, strict=True)
                    if any(entry == name and owner is None for entry, owner, _ in entries)
                ]
                for done in together(map(one, there), self.services.link):
                    yield done

    def get_many(
        self, kind: type[AnyState], customer_ids: Iterable[str]
    ) -> Generator[tuple[str, Snapshot[AnyState] | OmnistateError], None, None]:
        """Customers' documents in the order of the ids, 64 in one round trip; an error of ours for one that has none."""

        def one(customer_id: str) -> Flow[tuple[str, Snapshot[AnyState] | OmnistateError]]:
            try:
                return customer_id, (yield from self.customer(customer_id).state(kind).reading())
            except OmnistateError as error:
                return customer_id, error

        for some in chunks(customer_ids):
            for found in together(map(one, some), self.services.link):
                yield found


def entries_of(log: LogKeys) -> Flow[list[tuple[str, tuple[str, str] | None, bytes]]]:
    """Name, owner and header of each document and collection of a customer."""
    into, entries = yield from call(list_entries(log))
    return [] if into else entries


def chunks(ids: Iterable[T], size: int = AT_ONCE) -> Iterable[list[T]]:
    some: list[T] = []
    for one in ids:
        some.append(one)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some
