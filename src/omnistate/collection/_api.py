"""The handles on collections. Building one costs nothing; each verb that changes something is one round trip."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from itertools import chain
from typing import Any, Generic, TypeVar, cast

import msgspec

from omnistate.collection._apply import apply_collection_event, decode_collection_event, initial
from omnistate.collection._change import CollectionChange
from omnistate.collection._checks import (
    MOST_AT_ONCE,
    as_count,
    checked,
    checked_count,
    checked_index,
    checked_integer,
    order_of,
    pairs_of,
    spelled_bound,
    spelled_score,
    taken,
)
from omnistate.collection._commands import Found, Target, Whose, unpack
from omnistate.collection._model import (
    Collection,
    Counter,
    Declares,
    List,
    Map,
    Set,
    SortedSet,
    UniqueCounter,
    WorkQueue,
)
from omnistate.errors import Conflict, InvalidInput, PositionLost
from omnistate.state import Origin, Part, Precondition, Services, expected, parse_change
from omnistate.store import (
    Argument,
    Entry,
    Inbox,
    LogKeys,
    Position,
    check_duration,
    check_operation_id,
    digest_of,
    encode_id,
    new_operation_id,
    open_log,
)

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
R = TypeVar("R")
C = TypeVar("C", bound="Collection[Any, Any]")
_json = msgspec.json.Encoder().encode
_SHORTEST, _LONGEST = timedelta(milliseconds=1), timedelta(days=3650)


class Place(Whose):
    """Where collections are: whose they are, who acts, and what handles work with."""

    __slots__ = ("services",)

    def __init__(self, services: Services, log: LogKeys, origin: Origin, owner: tuple[str, str] | None = None) -> None:
        super().__init__(log, origin, owner, services.keyring)
        self.services = services


class CollectionHandle(Generic[C, R]):
    """What all collections can do. `R` is what the whole collection is in Python."""

    __slots__ = ("_place", "_record", "_target", "declaration")

    def __init__(
        self, declaration: C, place: Place, record: Callable[[Target, Part, Callable[[bytes], Any]], Any] | None = None
    ) -> None:
        self.declaration = declaration
        self._place, self._record = place, record
        self._target = Target(declaration, place)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.declaration.name}>"

    def clear(self, *, operation_id: str | None = None) -> Awaitable[bool]:
        """Removes the whole collection; false when there was none. One round trip."""
        return self._send(self._target.delete(), bool, operation_id)

    @property
    def entry(self) -> str:
        """For the slices on top: the entry of its header."""
        return self._target.entry

    def is_at(self, other: CollectionHandle[Any, Any]) -> bool:
        """Whether both are handles on one collection of one owner."""
        return self._target.keys == other._target.keys

    def expect_part(self, expect: Precondition) -> Part:
        """For the slices on top: that it is as it was, as a part of a call."""
        return Part("expect", self._target.keys, (self._target.entry, expected(expect)))

    async def snapshot(self) -> tuple[R, Position | None]:
        """For the slices on top: everything in it, and its version."""
        found = await self._read("count" if self.declaration.kind == "unique" else "all")
        return self._python(initial(self.declaration.kind, found.values)), found.version

    async def version(self) -> int:
        """The position in the log of the last change, 0 where there is no collection. One round trip."""
        found = await self._read("all" if self.declaration.kind == "counter" else _CHEAPEST[self.declaration.kind])
        return 0 if found.version is None else found.version.offset

    async def watch(self) -> AsyncGenerator[CollectionChange[R], None]:
        """Everything now, then after every change, as long as you iterate. The collection is held in memory.

        Where the log no longer has what came between (you fell more than 1,000 events behind, or a failover lost some), the
        next is everything as it is then, without `events`.
        """
        inbox = Inbox()
        leave = await self._place.services.feed.join(self._target.log, inbox)
        kind = self.declaration.kind
        try:
            held, version, position = await self._present()
            yield CollectionChange(self._python(held), version, position, ())
            while True:
                try:
                    entries = await inbox.take(self._place.services.link, self._target.log, position)
                except PositionLost:
                    held, version, position = await self._present()
                    yield CollectionChange(self._python(held), version, position, ())
                    continue
                position = Position(position.epoch, entries[-1].offset)
                said = [entry for entry in entries if self._concerns(entry)]
                for entry in said:
                    event = decode_collection_event(kind, entry.event)
                    held = apply_collection_event(kind, held, event)
                    gone = event.type in ("collection.deleted", "collection.expired")
                    version = None if gone else Position(position.epoch, entry.offset)
                if said:
                    events = tuple(entry.event for entry in said)
                    yield CollectionChange(self._python(held), version, position, events)
        finally:
            leave()

    async def _present(self) -> tuple[Any, Position | None, Position]:
        """Everything, its version, and the position that it is from."""
        kind = self.declaration.kind
        found = await self._read({"unique": "count", "queue": "len"}.get(kind, "all"))
        position = found.position
        if not position.epoch:
            position = await self._place.services.link.execute(open_log(self._target.log))
        return initial(kind, found.values), found.version, position

    def _python(self, held: Any) -> R:
        return cast("R", held)

    def _concerns(self, entry: Entry) -> bool:
        if b'"collection.' not in entry.event[:24]:
            return False
        event = decode_collection_event("", entry.event)
        owner = self._place.owner
        whose = f"{owner[0]}:{encode_id(owner[1])}" if owner else ""
        return event.collection == self.declaration.name and event.owner == whose

    def _change(
        self,
        operation: str,
        event: bytes,
        arguments: Sequence[Argument],
        judge: Callable[[bytes], T],
        operation_id: str | None = None,
        plain: Sequence[Argument] | None = None,
    ) -> Awaitable[T]:
        return self._send(self._target.part(operation, event, arguments, plain=plain), judge, operation_id)

    def _send(self, part: Part, judge: Callable[[bytes], T], operation_id: str | None) -> Awaitable[T]:
        if self._record is not None:
            if operation_id is not None:
                raise InvalidInput(
                    "inside a transaction the operation id is the transaction's: transaction(operation_id=)"
                )
            recorded: Awaitable[T] = self._record(self._target, part, judge)
            return recorded
        return self._execute(part, judge, operation_id)

    async def _execute(self, part: Part, judge: Callable[[bytes], T], operation_id: str | None) -> T:
        digest = ""
        if operation_id is not None:
            check_operation_id(operation_id)
            digest = digest_of(part.intention)
        command = parse_change(
            self._target.log, [part], operation_id or new_operation_id(), lambda _, reply: self._refused(reply), digest
        )
        return judge((await self._place.services.link.execute(command)).results[0])

    def _refused(self, reply: list[Any]) -> Exception:
        if reply[0] == b"conflict":
            return Conflict(f"{self.declaration.name} was changed by another writer: read it again and decide")
        return self._target.refusal(reply)

    async def _read(self, what: str, *arguments: Argument) -> Found:
        return await self._place.services.link.execute(self._target.read(what, *arguments))

    async def _size(self) -> int:
        found = await self._read("len")
        return int(found.values[0]) if found.values else 0


_CHEAPEST = dict.fromkeys(("map", "list", "set", "sorted", "queue"), "len") | {"unique": "count"}


class ListHandle(CollectionHandle[List[T], list[T]], Generic[T]):
    """A `List`. Its ends are cheap; an index in the middle costs the server a walk from the nearer end."""

    __slots__ = ()

    def append(self, *values: T, operation_id: str | None = None) -> Awaitable[int]:
        """Adds at the right end; returns the length. Over the limit, the left end drops as much. One round trip."""
        return self._push("right", values, operation_id)

    def appendleft(self, *values: T, operation_id: str | None = None) -> Awaitable[int]:
        """Adds at the left end, one after the other; returns the length. One round trip."""
        return self._push("left", values, operation_id)

    def _push(self, side: str, values: Sequence[T], operation_id: str | None) -> Awaitable[int]:
        encoded = [self.declaration.values.encode(value) for value in checked(values)]
        stored = [self._target.values.seal(one) for one in encoded]
        event = b',"side":"%b","values":[%b]' % (side.encode(), b",".join(stored))
        return self._change("push", event, (side, *stored), int, operation_id, plain=(side, *encoded))

    def pop(self, *, operation_id: str | None = None) -> Awaitable[T | None]:
        """Removes and returns the rightmost value, None where there is none. One round trip."""
        return self._pop("right", 1, self._first, operation_id)

    def popleft(self, *, operation_id: str | None = None) -> Awaitable[T | None]:
        """Removes and returns the leftmost value, None where there is none. One round trip."""
        return self._pop("left", 1, self._first, operation_id)

    def pop_many(self, count: int, *, operation_id: str | None = None) -> Awaitable[list[T]]:
        """Removes and returns up to `count` values from the right end, the rightmost first. One round trip."""
        return self._pop("right", checked_count(count), self._all, operation_id)

    def popleft_many(self, count: int, *, operation_id: str | None = None) -> Awaitable[list[T]]:
        """Removes and returns up to `count` values from the left end. One round trip."""
        return self._pop("left", checked_count(count), self._all, operation_id)

    def _pop(self, side: str, count: int, judge: Callable[[bytes], R], operation_id: str | None) -> Awaitable[R]:
        return self._change("pop", b',"side":"%b"' % side.encode(), (side, count), judge, operation_id)

    def set(self, index: int, value: T, *, operation_id: str | None = None) -> Awaitable[None]:
        """Replaces the value at an index, from the right end where it is negative. Raises `NotThere`. One round trip."""
        checked_index(index)
        encoded = self.declaration.values.encode(value)
        stored = self._target.values.seal(encoded)
        arguments, plain = (index, stored), (index, encoded)
        return self._change("set", b',"value":' + stored, arguments, lambda _: None, operation_id, plain=plain)

    async def get(self, index: int) -> T | None:
        """The value at an index, None where there is none. One round trip."""
        found = (await self._read("range", checked_index(index), index)).values
        return self._target.values.decode(found[0]) if found else None

    async def slice(self, start: int = 0, stop: int | None = None) -> list[T]:
        """The values of `list[start:stop]`. One round trip; costs what lies between, and the way there."""
        last = -1 if stop is None else checked_index(stop) - 1
        checked_index(start)
        if stop == 0:
            return []
        found = await self._read("range", start, last)
        return self._python(found.values)

    async def all(self) -> list[T]:
        """The whole list. One round trip of the list's size."""
        return self._python((await self._read("all")).values)

    async def size(self) -> int:
        """How many values there are. One round trip."""
        return await self._size()

    async def __aiter__(self) -> AsyncIterator[T]:
        """Its values from left to right, 1,000 a round trip; what is put or taken meanwhile may shift them. `all` is exact."""
        start = 0
        while some := await self.slice(start, start + MOST_AT_ONCE):
            for value in some:
                yield value
            start += MOST_AT_ONCE

    def _python(self, held: list[bytes]) -> list[T]:
        return [self._target.values.decode(one) for one in held]

    def _first(self, result: bytes) -> T | None:
        return taken(result, self._python)[0] if result else None

    def _all(self, result: bytes) -> list[T]:
        return taken(result, self._python)


