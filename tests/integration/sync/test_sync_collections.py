"""Collections: what each verb does, what is refused and then changes nothing, deadlines, events and watchers."""

# Written by tools/unasync.py from tests/integration/test_collections.py: change that one.

from __future__ import annotations

import gc
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import msgspec
import pytest
from redis import Redis

import omnistate.sync as omnistate
from omnistate.collection import own_keys
from omnistate.session import session_keys
from omnistate.store import Command, Keyspace
from omnistate.sync import Client, Counter, Customer, List, Map, Set, SortedSet, UniqueCounter, WorkQueue

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


def sweep(ana: Customer, stored: Stored, name: str, kind: str) -> int:
    """What the sweeper does with a collection; the number of events."""
    keys = own_keys(stored.log, kind, name)
    arguments = (0, "", "doc:" + name, len(keys), 0)
    command = Command("log_expire", (*stored.log.written, *session_keys(stored.log), *keys), arguments, int, "sweep")
    return ana._services.link.execute(command)


# Lists


def test_a_list_gives_what_was_put_at_its_ends(ana: Customer) -> None:
    seen = ana.collection(numbers)
    assert (seen.all(), seen.size(), seen.get(0), seen.pop()) == ([], 0, None, None)
    assert (seen.popleft(), seen.pop_many(5), seen.popleft_many(5)) == (None, [], [])
    assert seen.append(3, 4) == 2
    assert seen.appendleft(2, 1) == 4
    assert seen.all() == [1, 2, 3, 4]
    assert [seen.get(index) for index in (0, 3, 4, -1, -4, -5)] == [1, 4, None, 4, 1, None]
    seen.set(-2, 33)
    seen.set(0, 11)
    assert seen.all() == [11, 2, 33, 4]
    assert (seen.pop(), seen.popleft()) == (4, 11)
    seen.append(5, 6, 7)
    assert seen.pop_many(2) == [7, 6]
    assert seen.popleft_many(2) == [2, 33]
    assert seen.popleft_many(9) == [5]
    assert (seen.size(), seen.all()) == (0, [])


def test_a_slice_of_a_list_is_pythons(ana: Customer) -> None:
    seen = ana.collection(numbers)
    held = [0, 1, 2, 3, 4]
    seen.append(*held)
    for start in range(-7, 8):
        for stop in (None, *range(-7, 8)):
            assert seen.slice(start, stop) == held[start:stop], (start, stop)


def test_a_full_list_drops_at_the_other_end(ana: Customer) -> None:
    seen = ana.collection(recent)
    assert seen.append("a", "b", "c", "d") == 3
    assert seen.all() == ["b", "c", "d"]
    assert seen.appendleft("x") == 3
    assert seen.all() == ["x", "b", "c"]
    assert seen.appendleft("1", "2", "3", "4", "5") == 3
    assert seen.all() == ["5", "4", "3"]


def test_an_index_that_is_not_there_is_refused(ana: Customer, stored: Stored) -> None:
    seen = ana.collection(numbers)
    with pytest.raises(omnistate.NotThere):
        seen.set(0, 1)
    seen.append(1, 2)
    before = stored.everything()
    for index in (2, -3, 10**12):
        with pytest.raises(omnistate.NotThere):
            seen.set(index, 1)
    assert stored.everything() == before


def test_a_list_holds_structs(ana: Customer) -> None:
    seen = ana.collection(points_seen)
    seen.append(Point(1, 2), Point(3))
    assert seen.all() == [Point(1, 2), Point(3)]
    assert seen.popleft() == Point(1, 2)


# Maps


