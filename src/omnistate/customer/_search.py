"""What a query looks for, where it has come to, and what it finds. No IO."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any, Generic

import msgspec

from omnistate.errors import InvalidInput, SchemaMismatch
from omnistate.state import UPDATED, AnyState, Snapshot, score_of
from omnistate.store import PARTITIONS, Argument, Command, Keyspace

_BUDGET = 2000  # entries of an index that one call looks at
NOT_GIVEN: Any = object()


class Found(Generic[AnyState]):
    """A document that a query found. `owner` is (what, id) when it is not the customer's own: ("conversation", id)."""

    __slots__ = ("_snapshot", "customer_id", "owner")

    def __init__(
        self, customer_id: str, owner: tuple[str, str] | None, snapshot: Snapshot[AnyState] | SchemaMismatch
    ) -> None:
        self.customer_id, self.owner, self._snapshot = customer_id, owner, snapshot

    @property
    def snapshot(self) -> Snapshot[AnyState]:
        """The document with its version. No round trip.

        Raises `SchemaMismatch` when it cannot be read: the others of the query can.
        """
        if isinstance(self._snapshot, SchemaMismatch):
            raise self._snapshot
        return self._snapshot

    @property
    def value(self) -> AnyState:
        """The document. No round trip. Raises as `snapshot` does."""
        return self.snapshot.value

    def __repr__(self) -> str:
        return f"<Found {self.customer_id}>"


class Page(Generic[AnyState]):
    """A page of what a query found, and the cursor of the next one, None after the last. A cursor may be kept and sent."""

    __slots__ = ("cursor", "found")

    def __init__(self, found: list[Found[AnyState]], cursor: str | None) -> None:
        self.found, self.cursor = found, cursor


class Condition(msgspec.Struct, frozen=True):
    index: str
    least: float
    most: float
    equals: Any = NOT_GIVEN
    at_least: Any = None
    at_most: Any = None

    def holds(self, value: Any) -> bool:
        if self.index == UPDATED:
            return True  # it changes in the call that changes the document, so the index itself is right
        held = getattr(value, self.index)
        if self.equals is not NOT_GIVEN:
            return bool(held == self.equals)
        if held is None:
            return False
        return (self.at_least is None or _is_up_to(self.at_least, held)) and (
            self.at_most is None or _is_up_to(held, self.at_most)
        )


def _is_up_to(one: Any, other: Any) -> bool:
    try:
        return bool(one <= other)
    except TypeError:  # a datetime with a time zone and one without, which counts as UTC, as in the index
        return (score_of("", one) or 0) <= (score_of("", other) or 0)


class Cursor(msgspec.Struct, array_like=True):
    partition: int
    score: str = ""
    member: str = ""


class Scanned(msgspec.Struct):
    """Members of a partition's indexes, and where to go on, None at the end."""

    members: list[str]
    after: Cursor | None


def take(partitions: range, scans: Sequence[Scanned], members: list[str], limit: int) -> Cursor:
    """Adds what was found until the limit; returns where to go on."""
    for partition, scanned in zip(partitions, scans, strict=True):
        if len(members) >= limit:
            return Cursor(partition)
        room = limit - len(members)
        if len(scanned.members) > room:  # asked with others, and more than there is room for: ask this one again
            return Cursor(partition)
        members += scanned.members
        if scanned.after is not None:
            return scanned.after
    return Cursor(partitions[-1] + 1)


def scan(keyspace: Keyspace, name: str, place: Cursor, conditions: Sequence[Condition], limit: int) -> Command[Scanned]:
    """What of a partition fulfils the conditions, in the order of the first one's index."""
    common = keyspace.partition(place.partition)
    keys = [common + f"index:{name}.{one.index}".encode() for one in conditions]
    arguments: list[Argument] = [limit, _BUDGET, place.score, place.member]
    for one in conditions:
        arguments += (repr(one.least), repr(one.most))

    def parse(reply: list[bytes]) -> Scanned:
        score, member, *found = (one.decode() for one in reply)
        return Scanned(found, Cursor(place.partition, score, member) if member else None)

    return Command("index_scan", keys, arguments, parse)


def spell_cursor(place: Cursor) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def parse_cursor(cursor: str) -> Cursor:
    try:
        place = msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=Cursor)
        float(place.score or 0)
    except (msgspec.MsgspecError, binascii.Error, ValueError, TypeError):
        place = Cursor(-1)
    if not 0 <= place.partition < PARTITIONS:
        raise InvalidInput("not a cursor of a query: give the `cursor` of a page, or None for the first")
    return place