class MapHandle(CollectionHandle[Map[K, V], dict[K, V]], Generic[K, V]):
    """A `Map`. Writers of different keys do not conflict."""

    __slots__ = ()

    def put(
        self, key: K, value: V, *, ttl: timedelta | None = None, operation_id: str | None = None
    ) -> Awaitable[bool]:
        """Sets the value of a key; true when it is new. One round trip.

        `ttl` is the time after which the entry is gone; without it, an entry keeps its deadline. Raises `CollectionFull`.
        """
        return self._put("any", [(key, value)], ttl, lambda result: result == b"1", operation_id)

    def update(
        self, values: Mapping[K, V], *, ttl: timedelta | None = None, operation_id: str | None = None
    ) -> Awaitable[int]:
        """Sets up to 1,000 keys; returns how many are new. One round trip."""
        return self._put("any", pairs_of(values), ttl, int, operation_id)

    def add(
        self, key: K, value: V, *, ttl: timedelta | None = None, operation_id: str | None = None
    ) -> Awaitable[None]:
        """Sets the value of a key that has none. Raises `AlreadyThere`. One round trip."""
        return self._put("absent", [(key, value)], ttl, lambda _: None, operation_id)

    def _put(
        self,
        how: str,
        values: Iterable[tuple[K, V]],
        ttl: timedelta | None,
        judge: Callable[[bytes], R],
        operation_id: str | None,
    ) -> Awaitable[R]:
        if ttl is not None:
            check_duration("ttl", ttl, _SHORTEST, _LONGEST)
        keys, types, seal = self.declaration.keys, self.declaration.values, self._target.values.seal
        encoded = [(keys.encode(key), types.encode(value)) for key, value in checked(values)]
        stored = [(key, seal(value, key)) for key, value in encoded]
        event = b',"put":{' + b",".join(_json(key.decode()) + b":" + value for key, value in stored) + b"}"
        ttl_ms = "" if ttl is None else ttl // timedelta(milliseconds=1)
        arguments, plain = (how, ttl_ms, *chain.from_iterable(stored)), (how, ttl_ms, *chain.from_iterable(encoded))
        return self._change("put", event, arguments, judge, operation_id, plain=plain)

    def expire(self, key: K, *, after: timedelta | None, operation_id: str | None = None) -> Awaitable[bool]:
        """Gives an entry a deadline of its own; None takes it away. False where there is no such key. One round trip."""
        if after is not None:
            check_duration("after", after, _SHORTEST, _LONGEST)
        spelled = self.declaration.keys.encode(key)
        milliseconds = 0 if after is None else after // timedelta(milliseconds=1)
        return self._change("expire", b"", (spelled, milliseconds), lambda result: result == b"1", operation_id)

    def remove(self, *keys: K, operation_id: str | None = None) -> Awaitable[int]:
        """Removes keys; returns how many were there. One round trip."""
        spelled = [self.declaration.keys.encode(key) for key in checked(keys)]
        event = b',"drop":[' + b",".join(_json(one.decode()) for one in spelled) + b"]"
        return self._change("remove", event, spelled, as_count, operation_id)

    def pop(self, key: K, *, operation_id: str | None = None) -> Awaitable[V | None]:
        """Removes a key and returns its value, None where there is none. One round trip."""
        spelled = self.declaration.keys.encode(key)

        def judge(result: bytes) -> V | None:
            decode = self._target.values.decode
            return taken(result, lambda values: decode(values[0], spelled)) if result else None

        return self._change("take", b',"drop":[' + _json(spelled.decode()) + b"]", (spelled,), judge, operation_id)

    def increment(self, key: K, by: int = 1, *, operation_id: str | None = None) -> Awaitable[int]:
        """Adds to an integer, 0 where there is none; returns the sum. Never conflicts. One round trip."""
        spelled = self.declaration.keys.encode(key)
        self.declaration.values.encode(cast("V", checked_integer(self.declaration.name, by)))
        if self.declaration.is_encrypted:
            raise InvalidInput(f"{self.declaration.name} is encrypted, so the server cannot count with it: put the sum")
        event = b',"put":{' + _json(spelled.decode()) + b":"
        return self._change("add", event, (spelled, by), int, operation_id)

    async def get(self, key: K) -> V | None:
        """The value of a key, None where there is none. One round trip."""
        return (await self.get_many(key))[0]

    async def get_many(self, *keys: K) -> list[V | None]:
        """The values of keys, in their order. One round trip."""
        spelled = [self.declaration.keys.encode(key) for key in checked(keys)]
        found = (await self._read("get", *spelled)).values or [None] * len(spelled)
        decode = self._target.values.decode
        return [None if one is None else decode(one, key) for one, key in zip(found, spelled, strict=True)]

    async def contains(self, key: K) -> bool:
        """Whether there is such a key. One round trip."""
        found = (await self._read("get", self.declaration.keys.encode(key))).values
        return bool(found) and found[0] is not None

    async def all(self) -> dict[K, V]:
        """The whole map. One round trip of the map's size."""
        return self._python(initial("map", (await self._read("all")).values))

    async def items(self) -> AsyncGenerator[tuple[K, V], None]:
        """Its entries, about 1,000 a round trip: those that are there from beginning to end, each at least once."""
        async for found in _pages(self._read):
            for key, value in zip(found[::2], found[1::2], strict=True):
                yield self.declaration.keys.decode(key), self._target.values.decode(value, key)

    async def __aiter__(self) -> AsyncIterator[K]:
        """Its keys, as of a dict; like `items`."""
        async for found in _pages(self._read):
            for key in found[::2]:
                yield self.declaration.keys.decode(key)

    async def size(self) -> int:
        """How many entries there are. One round trip."""
        return await self._size()

    def _python(self, held: dict[bytes, bytes]) -> dict[K, V]:
        keys, values = self.declaration.keys, self._target.values
        return {keys.decode(key): values.decode(value, key) for key, value in held.items()}