def test_a_map_gives_what_was_put(ana: Customer) -> None:
    held = ana.collection(texts)
    assert (held.all(), held.size(), held.get("a"), held.pop("a")) == ({}, 0, None, None)
    assert (held.remove("a"), held.contains("a"), held.get_many("a", "b")) == (0, False, [None, None])
    assert [one for one in held.items()] == []
    assert (held.put("a", "1"), held.put("a", "2")) == (True, False)
    assert held.update({"a": "3", "b": "4", 'é\n"\\': 'é\n"\\'}) == 2
    assert held.all() == {"a": "3", "b": "4", 'é\n"\\': 'é\n"\\'} == dict([one for one in held.items()])
    assert held.get_many("b", "x", "a") == ["4", None, "3"]
    assert (held.contains("b"), held.contains("x"), held.size()) == (True, False, 3)
    held.add("c", "5")
    with pytest.raises(omnistate.AlreadyThere):
        held.add("c", "6")
    assert held.get("c") == "5"
    assert (held.remove("a", "x", "c"), held.pop("b"), held.pop("b")) == (2, "4", None)
    assert held.all() == {'é\n"\\': 'é\n"\\'}


def test_the_keys_of_a_map_keep_their_type(ana: Customer) -> None:
    held = ana.collection(by_number)
    assert held.update({7: "a", -1: "b", 2**60: "c"}) == 3
    assert held.all() == {7: "a", -1: "b", 2**60: "c"}
    assert (held.get(7), held.remove(-1), held.pop(2**60)) == ("a", 1, "c")
    days: Map[date, float] = Map(date, float, name="days")
    ana.collection(days).put(date(2020, 1, 31), 1)
    assert ana.collection(days).all() == {date(2020, 1, 31): 1.0}
    ratios: Map[float, int] = Map(float, int, name="ratios")
    assert [ana.collection(ratios).put(key, 1) for key in (1, 1.0, 0.5)] == [True, False, True]
    assert ana.collection(ratios).all() == {1.0: 1, 0.5: 1}


def test_a_map_counts(ana: Customer) -> None:
    held = ana.collection(coupons)
    assert [held.increment("a"), held.increment("a", 5), held.increment("a", -7)] == [1, 6, -1]
    held.put("b", 2**53 - 1)
    with pytest.raises(omnistate.InvalidValue):
        held.increment("b")
    assert held.all() == {"a": -1, "b": 2**53 - 1}
    mixed: Map[str, float] = Map(str, float, name="mixed")
    ana.collection(mixed).put("a", 0.5)
    with pytest.raises(omnistate.InvalidValue):
        ana.collection(mixed).increment("a")
    assert ana.collection(mixed).get("a") == 0.5


def test_a_large_map_is_read_page_by_page(ana: Customer) -> None:
    held = ana.collection(texts)
    for at in range(0, 3000, 1000):
        held.update({f"key {number}": str(number) for number in range(at, at + 1000)})
    assert dict([one for one in held.items()]) == held.all()
    assert held.size() == 3000
    assert held.remove(*(f"key {number}" for number in range(1000))) == 1000


# Deadlines of entries


def test_an_entry_whose_deadline_passed_is_gone_for_every_reader(ana: Customer, stored: Stored) -> None:
    held = ana.collection(coupons)
    held.update({"a": 1, "b": 2}, ttl=HOUR)
    held.put("c", 3)
    stored.expire_entry("coupons", "a")
    assert held.all() == {"b": 2, "c": 3} == dict([one for one in held.items()])
    assert (held.size(), held.contains("a"), held.get("a")) == (2, False, None)
    assert held.get_many("a", "b") == [None, 2]


def test_entries_that_have_expired_make_room(ana: Customer, stored: Stored) -> None:
    held = ana.collection(coupons)
    held.update({"a": 1, "b": 2, "c": 3}, ttl=HOUR)
    for key in "abc":
        stored.expire_entry("coupons", key)
    assert held.increment("x") == 1
    assert held.update({"a": 4, "y": 5}) == 2
    with pytest.raises(omnistate.CollectionFull):
        held.put("z", 1)
    assert held.all() == {"x": 1, "a": 4, "y": 5}


