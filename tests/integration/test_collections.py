"""Collections: what each verb does, what is refused and then changes nothing, deadlines, events and watchers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable
from datetime import date, timedelta
from typing import Any

import msgspec
import pytest
from redis import Redis

import omnistate
from machine import subscribers
from omnistate import Client, Counter, Customer, List, Map, Set, SortedSet, UniqueCounter, WorkQueue
from omnistate.collection import own_keys
from omnistate.session import session_keys
from omnistate.state import parse_change
from omnistate.store import Command, Keyspace

INF, NAN = float("inf"), float("nan")
HOUR = timedelta(hours=1)
recent: List[str] = List(str, name="recent", limit=3)
numbers: List[int] = List(int, name="numbers")
coupons: Map[str, int] = Map(str, int, name="coupons", limit=3)
texts: Map[str, str] = Map(str, str, name="texts")
by_number: Map[int, str] = Map(int, str, name="by_number")
tags: Set[str] = Set(str, name="tags", limit=3)
scores: SortedSet[str] = SortedSet(str, name="scores", limit=3)
best: SortedSet[str] = SortedSet(str, name="best", limit=3, keep="highest")
fastest: SortedSet[str] = SortedSet(str, name="fastest", limit=3, keep="lowest")
points = Counter(name="points", least=0, most=100)
visits = Counter(name="visits")
visitors: UniqueCounter[str] = UniqueCounter(str, name="visitors")
work: WorkQueue[str] = WorkQueue(str, name="work", limit=3)
jobs: WorkQueue[int] = WorkQueue(int, name="jobs")
kept: Map[str, int] = Map(str, int, name="kept", ttl=HOUR)
kept_list: List[str] = List(str, name="kept_list", ttl=HOUR)
kept_set: Set[str] = Set(str, name="kept_set", ttl=HOUR)
kept_scores: SortedSet[str] = SortedSet(str, name="kept_scores", ttl=HOUR)
kept_counter = Counter(name="kept_counter", ttl=HOUR)
kept_unique: UniqueCounter[str] = UniqueCounter(str, name="kept_unique", ttl=HOUR)
kept_work: WorkQueue[str] = WorkQueue(str, name="kept_work", ttl=HOUR)
short_lived: Map[str, int] = Map(str, int, name="short_lived", lifetime=HOUR)


class Point(msgspec.Struct, frozen=True):
    x: int
    y: int = 0


points_seen: List[Point] = List(Point, name="points_seen")


class Shopper(omnistate.State, ttl=timedelta(days=2)):
    name: str = ""
    viewed = List(int, limit=2)
    stamps = Counter()


@pytest.fixture
def ana(omni: Client) -> Customer:
    return omni.customer("ana")


class Stored:
    """What is stored of ana, to look at and to disturb."""

    def __init__(self, raw: Redis, tenant: str) -> None:
        self.raw, self.log = raw, Keyspace(tenant).customer("ana")

    def key(self, name: str, part: str = "") -> bytes:
        return self.log.key("doc", name, *(["." + part] if part else []))

    def header(self, name: str) -> list[str]:
        found = self.raw.hget(self.log.meta, "doc:" + name)
        return found.decode().split(" ") if found else []  # type: ignore[union-attr]

    def expire(self, name: str) -> None:
        """Moves the deadline of a whole collection into the past."""
        header = self.header(name)
        header[0] = "1".zfill(13)
        self.raw.hset(self.log.meta, "doc:" + name, " ".join(header))

    def expire_entry(self, name: str, key: str) -> None:
        """Moves the deadline of an entry of a map into the past."""
        assert self.raw.zadd(self.key(name, "due"), {key: 1}, xx=True, ch=True) == 1
        header = [one for one in self.header(name) if not one.startswith("next=")]
        self.raw.hset(self.log.meta, "doc:" + name, " ".join([*header, "next=1"]))

    def end_leases(self, name: str) -> None:
        key = self.key(name, "leased")
        for item in self.raw.zrange(key, 0, -1):  # type: ignore[union-attr]
            self.raw.zadd(key, {item: 1})

    def everything(self) -> dict[bytes, bytes | None]:
        """All that is stored of the customer, byte by byte, but for the agenda of the partition."""
        pattern = self.log.prefix.decode().replace("{", "?").replace("}", "?") + "*"
        return {key: self.raw.dump(key) for key in self.raw.scan_iter(pattern, count=1000)}


@pytest.fixture
def stored(raw: Redis, tenant: str) -> Stored:
    return Stored(raw, tenant)


async def sweep(ana: Customer, stored: Stored, name: str, kind: str) -> int:
    """What the sweeper does with a collection; the number of events."""
    keys = own_keys(stored.log, kind, name)
    arguments = (0, "", "doc:" + name, len(keys), 0)
    command = Command("log_expire", (*stored.log.written, *session_keys(stored.log), *keys), arguments, int, "sweep")
    return await ana._services.link.execute(command)


@contextlib.asynccontextmanager
async def watching(handle: Any) -> AsyncIterator[Callable[[Any], Any]]:
    """Follows a collection; gives a function that waits until what was seen is this value, and returns all changes."""
    seen: list[Any] = []
    arrived = asyncio.Event()

    async def follow() -> None:
        async for change in handle.watch():
            seen.append(change)
            arrived.set()

    task = asyncio.create_task(follow())

    async def until(value: Any) -> list[Any]:
        async with asyncio.timeout(5):
            while not seen or seen[-1].value != value:
                assert not task.done(), task
                arrived.clear()
                await arrived.wait()
        return seen

    while not seen:
        await asyncio.wait([task], timeout=0.002)
        assert not task.done(), task
    try:
        yield until
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def events_of(customer: Customer, position: omnistate.Position) -> list[dict[str, Any]]:
    """The events after a position, up to now."""
    last = await customer.position()
    found: list[dict[str, Any]] = []
    if last == position:
        return found
    async with asyncio.timeout(5), contextlib.aclosing(customer.events(after=position)) as events:
        async for event in events:
            assert event.position.offset == position.offset + len(found) + 1
            found.append(event.data)
            if event.position == last:
                break
    return found


# Lists


async def test_a_list_gives_what_was_put_at_its_ends(ana: Customer) -> None:
    seen = ana.collection(numbers)
    assert (await seen.all(), await seen.size(), await seen.get(0), await seen.pop()) == ([], 0, None, None)
    assert (await seen.popleft(), await seen.pop_many(5), await seen.popleft_many(5)) == (None, [], [])
    assert await seen.append(3, 4) == 2
    assert await seen.appendleft(2, 1) == 4
    assert await seen.all() == [1, 2, 3, 4]
    assert [await seen.get(index) for index in (0, 3, 4, -1, -4, -5)] == [1, 4, None, 4, 1, None]
    await seen.set(-2, 33)
    await seen.set(0, 11)
    assert await seen.all() == [11, 2, 33, 4]
    assert (await seen.pop(), await seen.popleft()) == (4, 11)
    await seen.append(5, 6, 7)
    assert await seen.pop_many(2) == [7, 6]
    assert await seen.popleft_many(2) == [2, 33]
    assert await seen.popleft_many(9) == [5]
    assert (await seen.size(), await seen.all()) == (0, [])


async def test_a_slice_of_a_list_is_pythons(ana: Customer) -> None:
    seen = ana.collection(numbers)
    held = [0, 1, 2, 3, 4]
    await seen.append(*held)
    for start in range(-7, 8):
        for stop in (None, *range(-7, 8)):
            assert await seen.slice(start, stop) == held[start:stop], (start, stop)


async def test_a_full_list_drops_at_the_other_end(ana: Customer) -> None:
    seen = ana.collection(recent)
    assert await seen.append("a", "b", "c", "d") == 3
    assert await seen.all() == ["b", "c", "d"]
    assert await seen.appendleft("x") == 3
    assert await seen.all() == ["x", "b", "c"]
    assert await seen.appendleft("1", "2", "3", "4", "5") == 3
    assert await seen.all() == ["5", "4", "3"]


async def test_an_index_that_is_not_there_is_refused(ana: Customer, stored: Stored) -> None:
    seen = ana.collection(numbers)
    with pytest.raises(omnistate.NotThere):
        await seen.set(0, 1)
    await seen.append(1, 2)
    before = stored.everything()
    for index in (2, -3, 10**12):
        with pytest.raises(omnistate.NotThere):
            await seen.set(index, 1)
    assert stored.everything() == before


async def test_a_list_holds_structs(ana: Customer) -> None:
    seen = ana.collection(points_seen)
    await seen.append(Point(1, 2), Point(3))
    assert await seen.all() == [Point(1, 2), Point(3)]
    assert await seen.popleft() == Point(1, 2)


# Maps


async def test_a_map_gives_what_was_put(ana: Customer) -> None:
    held = ana.collection(texts)
    assert (await held.all(), await held.size(), await held.get("a"), await held.pop("a")) == ({}, 0, None, None)
    assert (await held.remove("a"), await held.contains("a"), await held.get_many("a", "b")) == (0, False, [None, None])
    assert [one async for one in held.items()] == []
    assert (await held.put("a", "1"), await held.put("a", "2")) == (True, False)
    assert await held.update({"a": "3", "b": "4", 'é\n"\\': 'é\n"\\'}) == 2
    assert await held.all() == {"a": "3", "b": "4", 'é\n"\\': 'é\n"\\'} == dict([one async for one in held.items()])
    assert await held.get_many("b", "x", "a") == ["4", None, "3"]
    assert (await held.contains("b"), await held.contains("x"), await held.size()) == (True, False, 3)
    await held.add("c", "5")
    with pytest.raises(omnistate.AlreadyThere):
        await held.add("c", "6")
    assert await held.get("c") == "5"
    assert (await held.remove("a", "x", "c"), await held.pop("b"), await held.pop("b")) == (2, "4", None)
    assert await held.all() == {'é\n"\\': 'é\n"\\'}


async def test_the_keys_of_a_map_keep_their_type(ana: Customer) -> None:
    held = ana.collection(by_number)
    assert await held.update({7: "a", -1: "b", 2**60: "c"}) == 3
    assert await held.all() == {7: "a", -1: "b", 2**60: "c"}
    assert (await held.get(7), await held.remove(-1), await held.pop(2**60)) == ("a", 1, "c")
    days: Map[date, float] = Map(date, float, name="days")
    await ana.collection(days).put(date(2020, 1, 31), 1)
    assert await ana.collection(days).all() == {date(2020, 1, 31): 1.0}
    ratios: Map[float, int] = Map(float, int, name="ratios")
    assert [await ana.collection(ratios).put(key, 1) for key in (1, 1.0, 0.5)] == [True, False, True]
    assert await ana.collection(ratios).all() == {1.0: 1, 0.5: 1}


async def test_a_map_counts(ana: Customer) -> None:
    held = ana.collection(coupons)
    assert [await held.increment("a"), await held.increment("a", 5), await held.increment("a", -7)] == [1, 6, -1]
    await held.put("b", 2**53 - 1)
    with pytest.raises(omnistate.InvalidValue):
        await held.increment("b")
    assert await held.all() == {"a": -1, "b": 2**53 - 1}
    mixed: Map[str, float] = Map(str, float, name="mixed")
    await ana.collection(mixed).put("a", 0.5)
    with pytest.raises(omnistate.InvalidValue):
        await ana.collection(mixed).increment("a")
    assert await ana.collection(mixed).get("a") == 0.5


async def test_a_full_map_takes_no_new_key(ana: Customer, stored: Stored) -> None:
    held = ana.collection(coupons)
    await held.update({"a": 1, "b": 2, "c": 3})
    before = stored.everything()
    for call in (held.put("d", 1), held.update({"a": 7, "d": 1}), held.add("d", 1), held.increment("d")):
        with pytest.raises(omnistate.CollectionFull, match="coupons is full: it may hold 3 entries"):
            await call
    assert stored.everything() == before
    assert (await held.put("a", 7), await held.increment("b"), await held.remove("c")) == (False, 3, 1)
    assert await held.put("d", 1)


async def test_a_large_map_is_read_page_by_page(ana: Customer) -> None:
    held = ana.collection(texts)
    for at in range(0, 3000, 1000):
        await held.update({f"key {number}": str(number) for number in range(at, at + 1000)})
    assert dict([one async for one in held.items()]) == await held.all()
    assert await held.size() == 3000
    assert await held.remove(*(f"key {number}" for number in range(1000))) == 1000


# Deadlines of entries


async def test_an_entry_whose_deadline_passed_is_gone_for_every_reader(ana: Customer, stored: Stored) -> None:
    held = ana.collection(coupons)
    await held.update({"a": 1, "b": 2}, ttl=HOUR)
    await held.put("c", 3)
    stored.expire_entry("coupons", "a")
    assert await held.all() == {"b": 2, "c": 3} == dict([one async for one in held.items()])
    assert (await held.size(), await held.contains("a"), await held.get("a")) == (2, False, None)
    assert await held.get_many("a", "b") == [None, 2]


@pytest.mark.parametrize(
    ("change", "result", "left"),
    [
        (lambda held: held.put("a", 5), True, {"a": 5, "b": 2}),
        (lambda held: held.add("a", 5), None, {"a": 5, "b": 2}),
        (lambda held: held.increment("a", 5), 5, {"a": 5, "b": 2}),
        (lambda held: held.pop("a"), None, {"b": 2}),
        (lambda held: held.remove("a"), 0, {"b": 2}),
        (lambda held: held.put("b", 7), False, {"b": 7}),
    ],
)
async def test_a_change_ends_what_has_expired_first_and_says_so(
    ana: Customer, stored: Stored, change: Any, result: Any, left: dict[str, int]
) -> None:
    held = ana.collection(coupons)
    await held.put("b", 2)
    await held.put("a", 1, ttl=HOUR)
    position = await ana.position()
    async with watching(held) as until:
        stored.expire_entry("coupons", "a")
        assert await change(held) == result
        assert await held.all() == left
        await until(left)
    first = (await events_of(ana, position))[0]
    assert (first["type"], first["collection"], first["fields"]) == ("collection.entries_expired", "coupons", ["a"])


async def test_entries_that_have_expired_make_room(ana: Customer, stored: Stored) -> None:
    held = ana.collection(coupons)
    await held.update({"a": 1, "b": 2, "c": 3}, ttl=HOUR)
    for key in "abc":
        stored.expire_entry("coupons", key)
    assert await held.increment("x") == 1
    assert await held.update({"a": 4, "y": 5}) == 2
    with pytest.raises(omnistate.CollectionFull):
        await held.put("z", 1)
    assert await held.all() == {"x": 1, "a": 4, "y": 5}


async def test_the_bytes_of_entries_that_have_expired_are_free_again(ana: Customer, stored: Stored) -> None:
    held = ana.collection(texts)
    large = "x" * 60_000
    for _ in range(3):  # twice as much as a map may hold
        for at in range(0, 200, 100):
            await held.update({str(number): large for number in range(at, at + 100)}, ttl=HOUR)
        for number in range(200):
            stored.expire_entry("texts", str(number))
    await held.put("a", "b")
    assert int(stored.header("texts")[4]) == len("a") + len('"b"')


async def test_the_sweeper_frees_the_bytes_too(ana: Customer, stored: Stored) -> None:
    held = ana.collection(coupons)
    await held.update({"a": 1, "b": 2}, ttl=HOUR)
    await held.put("c", 3)
    for key in "ab":
        stored.expire_entry("coupons", key)
    await sweep(ana, stored, "coupons", "map")
    assert int(stored.header("coupons")[4]) == len("c") + len("3")
    assert await held.all() == {"c": 3}
    assert [one for one in stored.header("coupons") if one.startswith("next=")] == []


async def test_a_deadline_stays_with_its_entry_until_it_is_taken_away(
    ana: Customer, stored: Stored, raw: Redis
) -> None:
    held = ana.collection(coupons)
    await held.put("a", 1, ttl=HOUR)
    assert raw.zcard(stored.key("coupons", "due")) == 1
    await held.increment("a")  # leaves the deadline as it is
    assert raw.zcard(stored.key("coupons", "due")) == 1
    await held.put("a", 2)
    assert raw.zcard(stored.key("coupons", "due")) == 1
    assert await held.expire("a", after=None)
    assert raw.zcard(stored.key("coupons", "due")) == 0
    assert not await held.expire("none", after=HOUR)
    assert await held.expire("a", after=HOUR)
    assert raw.zcard(stored.key("coupons", "due")) == 1
    await held.remove("a")
    await held.put("b", 1, ttl=HOUR)
    for gone in (held.remove("b"), held.pop("b")):
        await gone
        assert raw.zcard(stored.key("coupons", "due")) == 0
        await held.put("b", 1)


# Sets


async def test_a_set_holds_each_value_once(ana: Customer) -> None:
    held = ana.collection(tags)
    assert (await held.all(), await held.size(), await held.contains("a"), await held.discard("a")) == (
        set(),
        0,
        False,
        0,
    )
    assert [one async for one in held.members()] == []
    assert (await held.add("a", "b"), await held.add("b", "é"), await held.add("a")) == (2, 1, 0)
    assert await held.all() == {"a", "b", "é"} == {one async for one in held.members()}
    assert await held.contains_many("a", "x", "é") == [True, False, True]
    assert (await held.discard("a", "x"), await held.size()) == (1, 2)


async def test_a_full_set_takes_no_new_value(ana: Customer, stored: Stored) -> None:
    held = ana.collection(tags)
    await held.add("a", "b", "c")
    before = stored.everything()
    with pytest.raises(omnistate.CollectionFull):
        await held.add("a", "d")
    assert await held.add("a", "b") == 0
    assert stored.everything() == before


async def test_a_value_that_is_given_twice_needs_room_once(ana: Customer) -> None:
    held = ana.collection(tags)
    await held.add("a", "b")
    assert await held.add("c", "c", "c") == 1
    assert await held.discard("c", "c") == 1


async def test_values_that_are_equal_are_one_member(ana: Customer) -> None:
    ratios: Set[float] = Set(float, name="set_of_floats")
    held = ana.collection(ratios)
    assert [await held.add(1), await held.add(1.0), await held.size(), await held.contains(1)] == [1, 0, 1, True]
    ranked: SortedSet[float] = SortedSet(float, name="sorted_floats")
    board = ana.collection(ranked)
    assert [await board.put(1, 5), await board.put(1.0, 6), await board.score(1)] == [True, False, 6]


async def test_what_was_taken_out_and_cannot_be_read_is_not_lost(ana: Customer) -> None:
    await ana.collection(List(str, name="was_text")).append("x", "y")
    await ana.collection(Map(str, str, name="was_map")).put("k", "v")
    await ana.collection(SortedSet(str, name="was_board")).put("m", 1)
    numbers_now, map_now = ana.collection(List(int, name="was_text")), ana.collection(Map(str, int, name="was_map"))
    for take, removed in (
        (numbers_now.pop, (b'"y"',)),
        (lambda: numbers_now.popleft_many(5), (b'"x"',)),
        (lambda: map_now.pop("k"), (b'"v"',)),
        (lambda: ana.collection(SortedSet(int, name="was_board")).pop_lowest(), (b'"m"', b"1")),
    ):
        with pytest.raises(omnistate.SchemaMismatch) as raised:
            await take()  # type: ignore[no-untyped-call]
        assert raised.value.removed == removed


async def test_collections_are_gone_through_as_python_does(ana: Customer) -> None:
    many = range(2500)
    big_list, big_set = List(int, name="big_list"), Set(int, name="big_set")
    big_map, big_board = Map(int, str, name="big_map"), SortedSet(int, name="big_board")
    for at in range(0, 2500, 500):
        some = many[at : at + 500]
        await ana.collection(big_list).append(*some)
        await ana.collection(big_set).add(*some)
        await ana.collection(big_map).update(dict.fromkeys(some, "x"))
        await ana.collection(big_board).update({number: -number for number in some})
    assert [one async for one in ana.collection(big_list)] == list(many)
    assert {one async for one in ana.collection(big_set)} == set(many)
    assert {one async for one in ana.collection(big_map)} == set(many)
    assert [one async for one in ana.collection(big_board)] == list(reversed(many))
    assert [one async for one in ana.collection(recent)] == [one async for one in ana.collection(coupons)] == []
    await ana.collection(work).put("a", "b")
    async for item in ana.collection(work):
        await item.done()
        if item.value == "b":
            break


async def test_members_that_python_cannot_hold_in_a_set_are_refused(ana: Customer) -> None:
    lists: Set[Any] = Set(Any, name="set_of_anything")
    with pytest.raises(omnistate.InvalidValue, match="unhashable"):
        await ana.collection(lists).add([1])
    pairs: Set[tuple[int, int]] = Set(tuple[int, int], name="set_of_pairs")
    assert await ana.collection(pairs).add((1, 2)) == 1
    assert await ana.collection(pairs).all() == {(1, 2)}


async def test_a_large_set_is_read_page_by_page(ana: Customer) -> None:
    many: Set[int] = Set(int, name="many")
    held = ana.collection(many)
    for at in range(0, 3000, 1000):
        await held.add(*range(at, at + 1000))
    assert {one async for one in held.members()} == await held.all() == set(range(3000))


# Sorted sets


async def test_a_sorted_set_keeps_its_members_in_order(ana: Customer) -> None:
    board: SortedSet[str] = SortedSet(str, name="board")
    held = ana.collection(board)
    assert (await held.all(), await held.size(), await held.score("a"), await held.rank("a")) == ({}, 0, None, None)
    assert (await held.top(), await held.pop_lowest(), await held.count(), await held.between()) == ([], [], 0, [])
    assert (await held.put("a", 1), await held.put("a", 2.5), await held.update({"b": -1, "c": 1e300})) == (
        True,
        False,
        2,
    )
    assert await held.all() == {"b": -1, "a": 2.5, "c": 1e300}
    assert list(await held.all()) == ["b", "a", "c"]
    assert (await held.rank("c"), await held.rank("b"), await held.rank("b", highest_first=False)) == (0, 2, 0)
    assert await held.rank("x") is None
    assert await held.scores("a", "x", "b") == [2.5, None, -1]
    assert await held.top(2) == [("c", 1e300), ("a", 2.5)]
    assert await held.range(1) == [("a", 2.5), ("b", -1)]
    assert await held.range(0, -1, highest_first=False) == [("b", -1), ("a", 2.5)]
    assert (await held.range(0, 0), await held.range(5, 7)) == ([], [])
    assert await held.between(-1, 2.5) == [("b", -1), ("a", 2.5)]
    assert await held.between(0, highest_first=True) == [("c", 1e300), ("a", 2.5)]
    assert await held.between(offset=1, limit=1) == [("a", 2.5)]
    assert (await held.count(0), await held.count(most=0), await held.count(2.5, 2.5)) == (2, 1, 1)
    assert (await held.increment("a", 0.5), await held.increment("d")) == (3.0, 1.0)
    assert (await held.remove("a", "x"), await held.pop_lowest(), await held.pop_highest(5)) == (
        1,
        [("b", -1)],
        [("c", 1e300), ("d", 1)],
    )
    assert await held.size() == 0


async def test_a_best_score_is_only_raised_and_a_best_time_only_lowered(ana: Customer) -> None:
    held = ana.collection(scores)
    for score in (2, 1, 3, 3):
        await held.raise_to("a", score)
    for score in (2, 3, 1, 1):
        await held.lower_to("b", score)
    assert await held.all() == {"b": 1, "a": 3}


async def test_a_score_never_becomes_infinite(ana: Customer, stored: Stored) -> None:
    held = ana.collection(scores)
    await held.update({"a": 1.7e308, "b": -1.7e308, "c": 5e-324})
    before = stored.everything()
    for call in (held.increment("a", 1.7e308), held.increment("b", -1.7e308)):
        with pytest.raises(omnistate.InvalidValue, match="larger than a score of scores can be"):
            await call
    assert stored.everything() == before
    assert await held.all() == {"a": 1.7e308, "b": -1.7e308, "c": 5e-324}


async def test_a_full_sorted_set_takes_no_new_member(ana: Customer, stored: Stored) -> None:
    held = ana.collection(scores)
    await held.update({"a": 1, "b": 2, "c": 3})
    before = stored.everything()
    for call in (held.put("d", 9), held.increment("d", 9), held.raise_to("d", 9), held.update({"a": 9, "d": 9})):
        with pytest.raises(omnistate.CollectionFull):
            await call
    assert stored.everything() == before
    assert await held.increment("a") == 2


async def test_a_full_sorted_set_keeps_the_highest_or_the_lowest(ana: Customer) -> None:
    for declared, left in ((best, {"b": 2, "c": 3, "d": 4}), (fastest, {"a": 1, "b": 2, "c": 3})):
        held = ana.collection(declared)
        async with watching(held) as until:
            await held.update({"a": 1, "b": 2, "c": 3, "d": 4})
            assert await held.all() == left
            await until(left)
    held = ana.collection(best)
    async with watching(held) as until:
        assert await held.increment("e", 1) == 1  # it is dropped at once
        assert await held.increment("f", 9) == 9
        await until({"c": 3, "d": 4, "f": 9})
        assert await held.all() == {"c": 3, "d": 4, "f": 9}


# Counters


async def test_a_counter_stays_within_its_bounds(ana: Customer, stored: Stored) -> None:
    held = ana.collection(points)
    assert (await held.get(), await held.add(), await held.add(98), await held.set(5), await held.add(-5)) == (
        0,
        1,
        99,
        5,
        0,
    )
    before = stored.everything()
    for call, value in ((held.add(-1), -1), (held.add(101), 101), (held.set(101), 101)):
        with pytest.raises(omnistate.OutOfBounds) as caught:
            await call
        assert caught.value.value == value
    assert stored.everything() == before
    assert await held.get() == 0


async def test_a_counter_stays_within_what_every_language_can_read(ana: Customer) -> None:
    held = ana.collection(visits)
    assert await held.set(2**53 - 1) == 2**53 - 1
    with pytest.raises(omnistate.InvalidValue):
        await held.add(1)
    assert await held.add(-(2**53 - 1)) == 0
    assert await held.set(-(2**53 - 1)) == -(2**53 - 1)
    with pytest.raises(omnistate.InvalidValue):
        await held.add(-1)
    assert await held.get() == -(2**53 - 1)


async def test_a_unique_counter_counts_different_values(ana: Customer) -> None:
    held = ana.collection(visitors)
    assert await held.count() == 0
    assert (await held.add("a", "b", "a"), await held.add("a"), await held.add("c")) == (2, 2, 3)
    for at in range(0, 5000, 1000):
        await held.add(*(f"v{number}" for number in range(at, at + 1000)))
    assert abs(await held.count() - 5003) < 5003 * 0.05


# Work queues


async def test_items_are_given_out_in_order_and_settled_once(ana: Customer) -> None:
    queue = ana.collection(work)
    assert (await queue.claim(), await queue.claim_many(3), await queue.size()) == (None, [], (0, 0))
    ids = await queue.put("a", "b", "c")
    assert ids == sorted(set(ids))
    assert await queue.size() == (3, 0)
    first = await queue.claim()
    assert first is not None
    assert (first.id, first.value, first.attempt) == (ids[0], "a", 1)
    second, third = await queue.claim_many(5)
    assert [(one.id, one.value) for one in (second, third)] == list(zip(ids[1:], ["b", "c"], strict=True))
    assert (await queue.claim(), await queue.size()) == (None, (0, 3))
    await second.done()
    await third.release()
    assert await queue.size() == (1, 1)
    for late in (second.done(), second.release(), second.extend(HOUR), third.done(), third.extend(HOUR)):
        with pytest.raises(omnistate.LeaseLost):
            await late
    again = await queue.claim()
    assert again is not None
    assert (again.id, again.attempt, again.value) == (third.id, 2, "c")
    elsewhere = ana.collection(omnistate.WorkQueue(str, name="elsewhere"))
    for wrong in (lambda: elsewhere.done(again), lambda: queue.done("c")):  # type: ignore[arg-type]
        with pytest.raises(omnistate.InvalidInput, match="claimed"):
            await wrong()
    await again.done()
    await first.done()
    assert await queue.size() == (0, 0)


async def test_a_full_queue_takes_no_more(ana: Customer, stored: Stored) -> None:
    queue = ana.collection(work)
    await queue.put("a", "b")
    item = await queue.claim()
    before = stored.everything()
    with pytest.raises(omnistate.CollectionFull):
        await queue.put("c", "d")
    assert stored.everything() == before
    await queue.put("c")
    with pytest.raises(omnistate.CollectionFull):
        await queue.put("d")
    assert item is not None
    await item.done()
    await queue.put("d")


async def test_an_item_whose_lease_ended_goes_to_the_next_worker(ana: Customer, stored: Stored) -> None:
    queue = ana.collection(work)
    await queue.put("a", "b")
    lost = await queue.claim()
    stored.end_leases("work")
    assert lost is not None
    await lost.extend(HOUR)  # nobody has it, so it is still his
    assert [item.value for item in await queue.claim_many(2)] == ["b"]
    stored.end_leases("work")
    found = await queue.claim_many(2)
    assert [(item.value, item.attempt) for item in found] == [("a", 2), ("b", 2)]
    for late in (lost.done(), lost.release(), lost.extend(HOUR)):
        with pytest.raises(omnistate.LeaseLost):
            await late
    await found[0].done()


async def test_a_delayed_item_comes_when_its_time_has_come(ana: Customer, stored: Stored) -> None:
    queue = ana.collection(work)
    await queue.put("a", delay=HOUR)
    assert (await queue.claim(), await queue.size()) == (None, (0, 1))
    stored.end_leases("work")
    item = await queue.claim()
    assert item is not None
    assert item.attempt == 1
    await item.release(delay=HOUR)
    assert await queue.claim() is None
    stored.end_leases("work")
    item = await queue.claim()
    assert item is not None
    assert item.attempt == 2


async def test_a_waiting_worker_is_woken_by_a_put(ana: Customer, stored: Stored) -> None:
    queue = ana.collection(work)
    waiting = asyncio.create_task(queue.wait())
    async with asyncio.timeout(5):
        while subscribers(stored.raw, stored.log.topic) == 0:
            await asyncio.sleep(0.001)
        await queue.put("a")
        item = await waiting
    assert item is not None
    assert item.value == "a"
    assert await queue.wait(timeout=timedelta(milliseconds=1)) is None


async def test_a_waiting_worker_goes_on_when_it_has_missed_a_part_of_the_log(
    ana: Customer, stored: Stored, connect: Callable[..., Client]
) -> None:
    queue = ana.collection(work)
    async with connect() as other:
        busy = other.customer("ana").collection(visits)
        waiting = asyncio.create_task(queue.wait())
        async with asyncio.timeout(20):
            while subscribers(stored.raw, stored.log.topic) == 0:
                await asyncio.sleep(0.001)
            stored.raw.delete(stored.log.log)  # as if so much had happened that the log does not reach back
            stored.raw.hset(stored.log.meta, "s", "1" + "0" * 13 + " 5000 abc", mapping={"life": "0 -1 0"})
            await busy.add()
            await other.customer("ana").collection(work).put("a")
            item = await waiting
    assert item is not None
    assert item.value == "a"


async def test_a_waiting_worker_is_woken_when_a_delay_ends(ana: Customer) -> None:
    queue = ana.collection(work)
    await queue.put("a", delay=timedelta(milliseconds=30))
    async with asyncio.timeout(5):
        item = await queue.wait()
        assert item is not None
        await item.release(delay=timedelta(milliseconds=30))
        async with contextlib.aclosing(queue.work(lease=timedelta(milliseconds=20))) as items:
            attempts = []
            async for found in items:  # each time the lease ends
                attempts.append(found.attempt)
                if len(attempts) == 3:
                    await found.done()
                    break
    assert attempts == [2, 3, 4]


async def test_several_workers_get_each_item_to_exactly_one(ana: Customer, connect: Callable[..., Client]) -> None:
    async with connect() as other:
        queues = [ana.collection(jobs), other.customer("ana").collection(jobs)]
        done: list[int] = []

        async def worker(number: int) -> None:
            queue = queues[number % 2]
            while len(done) < 60:
                item = await queue.wait(timeout=timedelta(seconds=0.2))
                if item is not None:
                    assert item.attempt == 1
                    done.append(item.value)
                    await item.done()

        async def producer() -> None:
            for at in range(0, 60, 5):
                await queues[at % 2].put(*range(at, at + 5))

        async with asyncio.timeout(20):
            await asyncio.gather(producer(), *(worker(number) for number in range(6)))
        assert sorted(done) == list(range(60))
        assert await queues[0].size() == (0, 0)


# Bad input


def bad_calls() -> list[tuple[str, Callable[[Customer], Any]]]:
    """Calls that cannot be, as one says them."""
    of: list[tuple[Any, str]] = [
        (texts, """put("", "x")|put(5, "x")|put(None, "x")|put([1], "x")|put("a", 5)|put("a", None)
            put("a", "\\ud800")|put("\\ud800", "x")|put("x" * 1025, "x")|put("a", "x" * 65536)|put("a", "x", ttl=5)
            put("a", "x", ttl=timedelta())|put("a", "x", ttl=timedelta(-1))|update({})|update(5)|update([("a", "b")])
            update({str(n): "" for n in range(1001)})|add("a", object())|remove()|remove(5)|pop(5)|increment("a", 1.5)
            increment("a", True)|increment("a", 2**53)|increment("a")|get(5)|get_many()|contains(5)|get("\\ud800")
            put("a", "x", operation_id="")|put("a", "x", operation_id="x" * 257)|put("a", "x", operation_id="omnistate:1")"""),
        (by_number, """put("5", "x")|put(True, "x")|put("x", "x")|put(None, "x")|get("5")|remove("5")"""),
        (numbers, """append()|append("x")|append(True)|append(1.5)|append(None)|append(NAN)|append(*range(1001))
            pop_many(0)|pop_many(-1)|pop_many(1001)|pop_many(True)|pop_many("1")|popleft_many(1.0)|set("0", 1)|set(0, "x")
            set(True, 1)|get("x")|get(1.5)|get(None)|slice("a")|slice(0, "b")|slice(1.5)|set(10**30, 1)|get(10**30)
            slice(10**30)|slice(0, -(10**30))"""),
        (recent, """append("\\ud800")|append("x" * 65536)|append("a", 5)"""),
        (tags, """add()|add(5)|add(None)|add("\\ud800")|add("x" * 65536)|discard()|discard(5)|contains(5)
            contains_many()|add("a", ["b"])|add({"a"})"""),
        (best, """put("a", "5")|put("a", NAN)|put("a", INF)|put("a", -INF)|put("a", None)|put("a", True)
            put("a", 10**400)|put(5, 1)|put("\\ud800", 1)|put(["a"], 1)|update({})|update(5)|update({"a": 1, "b": NAN})
            increment("a", NAN)|increment("a", "1")|remove()|pop_lowest(0)|pop_highest("1")|score(5)|scores()|rank(5)
            between(NAN)|between("a")|between(10**400)|between(offset="x")|between(limit="x")|between(offset=-1)
            range("x")|range(0, "x")|top("x")|top(-1)|count(NAN)|count(most="x")|raise_to("a", NAN)|lower_to("a", INF)"""),
        (points, """add(1.5)|add("1")|add(True)|add(None)|add(2**53)|set(NAN)|set("5")|set(-(2**53))"""),
        (visitors, """add()|add(5)|add("\\ud800")|add("x" * 65536)"""),
        (work, """put()|put(5)|put("\\ud800")|put("x" * 65536)|put("a", delay=5)|put("a", delay=timedelta(-1))
            claim(lease=5)|claim(lease=timedelta())|claim_many(0)|claim_many("1")|wait(lease=5)|wait(timeout=5)"""),
    ]  # fmt: skip

    def call(declared: Any, said: str) -> Callable[[Customer], Any]:
        return lambda ana: eval("held." + said, globals(), {"held": ana.collection(declared)})

    listed = [(declared, one.strip()) for declared, said in of for one in said.replace("\n", "|").split("|")]
    return [(f"{declared.name}.{said}", call(declared, said)) for declared, said in listed]


@pytest.mark.parametrize("before", ["absent", "present"])
async def test_bad_input_is_our_error_and_changes_nothing(ana: Customer, stored: Stored, before: str) -> None:
    if before == "present":
        await ana.collection(texts).put("a", "x")
        await ana.collection(by_number).put(5, "x")
        await ana.collection(numbers).append(1, 2)
        await ana.collection(recent).append("a")
        await ana.collection(tags).add("a")
        await ana.collection(best).put("a", 1)
        await ana.collection(points).add(1)
        await ana.collection(visitors).add("a")
        await ana.collection(work).put("a")
    else:
        await ana.position()
    held = stored.everything()
    wrong = []
    for said, call in bad_calls():
        if before == "absent" and said == 'texts.increment("a")':
            continue
        try:
            got = await call(ana)
            wrong.append(f"{said} gave {got!r}")
        except omnistate.StoreError as error:
            wrong.append(f"{said} was left to the server: {error}")
        except omnistate.OmnistateError:
            pass
        except Exception as error:
            wrong.append(f"{said} raised {error!r}")
        if stored.everything() != held:
            wrong.append(f"{said} changed what is stored")
            held = stored.everything()
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "declare",
    [
        lambda: List(str, name="no name"),
        lambda: List(str, name=""),
        lambda: List(str, name="é"),
        lambda: List(str, name="x", limit=-1),
        lambda: List(str, name="x", limit=1_000_001),
        lambda: List(str, name="x", limit=True),
        lambda: List(str, name="x", ttl=5),  # type: ignore[arg-type]
        lambda: List(str, name="x", ttl=timedelta()),
        lambda: List(str, name="x", channels="web"),  # type: ignore[arg-type]
        lambda: SortedSet(str, name="x", keep="best"),  # type: ignore[arg-type]
        lambda: Counter(name="x", least=0.5),  # type: ignore[arg-type]
        lambda: Counter(name="x", most=2**53),
        lambda: List(str).name,
    ],
)
def test_a_declaration_that_cannot_work_is_refused(declare: Callable[[], Any]) -> None:
    with pytest.raises(omnistate.InvalidDeclaration):
        declare()


async def test_what_is_no_declaration_is_refused(ana: Customer) -> None:
    for wrong in (List, str, "recent", None, Shopper):
        with pytest.raises(omnistate.InvalidInput):
            ana.collection(wrong)  # type: ignore[arg-type]


# Deadlines of collections


async def fill(ana: Customer) -> None:
    """One change of each of the collections that have a time to live."""
    await ana.collection(kept).put("old", 1)
    await ana.collection(kept).put("older", 1, ttl=HOUR)
    await ana.collection(kept_list).append("old")
    await ana.collection(kept_set).add("old")
    await ana.collection(kept_scores).put("old", 1)
    await ana.collection(kept_counter).add(5)
    await ana.collection(kept_unique).add("old")
    await ana.collection(kept_work).put("old", "older")
    await ana.collection(kept_work).claim()


NAMES = ["kept", "kept_list", "kept_set", "kept_scores", "kept_counter", "kept_unique", "kept_work"]


async def test_a_collection_that_holds_as_much_as_it_may_can_be_emptied(ana: Customer, stored: Stored) -> None:
    large = "x" * 60_000
    await fill(ana)
    await ana.collection(kept_set).add(*(f"{number}{large}" for number in range(200)))
    await ana.collection(kept_list).append("a", "b")
    await ana.collection(kept_work).put("c")
    for name in NAMES:
        header = stored.header(name)
        header[4] = str(16 * 1024 * 1024)
        stored.raw.hset(stored.log.meta, "doc:" + name, " ".join(header))
    before = stored.everything()
    for call in (
        ana.collection(kept).put("new", 1),
        ana.collection(kept_list).append("new"),
        ana.collection(kept_set).add("new"),
        ana.collection(kept_scores).put("new", 1),
        ana.collection(kept_work).put("new"),
    ):
        with pytest.raises(omnistate.ValueTooLarge):
            await call
    assert stored.everything() == before
    assert await ana.collection(kept).remove("old") == 1
    assert await ana.collection(kept).pop("older") == 1
    assert await ana.collection(kept_list).pop() == "b"
    assert await ana.collection(kept_set).discard(*(f"{number}{large}" for number in range(200))) == 200
    assert await ana.collection(kept_scores).remove("old") == 1
    (item,) = await ana.collection(kept_work).claim_many(1)
    await item.done()


async def test_what_removes_needs_no_room_for_another_collection(ana: Customer, stored: Stored) -> None:
    docs = stored.log.written[3]
    await ana.collection(tags).add("a")
    stored.raw.sadd(docs, *(f"doc:other{number}" for number in range(999)))
    assert await ana.collection(numbers).pop() is None
    assert await ana.collection(texts).remove("a") == 0
    with pytest.raises(omnistate.QuotaExceeded):
        await ana.collection(numbers).append(1)
    assert await ana.collection(tags).add("b") == 1


async def test_nothing_of_an_expired_collection_comes_back(ana: Customer, stored: Stored) -> None:
    await fill(ana)
    for name in NAMES:
        stored.expire(name)
    assert await ana.collection(kept).all() == {}
    assert (await ana.collection(kept).size(), await ana.collection(kept).get("old")) == (0, None)
    assert await ana.collection(kept_list).all() == []
    assert await ana.collection(kept_set).all() == set()
    assert await ana.collection(kept_scores).all() == {}
    assert await ana.collection(kept_counter).get() == 0
    assert await ana.collection(kept_unique).count() == 0
    assert await ana.collection(kept_work).size() == (0, 0)
    assert await ana.collection(kept).version() == 0
    position = await ana.position()
    await ana.collection(kept).put("new", 2)
    await ana.collection(kept_list).append("new")
    await ana.collection(kept_set).add("new")
    await ana.collection(kept_scores).put("new", 2)
    assert await ana.collection(kept_counter).add(2) == 2
    assert await ana.collection(kept_unique).add("new") == 1
    await ana.collection(kept_work).put("new")
    assert await ana.collection(kept).all() == {"new": 2}
    assert await ana.collection(kept_list).all() == ["new"]
    assert await ana.collection(kept_set).all() == {"new"}
    assert await ana.collection(kept_scores).all() == {"new": 2}
    assert [item.value for item in await ana.collection(kept_work).claim_many(9)] == ["new"]
    types = [(one["type"], one["collection"]) for one in await events_of(ana, position)]
    expected = [(f"collection.{verb}", name) for name in NAMES for verb in ("expired", "changed")]
    assert types[: len(expected)] == expected


async def test_an_operation_that_finds_nothing_does_not_bring_an_expired_collection_back(
    ana: Customer, stored: Stored
) -> None:
    await fill(ana)
    (item,) = await ana.collection(kept_work).claim_many(1)
    for name in NAMES:
        stored.expire(name)
    assert await ana.collection(kept).pop("old") is None
    assert await ana.collection(kept).remove("old") == 0
    assert await ana.collection(kept_list).pop() is None
    assert await ana.collection(kept_set).discard("old") == 0
    assert await ana.collection(kept_scores).pop_lowest() == []
    assert await ana.collection(kept_work).claim() is None
    with pytest.raises(omnistate.LeaseLost):
        await item.done()
    for declared in (kept, kept_list, kept_set, kept_scores, kept_work):
        assert await ana.collection(declared).version() == 0
        assert stored.header(declared.name) == []
    assert stored.raw.scard(stored.log.written[3]) == 2  # the two counters, where no such operation came


async def test_the_keys_of_a_collection_expire_after_its_deadline(ana: Customer, stored: Stored, raw: Redis) -> None:
    await fill(ana)
    for name in NAMES:
        deadline = int(stored.header(name)[0])
        assert raw.pexpiretime(stored.key(name)) > deadline, name
        for part in {"kept": ["due"], "kept_work": ["ready", "leased"]}.get(name, []):
            assert raw.pexpiretime(stored.key(name, part)) > deadline, (name, part)


@pytest.mark.parametrize("swept", [False, True])
async def test_a_map_whose_entries_have_all_expired_gets_its_time_out_again(
    ana: Customer, stored: Stored, raw: Redis, swept: bool
) -> None:
    held = ana.collection(kept)
    await held.put("a", 1, ttl=HOUR)
    stored.expire_entry("kept", "a")
    if swept:
        assert await sweep(ana, stored, "kept", "map") == 1
        assert not raw.exists(stored.key("kept"))
    await held.put("b", 1)
    assert raw.pexpiretime(stored.key("kept")) > int(stored.header("kept")[0])


async def test_a_collection_that_loses_its_ttl_keeps_all_its_keys(ana: Customer, stored: Stored, raw: Redis) -> None:
    await fill(ana)
    await ana.collection(Map(str, int, name="kept")).put("new", 1)
    await ana.collection(WorkQueue(str, name="kept_work")).put("new")
    for key in (key for key in stored.everything() if b":doc:kept:" in key or key.endswith(b"kept")):
        assert raw.ttl(key) == -1, key
    for part in ("", "ready", "leased"):
        assert raw.ttl(stored.key("kept_work", part)) == -1, part
    assert raw.ttl(stored.key("kept", "due")) == -1


async def test_a_lifetime_ends_however_often_it_is_written(ana: Customer, stored: Stored) -> None:
    await ana.collection(short_lived).put("a", 1)
    deadline = stored.header("short_lived")[0]
    await ana.collection(short_lived).put("b", 1)
    await ana.collection(short_lived).put("c", 1, ttl=HOUR * 2)
    assert stored.header("short_lived")[0] == deadline
    stored.expire("short_lived")
    assert await ana.collection(short_lived).all() == {}
    await ana.collection(short_lived).put("d", 1)
    assert int(stored.header("short_lived")[0]) >= int(deadline)
    assert await ana.collection(short_lived).all() == {"d": 1}


async def test_a_watcher_sees_a_collection_expire_and_begin_again(ana: Customer, stored: Stored) -> None:
    held = ana.collection(kept_list)
    await held.append("old")
    async with watching(held) as until:
        await until(["old"])
        stored.expire("kept_list")
        await held.append("new")
        seen = await until(["new"])
    assert seen[-1].version == await held.version()


async def test_a_field_collection_lives_as_its_class_says(ana: Customer, stored: Stored) -> None:
    viewed = ana.collection(Shopper.viewed)
    assert await viewed.append(1, 2, 3) == 2
    assert await viewed.all() == [2, 3]
    await ana.collection(Shopper.stamps).add(4)
    await ana.state(Shopper).patch(name="Ana")
    assert (await ana.state(Shopper).get()).name == "Ana"
    assert await ana.state(Shopper).delete()
    assert await viewed.all() == [2, 3]
    now = int(stored.raw.time()[0]) * 1000  # type: ignore[index]
    assert abs(int(stored.header("Shopper.viewed")[0]) - now - 2 * 86_400_000) < 60_000


# Operation ids


@pytest.mark.parametrize(
    ("declared", "begin", "call", "other"),
    [
        (numbers, None, lambda h, i: h.append(1, 2, operation_id=i), lambda h, i: h.append(1, operation_id=i)),
        (numbers, lambda h: h.append(1, 2), lambda h, i: h.pop(operation_id=i), lambda h, i: h.popleft(operation_id=i)),
        (numbers, lambda h: h.append(1, 2, 3), lambda h, i: h.popleft_many(2, operation_id=i), lambda h, i: h.popleft_many(1, operation_id=i)),
        (numbers, lambda h: h.append(1), lambda h, i: h.set(0, 7, operation_id=i), lambda h, i: h.set(0, 8, operation_id=i)),
        (coupons, None, lambda h, i: h.put("a", 1, operation_id=i), lambda h, i: h.put("a", 2, operation_id=i)),
        (coupons, None, lambda h, i: h.put("a", 1, ttl=HOUR, operation_id=i), lambda h, i: h.put("a", 1, operation_id=i)),
        (coupons, None, lambda h, i: h.add("a", 1, operation_id=i), lambda h, i: h.add("b", 1, operation_id=i)),
        (coupons, None, lambda h, i: h.increment("a", operation_id=i), lambda h, i: h.increment("a", 2, operation_id=i)),
        (coupons, lambda h: h.put("a", 1), lambda h, i: h.pop("a", operation_id=i), lambda h, i: h.pop("b", operation_id=i)),
        (coupons, lambda h: h.put("a", 1), lambda h, i: h.remove("a", operation_id=i), lambda h, i: h.remove("b", operation_id=i)),
        (coupons, lambda h: h.put("a", 1), lambda h, i: h.clear(operation_id=i), lambda h, i: h.remove("b", operation_id=i)),
        (tags, None, lambda h, i: h.add("a", operation_id=i), lambda h, i: h.add("b", operation_id=i)),
        (tags, lambda h: h.add("a"), lambda h, i: h.discard("a", operation_id=i), lambda h, i: h.add("a", operation_id=i)),
        (scores, None, lambda h, i: h.increment("a", 2, operation_id=i), lambda h, i: h.increment("a", operation_id=i)),
        (scores, lambda h: h.put("a", 1), lambda h, i: h.pop_lowest(operation_id=i), lambda h, i: h.pop_highest(operation_id=i)),
        (points, None, lambda h, i: h.add(3, operation_id=i), lambda h, i: h.add(4, operation_id=i)),
        (visitors, None, lambda h, i: h.add("a", operation_id=i), lambda h, i: h.add("b", operation_id=i)),
        (work, None, lambda h, i: h.put("a", operation_id=i), lambda h, i: h.put("b", operation_id=i)),
    ],
)  # fmt: skip
async def test_an_operation_id_is_applied_once(
    ana: Customer, stored: Stored, declared: Any, begin: Any, call: Any, other: Any
) -> None:
    held = ana.collection(declared)
    if begin is not None:
        await begin(held)
    first = await call(held, "op-1")
    before = stored.everything()
    for _ in range(2):
        assert await call(held, "op-1") == first
        assert stored.everything() == before
    with pytest.raises(omnistate.OperationIdReused):
        await other(held, "op-1")
    assert stored.everything() == before


async def test_an_operation_is_the_same_on_another_channel_and_after_a_release(ana: Customer) -> None:
    first = await ana.via("web").collection(numbers).append(1, 2, operation_id="op-1")
    assert await ana.via("app", actor="maria").collection(numbers).append(1, 2, operation_id="op-1") == first
    released = List(int, name="numbers", limit=7, ttl=HOUR)
    assert await ana.collection(released).append(1, 2, operation_id="op-1") == first
    assert await ana.collection(numbers).all() == [1, 2]
    del released
    gc.collect()
    await ana.collection(texts).update({"a": "", "b": "", "a\0b": ""})
    assert await ana.collection(texts).remove("a\0b", operation_id="op-2") == 1
    with pytest.raises(omnistate.OperationIdReused):
        await ana.collection(texts).remove("a", "b", operation_id="op-2")


# Names and kinds


async def test_two_collections_of_one_name_but_other_kind_do_not_mix(ana: Customer, stored: Stored) -> None:
    as_list, as_set = List(str, name="two_kinds"), Set(str, name="two_kinds")
    await ana.collection(as_list).append("a")
    before = stored.everything()
    other = ana.collection(as_set)
    for call in (
        other.add("b"),
        other.discard("a"),
        other.all(),
        other.size(),
        other.contains("a"),
        other.version(),
        other.clear(),
    ):
        with pytest.raises(omnistate.SchemaMismatch, match="two_kinds is stored as a list, not a set"):
            await call
    with pytest.raises(omnistate.SchemaMismatch):
        async for _ in other.watch():
            pass
    assert stored.everything() == before
    assert await ana.collection(as_list).clear()
    assert await other.add("b") == 1
    del as_list, as_set, other
    gc.collect()  # a merge looks at all declarations


async def test_collections_of_two_customers_are_apart(omni: Client) -> None:
    ana, ben = omni.customer("ana"), omni.customer("ben")
    await ana.collection(tags).add("a")
    await ben.collection(tags).add("b")
    assert (await ana.collection(tags).all(), await ben.collection(tags).all()) == ({"a"}, {"b"})


async def test_a_collection_that_was_changed_since_is_not_cleared(ana: Customer) -> None:
    """`clear` has no such argument yet; a part of a call has."""
    held = ana.collection(recent)
    await held.append("a")
    part = held._target.delete(omnistate.Position((await ana.position()).epoch, 7))
    with pytest.raises(omnistate.Conflict):
        await held._execute(part, bool, None)
    assert await held.all() == ["a"]


async def test_a_cleared_collection_is_gone_with_all_its_keys(ana: Customer, stored: Stored) -> None:
    await ana.collection(coupons).put("a", 1, ttl=HOUR)
    await ana.collection(jobs).put(1, 2)
    await ana.collection(jobs).claim()
    for held in (ana.collection(coupons), ana.collection(jobs)):
        assert (await held.clear(), await held.clear(), await held.version()) == (True, False, 0)
    left = [key for key in stored.everything() if b":doc:" in key]
    assert left == []
    assert stored.raw.scard(stored.log.written[3]) == 0


# Events and watchers


async def test_the_log_tells_every_change_in_order_with_rising_versions(ana: Customer) -> None:
    position = await ana.position()
    web = ana.via("web", actor="maria")
    await web.collection(recent).append("a", "b")
    await web.collection(coupons).put("é\n", 1, ttl=HOUR)
    await web.collection(tags).add("x")
    await web.collection(tags).add("x")  # changes nothing, so it says nothing
    await web.collection(best).put("m", 1.5)
    await web.collection(points).add(5)
    await web.collection(visitors).add("v")
    (number,) = await web.collection(work).put("w")
    await web.collection(work).claim()
    await web.collection(recent).clear()
    found = await events_of(ana, position)
    head = {"channel": "web", "actor": "maria"}
    assert all(head.items() <= event.items() and event.pop("time") > 0 for event in found)
    told = [{key: value for key, value in event.items() if key not in head} for event in found]
    changed = {"type": "collection.changed"}
    assert told == [
        changed | {"collection": "recent", "op": "push", "side": "right", "values": ["a", "b"]},
        changed | {"collection": "coupons", "op": "put", "put": {"é\n": 1}},
        changed | {"collection": "tags", "op": "add", "values": ["x"]},
        changed | {"collection": "best", "op": "put", "scores": [["m", 1.5]]},
        changed | {"collection": "points", "op": "add", "value": 5},
        changed | {"collection": "visitors", "op": "add", "count": 1},
        changed | {"collection": "work", "op": "put", "ids": [number]},
        changed | {"collection": "work", "op": "claim", "claims": [[number, 1]]},
        {"type": "collection.deleted", "collection": "recent"},
    ]


async def queue_size(queue: Any) -> int:
    return sum(await queue.size())


async def take_one(queue: Any) -> None:
    await (await queue.claim()).done()


async def test_the_first_call_of_a_customer_may_have_several_parts(ana: Customer, stored: Stored) -> None:
    tag, point = ana.collection(tags), ana.collection(points)
    parts = [
        tag._target.part("add", b',"values":["a"]', [b'"a"']),
        point._target.part("add", b"", [5, "", ""]),
    ]
    command = parse_change(stored.log, parts, "several", lambda _, reply: AssertionError(reply))
    assert (await ana._services.link.execute(command)).results == [b"1", b"5"]
    assert (await tag.all(), await point.get()) == ({"a"}, 5)
    told = await events_of(ana, omnistate.Position((await ana.position()).epoch, 0))
    assert [event["collection"] for event in told] == ["tags", "points"]
    assert stored.raw.smembers(stored.log.written[3]) == {b"doc:tags", b"doc:points"}


WATCHED: list[tuple[Any, Any, list[Any]]] = [
    (
        recent,
        lambda h: h.all(),
        [
            lambda h: h.append("a", "b"),
            lambda h: h.appendleft("c", "d"),
            lambda h: h.append("e", "f", "g", "h"),
            lambda h: h.set(-1, "z"),
            lambda h: h.pop(),
            lambda h: h.popleft_many(1),
            lambda h: h.pop_many(9),
            lambda h: h.append("a"),
            lambda h: h.clear(),
        ],
    ),
    (
        coupons,
        lambda h: h.all(),
        [
            lambda h: h.update({"a": 1, 'q"\\': 2}),
            lambda h: h.increment("a", 4),
            lambda h: h.add("c", 3),
            lambda h: h.pop("a"),
            lambda h: h.remove('q"\\', "x"),
            lambda h: h.clear(),
        ],
    ),
    (tags, lambda h: h.all(), [lambda h: h.add("a", "b"), lambda h: h.discard("a", "x"), lambda h: h.clear()]),
    (
        best,
        lambda h: h.all(),
        [
            lambda h: h.update({"a": 1, "b": 2, "c": 3, "d": 1e22, "e": 0.1}),
            lambda h: h.increment("b", 0.1),
            lambda h: h.raise_to("a", 1e-7),
            lambda h: h.lower_to("b", -5),
            lambda h: h.remove("c"),
            lambda h: h.pop_highest(),
            lambda h: h.pop_lowest(9),
            lambda h: h.increment("b", 0.1),
            lambda h: h.clear(),
        ],
    ),
    (points, lambda h: h.get(), [lambda h: h.add(5), lambda h: h.set(7), lambda h: h.add(-7), lambda h: h.clear()]),
    (visitors, lambda h: h.count(), [lambda h: h.add("a", "b"), lambda h: h.add("c"), lambda h: h.clear()]),
    (
        jobs,
        queue_size,
        [lambda h: h.put(7, 8), lambda h: h.claim(), take_one, lambda h: h.put(9, delay=HOUR), lambda h: h.clear()],
    ),
]


@pytest.mark.parametrize(("declared", "read", "steps"), WATCHED, ids=[one[0].name for one in WATCHED])
async def test_a_watcher_holds_what_a_reader_reads_after_every_change(
    ana: Customer, declared: Any, read: Any, steps: list[Any]
) -> None:
    held = ana.collection(declared)
    async with watching(held) as until:
        for step in steps:
            await step(held)
            value = await read(held)
            seen = await until(value)
            assert list(seen[-1].value) == list(value) if isinstance(value, dict) and declared is best else True
            assert seen[-1].version == await held.version()
        positions = [change.position for change in seen]
    assert positions == sorted(positions, key=lambda position: position.offset)
    assert [bool(change.events) for change in seen] == [False] + [True] * (len(seen) - 1)
    assert len(seen) > len(steps)


async def test_a_watcher_of_one_collection_hears_nothing_of_the_others(ana: Customer) -> None:
    async with watching(ana.collection(tags)) as until:
        await ana.collection(recent).append("x")
        await ana.collection(coupons).put("y", 1)
        await ana.collection(tags).add("z")
        seen = await until({"z"})
    assert len(seen) == 2


# Merging


async def test_a_merge_brings_every_kind_together(omni: Client) -> None:
    ana, ben = await omni.identify("web", "ana"), await omni.identify("app", "ben")
    for who, name in ((ana, "a"), (ben, "b")):
        await who.collection(recent).append(name + "1", name + "2")
        await who.collection(texts).update({name: name, "both": name})
        await who.collection(tags).add(name, "both")
        await who.collection(best).update({name: 1, "both": {"a": 5, "b": 7}[name]})
        await who.collection(points).add(60)
        await who.collection(visitors).add(name, "both")
        await who.collection(jobs).put(*({"a": [1, 2], "b": [3, 4]}[name]))
    for _ in range(2):
        await ana.merge(ben)  # doing it again changes nothing
        assert await ana.collection(recent).all() == ["b2", "a1", "a2"]
        assert await ana.collection(texts).all() == {"a": "a", "b": "b", "both": "a"}
        assert await ana.collection(tags).all() == {"a", "b", "both"}
        assert await ana.collection(best).all() == {"a": 1, "b": 1, "both": 7}
        assert await ana.collection(points).get() == 120
        assert await ana.collection(visitors).count() == 3
        assert await ana.collection(jobs).size() == (4, 0)
    assert [item.value for item in await ana.collection(jobs).claim_many(9)] == [1, 2, 3, 4]
    for call in (ben.collection(tags).all(), ben.collection(tags).add("x"), ben.collection(jobs).claim()):
        with pytest.raises(omnistate.CustomerMerged):
            await call


async def test_a_merge_keeps_the_deadlines_of_entries_and_items(omni: Client, raw: Redis, tenant: str) -> None:
    ana, ben = omni.customer("ana"), omni.customer("ben")
    await ben.collection(coupons).put("soon", 1, ttl=HOUR)
    await ben.collection(coupons).put("stays", 1)
    queue = ben.collection(jobs)
    await queue.put(1, 2)
    await queue.put(3, delay=HOUR)
    assert await queue.claim() is not None
    before = raw.zscore(Keyspace(tenant).customer("ben").key("doc", "coupons", ".due"), "soon")
    await ana.merge(ben)
    stored = Stored(raw, tenant)
    assert raw.zscore(stored.key("coupons", "due"), "soon") == before
    assert f"next={int(before)}" in stored.header("coupons")  # type: ignore[arg-type]
    stored.expire_entry("coupons", "soon")
    assert await ana.collection(coupons).all() == {"stays": 1}
    moved = ana.collection(jobs)
    assert await moved.size() == (1, 2)
    assert [item.value for item in await moved.claim_many(9)] == [2]
    stored.end_leases("jobs")
    assert [(item.value, item.attempt) for item in await moved.claim_many(9)] == [(1, 2), (2, 2), (3, 1)]


async def test_a_merge_mixes_no_two_kinds_of_one_name(omni: Client) -> None:
    ana, ben = omni.customer("ana"), omni.customer("ben")
    declared: Any = List(str, name="two_kinds")
    await ben.collection(declared).append("a")
    declared = None
    gc.collect()  # a merge looks at all declarations
    declared = Set(str, name="two_kinds")
    with pytest.raises(omnistate.SchemaMismatch, match="two_kinds of customer ben is stored as list"):
        await ana.merge(ben)
    assert await ana.collection(declared).all() == set()
    declared = List(str, name="two_kinds")
    gc.collect()
    await ana.merge(ben)
    assert await ana.collection(declared).all() == ["a"]


async def test_a_merge_is_not_refused_for_the_number_of_entries(omni: Client) -> None:
    ana, ben = omni.customer("ana"), omni.customer("ben")
    for who, names in ((ana, "abc"), (ben, "def")):
        await who.collection(scores).update(dict.fromkeys(names, 1))
        await who.collection(best).update({name: ord(name) for name in names})
        await who.collection(tags).add(*names)
        await who.collection(coupons).update(dict.fromkeys(names, 1))
        await who.collection(work).put(*names)
        await who.collection(points).add(100)
    await ana.merge(ben)
    assert set(await ana.collection(scores).all()) == await ana.collection(tags).all() == set("abcdef")
    assert set(await ana.collection(best).all()) == set("def")
    assert set(await ana.collection(coupons).all()) == set("abcdef")
    assert (await ana.collection(work).size(), await ana.collection(points).get()) == ((6, 0), 200)


async def test_a_merge_into_a_customer_without_collections_takes_them_all(
    omni: Client, raw: Redis, tenant: str
) -> None:
    ana, ben = await omni.identify("web", "ana"), await omni.identify("app", "ben")
    await ben.collection(numbers).append(*range(1000))
    await ben.collection(numbers).append(*range(1000, 1700))
    await ben.collection(texts).update({str(number): "x" for number in range(900)})
    await ben.collection(visitors).add("a")
    await ana.merge(ben)
    assert await ana.collection(numbers).all() == list(range(1700))
    assert await ana.collection(texts).size() == 900
    assert await ana.collection(visitors).count() == 1
    left = Keyspace(tenant).customer(ben.id).prefix.decode().replace("{", "?").replace("}", "?") + "doc*"
    assert list(raw.scan_iter(left, count=1000)) == []


async def test_a_damaged_item_stops_no_worker_and_takes_no_other_with_it(omni: Client, raw: Redis, tenant: str) -> None:
    jobs = omnistate.WorkQueue(str, name="fragile")
    queue = omni.customer("ana").collection(jobs)
    ids = await queue.put("a", "b", "c", "d")
    key = Keyspace(tenant).customer("ana").key("doc", "fragile")
    raw.hset(key, str(ids[0]), b"0 7")  # of another type
    raw.hset(key, str(ids[1]), b"\xff")
    raw.hdel(key, str(ids[2]))
    items = await queue.claim_many(10)
    assert [item.id for item in items] == ids
    for item in items[:3]:
        with pytest.raises(omnistate.SchemaMismatch):
            _ = item.value
    assert items[3].value == "d"
    await items[0].release()
    again = await queue.claim()
    assert again is not None
    assert (again.id, again.attempt) == (ids[0], 2)
    for item in (again, *items[1:]):
        await item.done()
    assert await queue.size() == (0, 0)


async def test_a_damaged_counter_is_a_mismatch(omni: Client, raw: Redis, tenant: str) -> None:
    points = omnistate.Counter(name="fragile_points")
    ben = omni.customer("ben")
    await ben.collection(points).add(3)
    raw.set(Keyspace(tenant).customer("ben").key("doc", "fragile_points"), b"three")
    with pytest.raises(omnistate.SchemaMismatch):
        await ben.collection(points).get()
    with pytest.raises(omnistate.InvalidValue):
        await ben.collection(points).add(1)
    with pytest.raises(omnistate.SchemaMismatch):
        await omni.customer("ana").merge(ben)
    assert raw.get(Keyspace(tenant).customer("ben").key("doc", "fragile_points")) == b"three"