async def _pages(read: Callable[..., Awaitable[Found]]) -> AsyncGenerator[list[bytes], None]:
    cursor = b"0"
    while True:
        found = (await read("page", cursor, 1000)).values
        if not found:
            return
        yield found[1:]
        cursor = found[0]
        if cursor == b"0":
            return


class SetHandle(CollectionHandle[Set[T], set[T]], Generic[T]):
    """A `Set`."""

    __slots__ = ()

    def add(self, *values: T, operation_id: str | None = None) -> Awaitable[int]:
        """Adds values; returns how many are new. Raises `CollectionFull`. One round trip."""
        return self._set("add", values, operation_id)

    def discard(self, *values: T, operation_id: str | None = None) -> Awaitable[int]:
        """Removes values; returns how many were there. One round trip."""
        return self._set("discard", values, operation_id)

    def _set(self, operation: str, values: Sequence[T], operation_id: str | None) -> Awaitable[int]:
        given = (self.declaration.values.encode(value) for value in checked(values))
        encoded = list(dict.fromkeys(given))  # what is given twice needs room once
        return self._change(operation, b',"values":[' + b",".join(encoded) + b"]", encoded, as_count, operation_id)

    async def contains(self, value: T) -> bool:
        """Whether the value is in it. One round trip."""
        return (await self.contains_many(value))[0]

    async def contains_many(self, *values: T) -> list[bool]:
        """Whether each of the values is in it. One round trip."""
        encoded = [self.declaration.values.encode(value) for value in checked(values)]
        found = (await self._read("has", *encoded)).values or [0] * len(encoded)
        return [bool(one) for one in found]

    async def all(self) -> set[T]:
        """The whole set. One round trip of the set's size."""
        return self._python(set((await self._read("all")).values))

    async def members(self) -> AsyncGenerator[T, None]:
        """Its values, about 1,000 a round trip: those that are there from beginning to end, each at least once."""
        async for found in _pages(self._read):
            for value in found:
                yield self.declaration.values.decode(value)

    async def size(self) -> int:
        """How many values there are. One round trip."""
        return await self._size()

    def __aiter__(self) -> AsyncIterator[T]:
        """Its values; like `members`."""
        return self.members()

    def _python(self, held: set[bytes]) -> set[T]:
        return {self.declaration.values.decode(one) for one in held}