def test_the_bytes_of_entries_that_have_expired_are_free_again(ana: Customer, stored: Stored) -> None:
    held = ana.collection(texts)
    large = "x" * 60_000
    for _ in range(3):  # twice as much as a map may hold
        for at in range(0, 200, 100):
            held.update({str(number): large for number in range(at, at + 100)}, ttl=HOUR)
        for number in range(200):
            stored.expire_entry("texts", str(number))
    held.put("a", "b")
    assert int(stored.header("texts")[4]) == len("a") + len('"b"')


def test_the_sweeper_frees_the_bytes_too(ana: Customer, stored: Stored) -> None:
    held = ana.collection(coupons)
    held.update({"a": 1, "b": 2}, ttl=HOUR)
    held.put("c", 3)
    for key in "ab":
        stored.expire_entry("coupons", key)
    sweep(ana, stored, "coupons", "map")
    assert int(stored.header("coupons")[4]) == len("c") + len("3")
    assert held.all() == {"c": 3}
    assert [one for one in stored.header("coupons") if one.startswith("next=")] == []


# Sets


def test_a_set_holds_each_value_once(ana: Customer) -> None:
    held = ana.collection(tags)
    assert (held.all(), held.size(), held.contains("a"), held.discard("a")) == (
        set(),
        0,
        False,
        0,
    )
    assert [one for one in held.members()] == []
    assert (held.add("a", "b"), held.add("b", "é"), held.add("a")) == (2, 1, 0)
    assert held.all() == {"a", "b", "é"} == {one for one in held.members()}
    assert held.contains_many("a", "x", "é") == [True, False, True]
    assert (held.discard("a", "x"), held.size()) == (1, 2)


def test_a_full_set_takes_no_new_value(ana: Customer, stored: Stored) -> None:
    held = ana.collection(tags)
    held.add("a", "b", "c")
    before = stored.everything()
    with pytest.raises(omnistate.CollectionFull):
        held.add("a", "d")
    assert held.add("a", "b") == 0
    assert stored.everything() == before


def test_a_value_that_is_given_twice_needs_room_once(ana: Customer) -> None:
    held = ana.collection(tags)
    held.add("a", "b")
    assert held.add("c", "c", "c") == 1
    assert held.discard("c", "c") == 1


def test_values_that_are_equal_are_one_member(ana: Customer) -> None:
    ratios: Set[float] = Set(float, name="set_of_floats")
    held = ana.collection(ratios)
    assert [held.add(1), held.add(1.0), held.size(), held.contains(1)] == [1, 0, 1, True]
    ranked: SortedSet[float] = SortedSet(float, name="sorted_floats")
    board = ana.collection(ranked)
    assert [board.put(1, 5), board.put(1.0, 6), board.score(1)] == [True, False, 6]


def test_what_was_taken_out_and_cannot_be_read_is_not_lost(ana: Customer) -> None:
    ana.collection(List(str, name="was_text")).append("x", "y")
    ana.collection(Map(str, str, name="was_map")).put("k", "v")
    ana.collection(SortedSet(str, name="was_board")).put("m", 1)
    numbers_now, map_now = ana.collection(List(int, name="was_text")), ana.collection(Map(str, int, name="was_map"))
    for take, removed in (
        (numbers_now.pop, (b'"y"',)),
        (lambda: numbers_now.popleft_many(5), (b'"x"',)),
        (lambda: map_now.pop("k"), (b'"v"',)),
        (lambda: ana.collection(SortedSet(int, name="was_board")).pop_lowest(), (b'"m"', b"1")),
    ):
        with pytest.raises(omnistate.SchemaMismatch) as raised:
            take()  # type: ignore[no-untyped-call]
        assert raised.value.removed == removed


