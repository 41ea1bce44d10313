"""Queries: the customers whose states have certain values, by the indexes of the class."""

# Written by tools/unasync.py from src/omnistate/customer/_query.py: change that one.

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from datetime import timedelta
from typing import Any, Generic

from omnistate.customer._search import (
    NOT_GIVEN,
    Condition,
    Cursor,
    Found,
    Page,
    Scanned,
    parse_cursor,
    scan,
    spell_cursor,
    take,
)
from omnistate.errors import CustomerMerged, InvalidInput, SchemaMismatch
from omnistate.state import UPDATED, AnyState, Origin, Schema, is_ordered, schema_of, score_of
from omnistate.store import PARTITIONS, Flow, Keyspace, call, decode_id
from omnistate.sync._flow import together
from omnistate.sync._state import Services, StateHandle

MAX_PAGE = 1000
_AT_ONCE = 16  # partitions that are asked together
_NO_ORIGIN = Origin()


class Query(Generic[AnyState]):
    """`omni.query(Cart).where("status", equals="open").where("total", at_least=100).idle(timedelta(hours=1))`

    Asks for documents whose class has `indexes`. Iterate over it, or take it page by page. What it finds was so when it was
    read; documents that come or change meanwhile may or may not be found, each that stays as it is is found once. The order
    is no order of values. Building it costs nothing; a page costs a round trip for each 16 of the 256 partitions that it has
    to look into, and one for its documents.
    """

    __slots__ = ("_conditions", "_keyspace", "_kind", "_schema", "_services")

    def __init__(
        self, services: Services, keyspace: Keyspace, kind: type[AnyState], conditions: Sequence[Condition] = ()
    ) -> None:
        self._services, self._keyspace, self._kind, self._conditions = services, keyspace, kind, tuple(conditions)
        self._schema: Schema[AnyState] = schema_of(kind)
        if not self._schema.indexes.names:
            raise InvalidInput(f"{self._schema.name} has no indexes: declare them, class ...(State, indexes={{...}})")

    def where(
        self, index: str, *, equals: Any = NOT_GIVEN, at_least: Any = None, at_most: Any = None
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
        if (equals is NOT_GIVEN) == (at_least is None and at_most is None):
            raise InvalidInput(f"say what {index} should be: equals=, or at_least= and at_most=")
        if equals is not NOT_GIVEN:
            score = score_of(name, equals)
            if score is None:
                raise InvalidInput(f"None is in no index: {index} must equal a value")
            return self._and(Condition(index, score, score, equals))
        for bound in (at_least, at_most):
            if bound is not None and not is_ordered(bound):
                raise InvalidInput(
                    f"ranges are for numbers, dates, datetimes and durations, not {type(bound).__name__}"
                )
        least = float("-inf") if at_least is None else score_of(name, at_least)
        most = float("inf") if at_most is None else score_of(name, at_most)
        assert least is not None
        assert most is not None
        return self._and(Condition(index, least, most, at_least=at_least, at_most=at_most))

    def idle(self, at_least: timedelta) -> Query[AnyState]:
        """Only documents that nobody has written for this long, by this machine's clock. Needs the index `UPDATED`."""
        if UPDATED not in self._schema.indexes.names:
            name = self._schema.name
            raise InvalidInput(
                f"idle needs the time of the last write: class {name}(State, indexes={{omnistate.UPDATED}})"
            )
        if not isinstance(at_least, timedelta):
            raise InvalidInput(f"idle takes a timedelta, not {type(at_least).__name__}: idle(timedelta(hours=1))")
        return self._and(Condition(UPDATED, float("-inf"), time.time() * 1000 - at_least / timedelta(milliseconds=1)))

    def _and(self, condition: Condition) -> Query[AnyState]:
        return Query(self._services, self._keyspace, self._kind, (*self._conditions, condition))

    def __iter__(self) -> Generator[Found[AnyState], None, None]:
        cursor: str | None = None
        while True:
            page = self.page(after=cursor)
            for found in page.found:
                yield found
            cursor = page.cursor
            if cursor is None:
                return

    def page(self, *, limit: int = 100, after: str | None = None) -> Page[AnyState]:
        """Up to `limit` (1,000 at most) documents, after a cursor. Fewer, or none, do not mean that it was the last page.

        A round trip for each 16 partitions that it has to look into (16 where little is found), and one for its documents.
        Raises `InvalidInput`.
        """
        if type(limit) is not int or not 1 <= limit <= MAX_PAGE:
            raise InvalidInput(f"limit must be an int from 1 to {MAX_PAGE:,}")
        place = Cursor(0) if after is None else parse_cursor(after)
        members: list[str] = []
        while place.partition < PARTITIONS and len(members) < limit:
            partitions = range(place.partition, min(place.partition + _AT_ONCE, PARTITIONS))
            scans = [
                self._scan(place if one == place.partition else Cursor(one), limit - len(members)) for one in partitions
            ]
            place = take(partitions, together(scans, self._services.link), members, limit)
        cursor = None if place.partition >= PARTITIONS else spell_cursor(place)
        read = together(map(self._read, members), self._services.link)
        return Page([found for found in read if found is not None], cursor)

    def _scan(self, place: Cursor, limit: int) -> Flow[Scanned]:
        # An equality is walked first, as it has the fewest entries; the time of the last write last, as it has all.
        conditions = sorted(self._conditions, key=lambda one: (one.equals is NOT_GIVEN, one.index == UPDATED))
        if not conditions:
            conditions = [Condition(self._schema.indexes.names[0], float("-inf"), float("inf"))]
        return (yield from call(scan(self._keyspace, self._schema.name, place, conditions, limit)))

    def _read(self, member: str) -> Flow[Found[AnyState] | None]:
        """The document, if it is there and is what was asked for."""
        name, _, rest = member.partition(":")
        what, _, id_ = rest.partition(":")
        owner = (what, decode_id(id_)) if rest else None
        log = self._keyspace.log(name)
        try:
            snapshot = yield from StateHandle(self._services, self._kind, log, _NO_ORIGIN, owner).reading()
            value = snapshot.value
            if not snapshot.exists or not all(one.holds(value) for one in self._conditions):
                return None
        except CustomerMerged:  # a merge is under way, and the survivor has the document, or soon will
            return None
        except SchemaMismatch as error:  # it fits as far as the index says
            error.add_note(f"found in the customer {log.id!r}")
            return Found(log.id, owner, error)
        return Found(log.id, owner, snapshot)
