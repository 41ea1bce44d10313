"""Queries: the customers whose states have certain values, by the indexes of the class."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import AsyncGenerator, Sequence
from datetime import timedelta
from typing import Any, Generic

import msgspec

from omnistate.errors import CustomerMerged, InvalidInput, SchemaMismatch
from omnistate.state import (
    UPDATED,
    AnyState,
    Origin,
    Schema,
    Services,
    Snapshot,
    StateHandle,
    is_ordered,
    schema_of,
    score_of,
)
from omnistate.store import PARTITIONS, Argument, Command, Keyspace, decode_id

MAX_PAGE = 1000
_AT_ONCE = 16  # partitions that are asked together
_BUDGET = 2000  # entries of an index that one call looks at
_NO_ORIGIN = Origin()
_NOT_GIVEN: Any = object()


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


class _Condition(msgspec.Struct, frozen=True):
    index: str
    least: float
    most: float
    equals: Any = _NOT_GIVEN
    at_least: Any = None
    at_most: Any = None

    def holds(self, value: Any) -> bool:
        if self.index == UPDATED:
            return True  # it changes in the call that changes the document, so the index itself is right
        held = getattr(value, self.index)
        if self.equals is not _NOT_GIVEN:
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


class _Cursor(msgspec.Struct, array_like=True):
    partition: int
    score: str = ""
    member: str = ""


class Query(Generic[AnyState]):
    """`omni.query(Cart).where("status", equals="open").where("total", at_least=100).idle(timedelta(hours=1))`

    Asks for documents whose class has `indexes`. Iterate over it, or take it page by page. What it finds was so when it was
    read; documents that come or change meanwhile may or may not be found, each that stays as it is is found once. The order
    is no order of values. Building it costs nothing; a page costs a round trip for each 16 of the 256 partitions that it has
    to look into, and one for its documents.
    """

    __slots__ = ("_conditions", "_keyspace", "_kind", "_schema", "_services")

    def __init__(
        self, services: Services, keyspace: Keyspace, kind: type[AnyState], conditions: Sequence[_Condition] = ()
    ) -> None:
        self._services, self._keyspace, self._kind, self._conditions = services, keyspace, kind, tuple(conditions)
        self._schema: Schema[AnyState] = schema_of(kind)
        if not self._schema.indexes.names:
            raise InvalidInput(f"{self._schema.name} has no indexes: declare them, class ...(State, indexes={{...}})")

    def where(
        self, index: str, *, equals: Any = _NOT_GIVEN, at_least: Any = None, at_most: Any = None
    ) -> Query[AnyState]:
        """Only documents of which this field or property has a value, or lies in a range, both ends included.

        Ranges are for numbers, dates, datetimes and durations. None is in no index. Raises `InvalidInput`.
        """
        name = f"{self._schema.name}.{index}"
        if index not in self._schema.indexes.names or index == UPDATED:
            known = ", ".join(one for one in self._schema.indexes.names if one != UPDATED)
            raise InvalidInput(
                f"{name} is not indexed; the indexes of {self._schema.name} are: {known or 'none of a field'}"
            )
        if (equals is _NOT_GIVEN) == (at_least is None and at_most is None):
            raise InvalidInput(f"say what {index} should be: equals=, or at_least= and at_most=")
        if equals is not _NOT_GIVEN:
            score = score_of(name, equals)
            if score is None:
                raise InvalidInput(f"None is in no index: {index} must equal a value")
            return self._and(_Condition(index, score, score, equals))
        for bound in (at_least, at_most):
            if bound is not None and not is_ordered(bound):
                raise InvalidInput(
                    f"ranges are for numbers, dates, datetimes and durations, not {type(bound).__name__}"
                )
        least = float("-inf") if at_least is None else score_of(name, at_least)
        most = float("inf") if at_most is None else score_of(name, at_most)
        assert least is not None
        assert most is not None
        return self._and(_Condition(index, least, most, at_least=at_least, at_most=at_most))

    def idle(self, at_least: timedelta) -> Query[AnyState]:
        """Only documents that nobody has written for this long, by this machine's clock. Needs the index `UPDATED`."""
        if UPDATED not in self._schema.indexes.names:
            name = self._schema.name
            raise InvalidInput(
                f"idle needs the time of the last write: class {name}(State, indexes={{omnistate.UPDATED}})"
            )
        if not isinstance(at_least, timedelta):
            raise InvalidInput(f"idle takes a timedelta, not {type(at_least).__name__}: idle(timedelta(hours=1))")
        return self._and(_Condition(UPDATED, float("-inf"), time.time() * 1000 - at_least / timedelta(milliseconds=1)))

    def _and(self, condition: _Condition) -> Query[AnyState]:
        return Query(self._services, self._keyspace, self._kind, (*self._conditions, condition))

    async def __aiter__(self) -> AsyncGenerator[Found[AnyState], None]:
        cursor: str | None = None
        while True:
            page = await self.page(after=cursor)
            for found in page.found:
                yield found
            cursor = page.cursor
            if cursor is None:
                return

    async def page(self, *, limit: int = 100, after: str | None = None) -> Page[AnyState]:
        """Up to `limit` (1,000 at most) documents, after a cursor. Fewer, or none, do not mean that it was the last page.

        A round trip for each 16 partitions that it has to look into (16 where little is found), and one for its documents.
        Raises `InvalidInput`.
        """
        if type(limit) is not int or not 1 <= limit <= MAX_PAGE:
            raise InvalidInput(f"limit must be an int from 1 to {MAX_PAGE:,}")
        place = _Cursor(0) if after is None else _parse(after)
        members: list[str] = []
        while place.partition < PARTITIONS and len(members) < limit:
            partitions = range(place.partition, min(place.partition + _AT_ONCE, PARTITIONS))
            scans = [
                self._scan(place if one == place.partition else _Cursor(one), limit - len(members))
                for one in partitions
            ]
            place = _take(partitions, await asyncio.gather(*scans), members, limit)
        cursor = None if place.partition >= PARTITIONS else _spell(place)
        read = await asyncio.gather(*map(self._read, members))
        return Page([found for found in read if found is not None], cursor)

    async def _scan(self, place: _Cursor, limit: int) -> _Scanned:
        # An equality is walked first, as it has the fewest entries; the time of the last write last, as it has all.
        conditions = sorted(self._conditions, key=lambda one: (one.equals is _NOT_GIVEN, one.index == UPDATED))
        if not conditions:
            conditions = [_Condition(self._schema.indexes.names[0], float("-inf"), float("inf"))]
        return await self._services.link.execute(scan(self._keyspace, self._schema.name, place, conditions, limit))

    async def _read(self, member: str) -> Found[AnyState] | None:
        """The document, if it is there and is what was asked for."""
        name, _, rest = member.partition(":")
        what, _, id_ = rest.partition(":")
        owner = (what, decode_id(id_)) if rest else None
        log = self._keyspace.log(name)
        try:
            snapshot = await StateHandle(self._services, self._kind, log, _NO_ORIGIN, owner).read()
            value = snapshot.value
            if not snapshot.exists or not all(one.holds(value) for one in self._conditions):
                return None
        except CustomerMerged:  # a merge is under way, and the survivor has the document, or soon will
            return None
        except SchemaMismatch as error:  # it fits as far as the index says
            error.add_note(f"found in the customer {log.id!r}")
            return Found(log.id, owner, error)
        return Found(log.id, owner, snapshot)