def test_collections_are_gone_through_as_python_does(ana: Customer) -> None:
    many = range(2500)
    big_list, big_set = List(int, name="big_list"), Set(int, name="big_set")
    big_map, big_board = Map(int, str, name="big_map"), SortedSet(int, name="big_board")
    for at in range(0, 2500, 500):
        some = many[at : at + 500]
        ana.collection(big_list).append(*some)
        ana.collection(big_set).add(*some)
        ana.collection(big_map).update(dict.fromkeys(some, "x"))
        ana.collection(big_board).update({number: -number for number in some})
    assert [one for one in ana.collection(big_list)] == list(many)
    assert {one for one in ana.collection(big_set)} == set(many)
    assert {one for one in ana.collection(big_map)} == set(many)
    assert [one for one in ana.collection(big_board)] == list(reversed(many))
    assert [one for one in ana.collection(recent)] == [one for one in ana.collection(coupons)] == []
    ana.collection(work).put("a", "b")
    for item in ana.collection(work):
        item.done()
        if item.value == "b":
            break


def test_members_that_python_cannot_hold_in_a_set_are_refused(ana: Customer) -> None:
    lists: Set[Any] = Set(Any, name="set_of_anything")
    with pytest.raises(omnistate.InvalidValue, match="unhashable"):
        ana.collection(lists).add([1])
    pairs: Set[tuple[int, int]] = Set(tuple[int, int], name="set_of_pairs")
    assert ana.collection(pairs).add((1, 2)) == 1
    assert ana.collection(pairs).all() == {(1, 2)}


def test_a_large_set_is_read_page_by_page(ana: Customer) -> None:
    many: Set[int] = Set(int, name="many")
    held = ana.collection(many)
    for at in range(0, 3000, 1000):
        held.add(*range(at, at + 1000))
    assert {one for one in held.members()} == held.all() == set(range(3000))


# Sorted sets


def test_a_sorted_set_keeps_its_members_in_order(ana: Customer) -> None:
    board: SortedSet[str] = SortedSet(str, name="board")
    held = ana.collection(board)
    assert (held.all(), held.size(), held.score("a"), held.rank("a")) == ({}, 0, None, None)
    assert (held.top(), held.pop_lowest(), held.count(), held.between()) == ([], [], 0, [])
    assert (held.put("a", 1), held.put("a", 2.5), held.update({"b": -1, "c": 1e300})) == (
        True,
        False,
        2,
    )
    assert held.all() == {"b": -1, "a": 2.5, "c": 1e300}
    assert list(held.all()) == ["b", "a", "c"]
    assert (held.rank("c"), held.rank("b"), held.rank("b", highest_first=False)) == (0, 2, 0)
    assert held.rank("x") is None
    assert held.scores("a", "x", "b") == [2.5, None, -1]
    assert held.top(2) == [("c", 1e300), ("a", 2.5)]
    assert held.range(1) == [("a", 2.5), ("b", -1)]
    assert held.range(0, -1, highest_first=False) == [("b", -1), ("a", 2.5)]
    assert (held.range(0, 0), held.range(5, 7)) == ([], [])
    assert held.between(-1, 2.5) == [("b", -1), ("a", 2.5)]
    assert held.between(0, highest_first=True) == [("c", 1e300), ("a", 2.5)]
    assert held.between(offset=1, limit=1) == [("a", 2.5)]
    assert (held.count(0), held.count(most=0), held.count(2.5, 2.5)) == (2, 1, 1)
    assert (held.increment("a", 0.5), held.increment("d")) == (3.0, 1.0)
    assert (held.remove("a", "x"), held.pop_lowest(), held.pop_highest(5)) == (
        1,
        [("b", -1)],
        [("c", 1e300), ("d", 1)],
    )
    assert held.size() == 0


def test_a_best_score_is_only_raised_and_a_best_time_only_lowered(ana: Customer) -> None:
    held = ana.collection(scores)
    for score in (2, 1, 3, 3):
        held.raise_to("a", score)
    for score in (2, 3, 1, 1):
        held.lower_to("b", score)
    assert held.all() == {"b": 1, "a": 3}


# Counters