class SortedSetHandle(CollectionHandle[SortedSet[T], dict[T, float]], Generic[T]):
    """A `SortedSet`. Ranks begin at 0; members of equal score are in the order of their JSON."""

    __slots__ = ()

    def put(self, member: T, score: float, *, operation_id: str | None = None) -> Awaitable[bool]:
        """Sets a member's score; true when the member is new. One round trip. Raises `CollectionFull`."""
        return self._put("any", [(member, score)], lambda result: result == b"1", operation_id)

    def update(self, scores: Mapping[T, float], *, operation_id: str | None = None) -> Awaitable[int]:
        """Sets up to 1,000 scores; returns how many members are new. One round trip."""
        return self._put("any", pairs_of(scores), int, operation_id)

    def raise_to(self, member: T, score: float, *, operation_id: str | None = None) -> Awaitable[None]:
        """Sets the score of a member that has none or a lower one: a personal best. One round trip."""
        return self._put("higher", [(member, score)], lambda _: None, operation_id)

    def lower_to(self, member: T, score: float, *, operation_id: str | None = None) -> Awaitable[None]:
        """Sets the score of a member that has none or a higher one: a best time. One round trip."""
        return self._put("lower", [(member, score)], lambda _: None, operation_id)

    def _put(
        self, how: str, scores: Iterable[tuple[T, float]], judge: Callable[[bytes], R], operation_id: str | None
    ) -> Awaitable[R]:
        pairs = [(self.declaration.values.encode(member), spelled_score(score)) for member, score in checked(scores)]
        arguments = [one for member, score in pairs for one in (score, member)]
        return self._change("put", b"", (how, *arguments), judge, operation_id)

    def increment(self, member: T, by: float = 1, *, operation_id: str | None = None) -> Awaitable[float]:
        """Adds to a member's score, 0 where there is none; returns the sum. Never conflicts. One round trip."""
        encoded = self.declaration.values.encode(member)
        return self._change("increment", b',"member":' + encoded, (spelled_score(by), encoded), float, operation_id)

    def remove(self, *members: T, operation_id: str | None = None) -> Awaitable[int]:
        """Removes members; returns how many were there. One round trip."""
        encoded = [self.declaration.values.encode(member) for member in checked(members)]
        event = b',"values":[' + b",".join(encoded) + b"]"
        return self._change("remove", event, encoded, as_count, operation_id)

    def pop_lowest(self, count: int = 1, *, operation_id: str | None = None) -> Awaitable[list[tuple[T, float]]]:
        """Removes and returns up to `count` members, the lowest first. One round trip."""
        return self._change("pop", b"", ("lowest", checked_count(count)), self._popped, operation_id)

    def pop_highest(self, count: int = 1, *, operation_id: str | None = None) -> Awaitable[list[tuple[T, float]]]:
        """Removes and returns up to `count` members, the highest first. One round trip."""
        return self._change("pop", b"", ("highest", checked_count(count)), self._popped, operation_id)

    async def score(self, member: T) -> float | None:
        """A member's score, None where there is none. One round trip."""
        return (await self.scores(member))[0]

    async def scores(self, *members: T) -> list[float | None]:
        """The scores of members, in their order. One round trip."""
        encoded = [self.declaration.values.encode(member) for member in checked(members)]
        found = (await self._read("scores", *encoded)).values or [None] * len(encoded)
        return [None if one is None else float(one) for one in found]

    async def rank(self, member: T, *, highest_first: bool = True) -> int | None:
        """How many members are before this one, None where it is not there. One round trip."""
        found = (await self._read("rank", order_of(highest_first), self.declaration.values.encode(member))).values
        return found[0] if found else None

    async def top(self, count: int = 10) -> list[tuple[T, float]]:
        """The members of the highest scores, the highest first. One round trip."""
        return await self.range(0, checked_index(count, "count", 0))

    async def range(
        self, start: int = 0, stop: int | None = None, *, highest_first: bool = True
    ) -> list[tuple[T, float]]:
        """Members by rank, as in `list[start:stop]`. One round trip."""
        last = -1 if stop is None else checked_index(stop) - 1
        checked_index(start)
        if stop == 0:
            return []
        return self._pairs((await self._read("range", order_of(highest_first), start, last)).values)

    async def between(
        self,
        least: float = float("-inf"),
        most: float = float("inf"),
        *,
        highest_first: bool = False,
        offset: int = 0,
        limit: int = MOST_AT_ONCE,
    ) -> list[tuple[T, float]]:
        """Members by score, both ends included. One round trip."""
        page = (checked_index(offset, "offset", 0), checked_index(limit, "limit", 0))
        arguments = (order_of(highest_first), spelled_bound(least), spelled_bound(most), *page)
        return self._pairs((await self._read("between", *arguments)).values)

    async def count(self, least: float = float("-inf"), most: float = float("inf")) -> int:
        """How many members have a score in this range, both ends included. One round trip."""
        return as_count(((await self._read("count", spelled_bound(least), spelled_bound(most))).values or [b"0"])[0])

    async def all(self) -> dict[T, float]:
        """Every member with its score, the lowest first. One round trip of the set's size."""
        return self._python(initial("sorted", (await self._read("all")).values))

    async def __aiter__(self) -> AsyncIterator[T]:
        """Its members, the lowest first, 1,000 a round trip; whose score changes meanwhile may come twice or not at all."""
        start = 0
        while some := await self.range(start, start + MOST_AT_ONCE, highest_first=False):
            for member, _ in some:
                yield member
            start += MOST_AT_ONCE

    async def size(self) -> int:
        """How many members there are. One round trip."""
        return await self._size()

    def _pairs(self, found: list[Any]) -> list[tuple[T, float]]:
        decode = self.declaration.values.decode
        return [(decode(member), float(score)) for member, score in zip(found[::2], found[1::2], strict=True)]

    def _popped(self, result: bytes) -> list[tuple[T, float]]:
        return taken(result, self._pairs)

    def _python(self, held: dict[bytes, float]) -> dict[T, float]:
        decode = self.declaration.values.decode
        return {decode(member): score for member, score in sorted(held.items(), key=lambda pair: (pair[1], pair[0]))}