class _Scanned(msgspec.Struct):
    """Members of a partition's indexes, and where to go on, None at the end."""

    members: list[str]
    after: _Cursor | None


def _take(partitions: range, scans: Sequence[_Scanned], members: list[str], limit: int) -> _Cursor:
    """Adds what was found until the limit; returns where to go on."""
    for partition, scanned in zip(partitions, scans, strict=True):
        if len(members) >= limit:
            return _Cursor(partition)
        room = limit - len(members)
        if len(scanned.members) > room:  # asked with others, and more than there is room for: ask this one again
            return _Cursor(partition)
        members += scanned.members
        if scanned.after is not None:
            return scanned.after
    return _Cursor(partitions[-1] + 1)


def scan(
    keyspace: Keyspace, name: str, place: _Cursor, conditions: Sequence[_Condition], limit: int
) -> Command[_Scanned]:
    """What of a partition fulfils the conditions, in the order of the first one's index."""
    common = keyspace.partition(place.partition)
    keys = [common + f"index:{name}.{one.index}".encode() for one in conditions]
    arguments: list[Argument] = [limit, _BUDGET, place.score, place.member]
    for one in conditions:
        arguments += (repr(one.least), repr(one.most))

    def parse(reply: list[bytes]) -> _Scanned:
        score, member, *found = (one.decode() for one in reply)
        return _Scanned(found, _Cursor(place.partition, score, member) if member else None)

    return Command("index_scan", keys, arguments, parse)


def _spell(place: _Cursor) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def _parse(cursor: str) -> _Cursor:
    try:
        place = msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=_Cursor)
        float(place.score or 0)
    except (msgspec.MsgspecError, binascii.Error, ValueError, TypeError):
        place = _Cursor(-1)
    if not 0 <= place.partition < PARTITIONS:
        raise InvalidInput("not a cursor of a query: give the `cursor` of a page, or None for the first")
    return place