def test_a_counter_stays_within_what_every_language_can_read(ana: Customer) -> None:
    held = ana.collection(visits)
    assert held.set(2**53 - 1) == 2**53 - 1
    with pytest.raises(omnistate.InvalidValue):
        held.add(1)
    assert held.add(-(2**53 - 1)) == 0
    assert held.set(-(2**53 - 1)) == -(2**53 - 1)
    with pytest.raises(omnistate.InvalidValue):
        held.add(-1)
    assert held.get() == -(2**53 - 1)


def test_a_unique_counter_counts_different_values(ana: Customer) -> None:
    held = ana.collection(visitors)
    assert held.count() == 0
    assert (held.add("a", "b", "a"), held.add("a"), held.add("c")) == (2, 2, 3)
    for at in range(0, 5000, 1000):
        held.add(*(f"v{number}" for number in range(at, at + 1000)))
    assert abs(held.count() - 5003) < 5003 * 0.05


# Work queues


def test_a_full_queue_takes_no_more(ana: Customer, stored: Stored) -> None:
    queue = ana.collection(work)
    queue.put("a", "b")
    item = queue.claim()
    before = stored.everything()
    with pytest.raises(omnistate.CollectionFull):
        queue.put("c", "d")
    assert stored.everything() == before
    queue.put("c")
    with pytest.raises(omnistate.CollectionFull):
        queue.put("d")
    assert item is not None
    item.done()
    queue.put("d")


def test_a_delayed_item_comes_when_its_time_has_come(ana: Customer, stored: Stored) -> None:
    queue = ana.collection(work)
    queue.put("a", delay=HOUR)
    assert (queue.claim(), queue.size()) == (None, (0, 1))
    stored.end_leases("work")
    item = queue.claim()
    assert item is not None
    assert item.attempt == 1
    item.release(delay=HOUR)
    assert queue.claim() is None
    stored.end_leases("work")
    item = queue.claim()
    assert item is not None
    assert item.attempt == 2


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
def test_bad_input_is_our_error_and_changes_nothing(ana: Customer, stored: Stored, before: str) -> None:
    if before == "present":
        ana.collection(texts).put("a", "x")
        ana.collection(by_number).put(5, "x")
        ana.collection(numbers).append(1, 2)
        ana.collection(recent).append("a")
        ana.collection(tags).add("a")
        ana.collection(best).put("a", 1)
        ana.collection(points).add(1)
        ana.collection(visitors).add("a")
        ana.collection(work).put("a")
    else:
        ana.position()
    held = stored.everything()
    wrong = []
    for said, call in bad_calls():
        if before == "absent" and said == 'texts.increment("a")':
            continue
        try:
            got = call(ana)
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


def test_what_is_no_declaration_is_refused(ana: Customer) -> None:
    for wrong in (List, str, "recent", None, Shopper):
        with pytest.raises(omnistate.InvalidInput):
            ana.collection(wrong)  # type: ignore[arg-type]


# Deadlines of collections


def fill(ana: Customer) -> None:
    """One change of each of the collections that have a time to live."""
    ana.collection(kept).put("old", 1)
    ana.collection(kept).put("older", 1, ttl=HOUR)
    ana.collection(kept_list).append("old")
    ana.collection(kept_set).add("old")
    ana.collection(kept_scores).put("old", 1)
    ana.collection(kept_counter).add(5)
    ana.collection(kept_unique).add("old")
    ana.collection(kept_work).put("old", "older")
    ana.collection(kept_work).claim()


NAMES = ["kept", "kept_list", "kept_set", "kept_scores", "kept_counter", "kept_unique", "kept_work"]


def test_what_removes_needs_no_room_for_another_collection(ana: Customer, stored: Stored) -> None:
    docs = stored.log.written[3]
    ana.collection(tags).add("a")
    stored.raw.sadd(docs, *(f"doc:other{number}" for number in range(999)))
    assert ana.collection(numbers).pop() is None
    assert ana.collection(texts).remove("a") == 0
    with pytest.raises(omnistate.QuotaExceeded):
        ana.collection(numbers).append(1)
    assert ana.collection(tags).add("b") == 1