class CounterHandle(CollectionHandle[Counter, int]):
    """A `Counter`."""

    __slots__ = ()

    def add(self, by: int = 1, *, operation_id: str | None = None) -> Awaitable[int]:
        """Adds to it, 0 where there is none; returns the sum. Raises `OutOfBounds`. Never conflicts. One round trip."""
        return self._count("add", by, operation_id)

    def set(self, value: int, *, operation_id: str | None = None) -> Awaitable[int]:
        """Sets it. Raises `OutOfBounds`. One round trip."""
        return self._count("set", value, operation_id)

    def _count(self, operation: str, value: int, operation_id: str | None) -> Awaitable[int]:
        bounds = ["" if one is None else one for one in (self.declaration.least, self.declaration.most)]
        arguments = (checked_integer(self.declaration.name, value), *bounds)
        return self._change(operation, b"", arguments, int, operation_id)

    async def get(self) -> int:
        """What it is, 0 where there is none. One round trip."""
        return cast("int", initial("counter", (await self._read("all")).values))


class UniqueCounterHandle(CollectionHandle[UniqueCounter[T], int], Generic[T]):
    """A `UniqueCounter`."""

    __slots__ = ()

    def add(self, *values: T, operation_id: str | None = None) -> Awaitable[int]:
        """Adds values; returns about how many different ones there are. One round trip."""
        encoded = [self.declaration.values.encode(value) for value in checked(values)]
        return self._change("add", b"", encoded, int, operation_id)

    async def count(self) -> int:
        """About how many different values were added. One round trip."""
        return cast("int", initial("unique", (await self._read("count")).values))