def test_an_operation_that_finds_nothing_does_not_bring_an_expired_collection_back(
    ana: Customer, stored: Stored
) -> None:
    fill(ana)
    (item,) = ana.collection(kept_work).claim_many(1)
    for name in NAMES:
        stored.expire(name)
    assert ana.collection(kept).pop("old") is None
    assert ana.collection(kept).remove("old") == 0
    assert ana.collection(kept_list).pop() is None
    assert ana.collection(kept_set).discard("old") == 0
    assert ana.collection(kept_scores).pop_lowest() == []
    assert ana.collection(kept_work).claim() is None
    with pytest.raises(omnistate.LeaseLost):
        item.done()
    for declared in (kept, kept_list, kept_set, kept_scores, kept_work):
        assert ana.collection(declared).version() == 0
        assert stored.header(declared.name) == []
    assert stored.raw.scard(stored.log.written[3]) == 2  # the two counters, where no such operation came


def test_the_keys_of_a_collection_expire_after_its_deadline(ana: Customer, stored: Stored, raw: Redis) -> None:
    fill(ana)
    for name in NAMES:
        deadline = int(stored.header(name)[0])
        assert raw.pexpiretime(stored.key(name)) > deadline, name
        for part in {"kept": ["due"], "kept_work": ["ready", "leased"]}.get(name, []):
            assert raw.pexpiretime(stored.key(name, part)) > deadline, (name, part)


@pytest.mark.parametrize("swept", [False, True])
def test_a_map_whose_entries_have_all_expired_gets_its_time_out_again(
    ana: Customer, stored: Stored, raw: Redis, swept: bool
) -> None:
    held = ana.collection(kept)
    held.put("a", 1, ttl=HOUR)
    stored.expire_entry("kept", "a")
    if swept:
        assert sweep(ana, stored, "kept", "map") == 1
        assert not raw.exists(stored.key("kept"))
    held.put("b", 1)
    assert raw.pexpiretime(stored.key("kept")) > int(stored.header("kept")[0])


def test_a_collection_that_loses_its_ttl_keeps_all_its_keys(ana: Customer, stored: Stored, raw: Redis) -> None:
    fill(ana)
    ana.collection(Map(str, int, name="kept")).put("new", 1)
    ana.collection(WorkQueue(str, name="kept_work")).put("new")
    for key in (key for key in stored.everything() if b":doc:kept:" in key or key.endswith(b"kept")):
        assert raw.ttl(key) == -1, key
    for part in ("", "ready", "leased"):
        assert raw.ttl(stored.key("kept_work", part)) == -1, part
    assert raw.ttl(stored.key("kept", "due")) == -1


def test_a_lifetime_ends_however_often_it_is_written(ana: Customer, stored: Stored) -> None:
    ana.collection(short_lived).put("a", 1)
    deadline = stored.header("short_lived")[0]
    ana.collection(short_lived).put("b", 1)
    ana.collection(short_lived).put("c", 1, ttl=HOUR * 2)
    assert stored.header("short_lived")[0] == deadline
    stored.expire("short_lived")
    assert ana.collection(short_lived).all() == {}
    ana.collection(short_lived).put("d", 1)
    assert int(stored.header("short_lived")[0]) >= int(deadline)
    assert ana.collection(short_lived).all() == {"d": 1}


def test_a_field_collection_lives_as_its_class_says(ana: Customer, stored: Stored) -> None:
    viewed = ana.collection(Shopper.viewed)
    assert viewed.append(1, 2, 3) == 2
    assert viewed.all() == [2, 3]
    ana.collection(Shopper.stamps).add(4)
    ana.state(Shopper).patch(name="Ana")
    assert (ana.state(Shopper).get()).name == "Ana"
    assert ana.state(Shopper).delete()
    assert viewed.all() == [2, 3]
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
def test_an_operation_id_is_applied_once(
    ana: Customer, stored: Stored, declared: Any, begin: Any, call: Any, other: Any
) -> None:
    held = ana.collection(declared)
    if begin is not None:
        begin(held)
    first = call(held, "op-1")
    before = stored.everything()
    for _ in range(2):
        assert call(held, "op-1") == first
        assert stored.everything() == before
    with pytest.raises(omnistate.OperationIdReused):
        other(held, "op-1")
    assert stored.everything() == before