class Item(Generic[T]):
    """A piece of work that is leased to you until it is done, returned, or the lease ends.

    `attempt` is 1 the first time it is given to anybody. The verbs raise `LeaseLost` when it was given to another worker.
    """

    __slots__ = ("_queue", "_read", "attempt", "id")

    def __init__(self, queue: WorkQueueHandle[T], id_: int, attempt: int, read: Callable[[], T]) -> None:
        self._queue, self.id, self.attempt, self._read = queue, id_, attempt, read

    def is_of(self, queue: WorkQueueHandle[Any]) -> bool:
        """Whether it was claimed from this queue, of the same owner."""
        return self._queue.is_at(queue)

    @property
    def value(self) -> T:
        """What is to be done. No round trip.

        Raises `SchemaMismatch` when it is damaged or of another type: the item stays yours, to be released or removed.
        """
        return self._read()

    def done(self) -> Awaitable[None]:
        """Removes it from the queue. One round trip. In a transaction: `tx.collection(jobs).done(item)`."""
        return self._queue.done(self)

    def release(self, *, delay: timedelta = timedelta()) -> Awaitable[None]:
        """Gives it back, for the next worker, at once or after `delay`. One round trip."""
        return self._queue.release(self, delay=delay)

    def extend(self, lease: timedelta) -> Awaitable[None]:
        """Makes the lease end this long from now. One round trip."""
        return self._queue.extend(self, lease)

    def __repr__(self) -> str:
        return f"<Item {self.id} attempt={self.attempt}>"