def test_an_operation_is_the_same_on_another_channel_and_after_a_release(ana: Customer) -> None:
    first = ana.via("web").collection(numbers).append(1, 2, operation_id="op-1")
    assert ana.via("app", actor="maria").collection(numbers).append(1, 2, operation_id="op-1") == first
    released = List(int, name="numbers", limit=7, ttl=HOUR)
    assert ana.collection(released).append(1, 2, operation_id="op-1") == first
    assert ana.collection(numbers).all() == [1, 2]
    del released
    gc.collect()
    ana.collection(texts).update({"a": "", "b": "", "a\0b": ""})
    assert ana.collection(texts).remove("a\0b", operation_id="op-2") == 1
    with pytest.raises(omnistate.OperationIdReused):
        ana.collection(texts).remove("a", "b", operation_id="op-2")


# Names and kinds


def test_collections_of_two_customers_are_apart(omni: Client) -> None:
    ana, ben = omni.customer("ana"), omni.customer("ben")
    ana.collection(tags).add("a")
    ben.collection(tags).add("b")
    assert (ana.collection(tags).all(), ben.collection(tags).all()) == ({"a"}, {"b"})


def test_a_collection_that_was_changed_since_is_not_cleared(ana: Customer) -> None:
    """`clear` has no such argument yet; a part of a call has."""
    held = ana.collection(recent)
    held.append("a")
    part = held._target.delete(omnistate.Position((ana.position()).epoch, 7))
    with pytest.raises(omnistate.Conflict):
        held._execute(part, bool, None)
    assert held.all() == ["a"]


def test_a_cleared_collection_is_gone_with_all_its_keys(ana: Customer, stored: Stored) -> None:
    ana.collection(coupons).put("a", 1, ttl=HOUR)
    ana.collection(jobs).put(1, 2)
    ana.collection(jobs).claim()
    for held in (ana.collection(coupons), ana.collection(jobs)):
        assert (held.clear(), held.clear(), held.version()) == (True, False, 0)
    left = [key for key in stored.everything() if b":doc:" in key]
    assert left == []
    assert stored.raw.scard(stored.log.written[3]) == 0


# Events and watchers


def queue_size(queue: Any) -> int:
    return sum(queue.size())


def take_one(queue: Any) -> None:
    (queue.claim()).done()


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


# Merging


def test_a_merge_keeps_the_deadlines_of_entries_and_items(omni: Client, raw: Redis, tenant: str) -> None:
    ana, ben = omni.customer("ana"), omni.customer("ben")
    ben.collection(coupons).put("soon", 1, ttl=HOUR)
    ben.collection(coupons).put("stays", 1)
    queue = ben.collection(jobs)
    queue.put(1, 2)
    queue.put(3, delay=HOUR)
    assert queue.claim() is not None
    before = raw.zscore(Keyspace(tenant).customer("ben").key("doc", "coupons", ".due"), "soon")
    ana.merge(ben)
    stored = Stored(raw, tenant)
    assert raw.zscore(stored.key("coupons", "due"), "soon") == before
    assert f"next={int(before)}" in stored.header("coupons")  # type: ignore[arg-type]
    stored.expire_entry("coupons", "soon")
    assert ana.collection(coupons).all() == {"stays": 1}
    moved = ana.collection(jobs)
    assert moved.size() == (1, 2)
    assert [item.value for item in moved.claim_many(9)] == [2]
    stored.end_leases("jobs")
    assert [(item.value, item.attempt) for item in moved.claim_many(9)] == [(1, 2), (2, 2), (3, 1)]