class WorkQueueHandle(CollectionHandle[WorkQueue[T], int], Generic[T]):
    """A `WorkQueue`. Items are given out in the order in which they were put. `watch` gives how many there are in all."""

    __slots__ = ()

    def put(self, *values: T, delay: timedelta = timedelta(), operation_id: str | None = None) -> Awaitable[list[int]]:
        """Adds items, which can be claimed at once or after `delay`; returns their ids. Raises `CollectionFull`.

        One round trip.
        """
        check_duration("delay", delay, timedelta(), _LONGEST)
        encoded = [self.declaration.values.encode(value) for value in checked(values)]
        milliseconds = delay // timedelta(milliseconds=1)
        stored = [self._target.values.seal(one) for one in encoded]

        def judge(result: bytes) -> list[int]:
            return [int(one) for one in result.split()]

        arguments: list[Argument] = [milliseconds, *stored]
        return self._change("put", b"", arguments, judge, operation_id, plain=[milliseconds, *encoded])

    async def claim(self, *, lease: timedelta = timedelta(seconds=30)) -> Item[T] | None:
        """The next item, leased to you; None when there is none. One round trip."""
        found = await self.claim_many(1, lease=lease)
        return found[0] if found else None

    async def claim_many(self, count: int, *, lease: timedelta = timedelta(seconds=30)) -> list[Item[T]]:
        """Up to `count` items, leased to you. One round trip."""
        items, _ = await self._claim(count, lease)
        return items

    async def wait(
        self, *, lease: timedelta = timedelta(seconds=30), timeout: timedelta | None = None
    ) -> Item[T] | None:
        """The next item, as soon as there is one; None after `timeout`. Three round trips, one more for each wake-up."""
        if timeout is not None:
            check_duration("timeout", timeout, timedelta(), _LONGEST)
        deadline = None if timeout is None else time.monotonic() + timeout.total_seconds()
        inbox = Inbox()
        leave = await self._place.services.feed.join(self._target.log, inbox)
        try:
            position = await self._place.services.link.execute(open_log(self._target.log))
            while True:
                items, wake = await self._claim(1, lease)
                if items:
                    return items[0]
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                until = min(one for one in (wake, left, 60.0) if one is not None)
                try:
                    entries = await inbox.take(self._place.services.link, self._target.log, position, until)
                    position = Position(position.epoch, entries[-1].offset)
                except TimeoutError:
                    continue
                except PositionLost as lost:  # what was said does not matter here, only that something was
                    position = lost.current
        finally:
            leave()

    async def work(self, *, lease: timedelta = timedelta(seconds=30)) -> AsyncGenerator[Item[T], None]:
        """Items, one after the other, as long as you iterate. Each stays leased until you call `item.done()`."""
        while True:
            item = await self.wait(lease=lease)
            assert item is not None
            yield item

    def __aiter__(self) -> AsyncIterator[Item[T]]:
        """Items, one after the other; like `work`."""
        return self.work()

    def done(self, item: Item[T]) -> Awaitable[None]:
        """Removes an item that is leased to you. Raises `LeaseLost`. One round trip."""
        return self._settle(item, "done")

    def release(self, item: Item[T], *, delay: timedelta = timedelta()) -> Awaitable[None]:
        """Gives an item back, for the next worker, at once or after `delay`. Raises `LeaseLost`. One round trip."""
        check_duration("delay", delay, timedelta(), _LONGEST)
        return self._settle(item, "return", delay)

    def extend(self, item: Item[T], lease: timedelta) -> Awaitable[None]:
        """Makes the lease on an item end this long from now. Raises `LeaseLost`. One round trip."""
        check_duration("lease", lease, _SHORTEST, _LONGEST)
        return self._settle(item, "extend", lease)

    def _settle(self, item: Item[T], how: str, duration: timedelta = timedelta()) -> Awaitable[None]:
        if not isinstance(item, Item):
            raise InvalidInput(f"{self.declaration.name} takes an item that was claimed, not {type(item).__name__}")
        if not item.is_of(self):
            raise InvalidInput(
                f"{item} was claimed from another queue than this {self.declaration.name}, or from that of another owner: use "
                "the item's own verbs, such as item.done()"
            )
        milliseconds = duration // timedelta(milliseconds=1)
        event = b',"how":"%b","id":%d' % (how.encode(), item.id)
        return self._change("settle", event, (how, item.id, item.attempt, milliseconds), lambda _: None)

    async def size(self) -> tuple[int, int]:
        """How many items wait to be claimed, and how many are leased or delayed. One round trip."""
        found = (await self._read("len")).values or [b"0", b"0"]
        return int(found[0]), int(found[1])

    async def _claim(self, count: int, lease: timedelta) -> tuple[list[Item[T]], float | None]:
        """Items, or when the next lease ends, in seconds."""
        if self._record is not None:
            name = self.declaration.name
            raise InvalidInput(f"claim an item of {name} before the transaction, and settle it inside: .done(item)")
        check_duration("lease", lease, _SHORTEST, _LONGEST)
        arguments = (checked_count(count), lease // timedelta(milliseconds=1))

        def judge(result: bytes) -> tuple[list[Item[T]], float | None]:
            if result.startswith(b"wait"):
                return [], int(result[5:]) / 1000 if result[5:] else None
            found = unpack(result)
            decode = self._target.values.decode
            triples = zip(found[::3], found[1::3], found[2::3], strict=True)
            return [Item(self, int(id_), int(attempt), partial(decode, value)) for id_, attempt, value in triples], None

        return await self._change("claim", b"", arguments, judge)


_HANDLES: dict[type[Collection[Any, Any]], type[CollectionHandle[Any, Any]]] = {
    List: ListHandle,
    Map: MapHandle,
    Set: SetHandle,
    SortedSet: SortedSetHandle,
    Counter: CounterHandle,
    UniqueCounter: UniqueCounterHandle,
    WorkQueue: WorkQueueHandle,
}
H = TypeVar("H")


def open_collection(declaration: Declares[H], place: Place, record: Any = None) -> H:
    """The handle on a collection at a place; with `record`, its changes are recorded there instead of being sent."""
    handle = _HANDLES.get(type(declaration))
    if handle is None:
        what = declaration.__name__ if isinstance(declaration, type) else f"a {type(declaration).__name__}"
        raise InvalidInput(f'collection takes a declared collection, not {what}: recent = List(str, name="recent")')
    return cast("H", handle(declaration, place, record))