def test_a_merge_mixes_no_two_kinds_of_one_name(omni: Client) -> None:
    ana, ben = omni.customer("ana"), omni.customer("ben")
    declared: Any = List(str, name="two_kinds")
    ben.collection(declared).append("a")
    declared = None
    gc.collect()  # a merge looks at all declarations
    declared = Set(str, name="two_kinds")
    with pytest.raises(omnistate.SchemaMismatch, match="two_kinds of customer ben is stored as list"):
        ana.merge(ben)
    assert ana.collection(declared).all() == set()
    declared = List(str, name="two_kinds")
    gc.collect()
    ana.merge(ben)
    assert ana.collection(declared).all() == ["a"]


def test_a_merge_is_not_refused_for_the_number_of_entries(omni: Client) -> None:
    ana, ben = omni.customer("ana"), omni.customer("ben")
    for who, names in ((ana, "abc"), (ben, "def")):
        who.collection(scores).update(dict.fromkeys(names, 1))
        who.collection(best).update({name: ord(name) for name in names})
        who.collection(tags).add(*names)
        who.collection(coupons).update(dict.fromkeys(names, 1))
        who.collection(work).put(*names)
        who.collection(points).add(100)
    ana.merge(ben)
    assert set(ana.collection(scores).all()) == ana.collection(tags).all() == set("abcdef")
    assert set(ana.collection(best).all()) == set("def")
    assert set(ana.collection(coupons).all()) == set("abcdef")
    assert (ana.collection(work).size(), ana.collection(points).get()) == ((6, 0), 200)


def test_a_merge_into_a_customer_without_collections_takes_them_all(omni: Client, raw: Redis, tenant: str) -> None:
    ana, ben = omni.identify("web", "ana"), omni.identify("app", "ben")
    ben.collection(numbers).append(*range(1000))
    ben.collection(numbers).append(*range(1000, 1700))
    ben.collection(texts).update({str(number): "x" for number in range(900)})
    ben.collection(visitors).add("a")
    ana.merge(ben)
    assert ana.collection(numbers).all() == list(range(1700))
    assert ana.collection(texts).size() == 900
    assert ana.collection(visitors).count() == 1
    left = Keyspace(tenant).customer(ben.id).prefix.decode().replace("{", "?").replace("}", "?") + "doc*"
    assert list(raw.scan_iter(left, count=1000)) == []


def test_a_damaged_item_stops_no_worker_and_takes_no_other_with_it(omni: Client, raw: Redis, tenant: str) -> None:
    jobs = omnistate.WorkQueue(str, name="fragile")
    queue = omni.customer("ana").collection(jobs)
    ids = queue.put("a", "b", "c", "d")
    key = Keyspace(tenant).customer("ana").key("doc", "fragile")
    raw.hset(key, str(ids[0]), b"0 7")  # of another type
    raw.hset(key, str(ids[1]), b"\xff")
    raw.hdel(key, str(ids[2]))
    items = queue.claim_many(10)
    assert [item.id for item in items] == ids
    for item in items[:3]:
        with pytest.raises(omnistate.SchemaMismatch):
            _ = item.value
    assert items[3].value == "d"
    items[0].release()
    again = queue.claim()
    assert again is not None
    assert (again.id, again.attempt) == (ids[0], 2)
    for item in (again, *items[1:]):
        item.done()
    assert queue.size() == (0, 0)


def test_a_damaged_counter_is_a_mismatch(omni: Client, raw: Redis, tenant: str) -> None:
    points = omnistate.Counter(name="fragile_points")
    ben = omni.customer("ben")
    ben.collection(points).add(3)
    raw.set(Keyspace(tenant).customer("ben").key("doc", "fragile_points"), b"three")
    with pytest.raises(omnistate.SchemaMismatch):
        ben.collection(points).get()
    with pytest.raises(omnistate.InvalidValue):
        ben.collection(points).add(1)
    with pytest.raises(omnistate.SchemaMismatch):
        omni.customer("ana").merge(ben)
    assert raw.get(Keyspace(tenant).customer("ben").key("doc", "fragile_points")) == b"three"
