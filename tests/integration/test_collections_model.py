"""Random operations on each kind of collection, against a plain Python model of it: see `model`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, ClassVar, cast

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

import omnistate
from model import HOUR, HOW, Machine, World, play
from omnistate import (
    CollectionFull,
    Counter,
    LeaseLost,
    List,
    Map,
    NotThere,
    OutOfBounds,
    Set,
    SortedSet,
    UniqueCounter,
    WorkQueue,
)

LETTERS = st.sampled_from(["a", "b", "c", "d", "e", 'q"\\\n', "é"])
SMALL = st.integers(-3, 9)
SIDES = st.sampled_from(["left", "right"])
LONG_AGO = -(10.0**9)


class CollectionMachine(Machine):
    """`model` is what a reader sees, `exists` whether there is a collection, `hidden` what has ended without an event."""

    declared: ClassVar[Any]
    parts: ClassVar[tuple[str, ...]] = ("model",)
    model: Any

    def __init__(self) -> None:
        super().__init__()
        self.exists, self.deadline, self.hidden = False, 0.0, cast("dict[str, Any] | None", None)
        self.handle = self.customer.collection(self.declared)
        self.reading = self.reader.collection(self.declared)
        self.empty()
        self.follower = self.follow(self.reading.watch())

    def empty(self) -> None:
        raise NotImplementedError

    def read(self) -> Awaitable[Any]:
        return cast("Awaitable[Any]", self.reading.all())

    def held(self) -> Any:
        """The model as a reader sees it."""
        return self.model

    def one_change(self) -> None:
        """A change that is always one."""
        raise NotImplementedError

    def check(self, got: Any, expected: Any, *, changed: bool) -> None:
        assert got == expected
        if isinstance(expected, type):
            return  # refused: nothing has happened
        changed = self.end_entries() or changed
        self.hidden = None
        if changed:
            self.exists, self.deadline = True, self.world.now + 60

    def end_entries(self) -> bool:
        """Entries whose end nobody was told are ended by an operation, and whether there were any."""
        return False

    def on_time(self) -> None:
        if self.exists and self.deadline <= self.world.now:
            self.hidden = {part: getattr(self, part) for part in self.parts}
            self.exists = False
            self.empty()
        elif self.hidden is not None and self.deadline > self.world.now:
            for part, value in self.hidden.items():
                setattr(self, part, value)
            self.exists, self.hidden = True, None

    def swept(self) -> int:
        if self.hidden is not None:
            self.hidden = None
            return 1
        return int(self.end_entries())

    def agree(self) -> None:
        assert self.world.run(self.read()) == self.held()
        assert bool(self.world.run(self.reading.version())) == self.exists
        assert not self.exists or int(self.header()[4]) == self.weight()

    def weight(self) -> int:
        """The bytes that are stored, as the header should say; what has expired is there until something removes it."""
        raw, key = self.world.raw, self.log.key("doc", self.declared.name)
        match self.declared.kind:
            case "list":
                return sum(map(len, cast("Any", raw.lrange(key, 0, -1))))
            case "set":
                return sum(map(len, cast("Any", raw.smembers(key))))
            case "sorted":
                return sum(len(member) + 8 for member in cast("Any", raw.zrange(key, 0, -1)))
            case "map" | "queue":
                return sum(len(name) + len(value) for name, value in cast("Any", raw.hgetall(key)).items())
            case kind:
                return 12304 if kind == "unique" else 0

    def header(self) -> list[bytes]:
        found = cast("bytes | None", self.world.raw.hget(self.log.meta, "doc:" + self.declared.name))
        return found.split(b" ") if found else []

    def store_header(self, header: list[bytes]) -> None:
        self.world.raw.hset(self.log.meta, "doc:" + self.declared.name, b" ".join(header))

    @rule(how=HOW)
    def clear(self, how: str) -> None:
        got = self.call(how, self.handle.clear)
        assert got == self.exists
        if self.exists:
            self.exists = False
            self.empty()

    @rule()
    @precondition(lambda self: self.exists)
    def expire(self) -> None:
        header = self.header()
        header[0] = b"1".zfill(13)
        self.store_header(header)
        self.deadline = LONG_AGO
        self.on_time()

    def finish(self) -> None:
        self.one_change()  # what has expired is told by the next change
        self.follower.check(self.world.run(self.reading.version()), self.held())


class ListMachine(CollectionMachine):
    declared = List(int, name="model_list", limit=5, ttl=HOUR)

    def empty(self) -> None:
        self.model = []

    def one_change(self) -> None:
        self.push("right", [1], "plain")

    @rule(side=SIDES, values=st.lists(SMALL, min_size=1, max_size=7), how=HOW)
    def push(self, side: str, values: list[int], how: str) -> None:
        if side == "left":
            got = self.call(how, self.handle.appendleft, *values)
            self.model = [*reversed(values), *self.model][:5]
        else:
            got = self.call(how, self.handle.append, *values)
            self.model = [*self.model, *values][-5:]
        self.check(got, len(self.model), changed=True)

    @rule(side=SIDES, count=st.integers(1, 3), how=HOW)
    def pop(self, side: str, count: int, how: str) -> None:
        got = self.call(how, self.handle.popleft_many if side == "left" else self.handle.pop_many, count)
        expected = []
        while self.model and len(expected) < count:
            expected.append(self.model.pop(0 if side == "left" else -1))
        self.check(got, expected, changed=bool(expected))

    @rule(index=st.integers(-6, 6), value=SMALL, how=HOW)
    def set(self, index: int, value: int, how: str) -> None:
        got, expected = self.call(how, self.handle.set, index, value), None
        try:
            self.model[index] = value
        except IndexError:
            expected = NotThere
        self.check(got, expected, changed=expected is None)

    @rule(start=st.integers(-7, 7), stop=st.integers(-7, 7) | st.none())
    def slice(self, start: int, stop: int | None) -> None:
        assert self.world.run(self.reading.slice(start, stop)) == self.model[start:stop]
        assert self.world.run(self.reading.size()) == len(self.model)


class MapMachine(CollectionMachine):
    declared = Map(str, int, name="model_map", limit=4, ttl=HOUR)
    parts = ("model", "deadlines", "ended")
    deadlines: dict[str, float]  # of entries, those that have ended too
    ended: dict[str, int]

    def empty(self) -> None:
        self.model, self.deadlines, self.ended = {}, {}, {}

    def end_entries(self) -> bool:
        gone, self.ended = self.ended, {}
        for key in gone:
            del self.deadlines[key]
        return bool(gone)

    def on_time(self) -> None:
        super().on_time()
        for key, deadline in self.deadlines.items():
            old, new = (self.model, self.ended) if deadline <= self.world.now else (self.ended, self.model)
            if key in old:
                new[key] = old.pop(key)

    def one_change(self) -> None:
        self.put({next(iter(self.model), "a"): 1}, False, "plain")

    @rule(values=st.dictionaries(LETTERS, SMALL, min_size=1, max_size=3), mortal=st.booleans(), how=HOW)
    def put(self, values: dict[str, int], mortal: bool, how: str) -> None:
        got = self.call(how, self.handle.update, values, ttl=HOUR / 6 if mortal else None)
        new = len(values.keys() - self.model.keys())
        if new and len(self.model) + new > 4:
            self.check(got, CollectionFull, changed=False)
            return
        self.check(got, new, changed=True)
        self.model |= values
        if mortal:
            self.deadlines |= dict.fromkeys(values, self.world.now + 10)

    @rule(key=LETTERS, value=SMALL, how=HOW)
    def add(self, key: str, value: int, how: str) -> None:
        got, expected = self.call(how, self.handle.add, key, value), None
        if key in self.model:
            expected = omnistate.AlreadyThere
        elif len(self.model) == 4:
            expected = CollectionFull
        else:
            self.model[key] = value
        self.check(got, expected, changed=expected is None)

    @rule(keys=st.lists(LETTERS, min_size=1, max_size=3), how=HOW)
    def remove(self, keys: list[str], how: str) -> None:
        got = self.call(how, self.handle.remove, *keys)
        gone = set(keys) & self.model.keys()
        self.check(got, len(gone), changed=bool(gone))
        self.drop(gone)

    def drop(self, gone: set[str]) -> None:
        for key in gone:
            del self.model[key]
            self.deadlines.pop(key, None)

    @rule(key=LETTERS, how=HOW)
    def pop(self, key: str, how: str) -> None:
        got, expected = self.call(how, self.handle.pop, key), self.model.get(key)
        self.check(got, expected, changed=expected is not None)
        self.drop({key} & self.model.keys())

    @rule(key=LETTERS, by=SMALL, how=HOW)
    def increment(self, key: str, by: int, how: str) -> None:
        got = self.call(how, self.handle.increment, key, by)
        if key not in self.model and len(self.model) == 4:
            self.check(got, CollectionFull, changed=False)
            return
        self.model[key] = self.model.get(key, 0) + by
        self.check(got, self.model[key], changed=True)

    @rule(key=LETTERS, mortal=st.booleans(), how=HOW)
    def expire_one(self, key: str, mortal: bool, how: str) -> None:
        is_there = key in self.model
        got = self.call("plain" if how == "repeated" else how, self.handle.expire, key, after=HOUR if mortal else None)
        self.check(got, is_there, changed=is_there)
        if is_there and mortal:
            self.deadlines[key] = self.world.now + 60
        elif is_there:
            self.deadlines.pop(key, None)

    @rule(data=st.data())
    @precondition(lambda self: self.deadlines.keys() & self.model.keys())
    def end_entry(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.deadlines.keys() & self.model.keys())))
        due = self.log.key("doc", self.declared.name, ".due")
        assert self.world.raw.zadd(due, {key: 1}, xx=True, ch=True) == 1
        self.store_header([one for one in self.header() if not one.startswith(b"next=")] + [b"next=1"])
        self.deadlines[key] = LONG_AGO
        self.on_time()

    @rule(key=LETTERS)
    def look(self, key: str) -> None:
        assert self.world.run(self.reading.get(key)) == self.model.get(key)
        assert self.world.run(self.reading.contains(key)) == (key in self.model)
        assert self.world.run(self.reading.size()) == len(self.model)


class SetMachine(CollectionMachine):
    declared = Set(str, name="model_set", limit=4, ttl=HOUR)

    def empty(self) -> None:
        self.model = set()

    def one_change(self) -> None:
        if not self.model:
            self.add(["a"], "plain")
        else:
            self.discard([min(self.model)], "plain")

    @rule(values=st.lists(LETTERS, min_size=1, max_size=3), how=HOW)
    def add(self, values: list[str], how: str) -> None:
        got = self.call(how, self.handle.add, *values)
        new = set(values) - self.model
        if new and len(self.model) + len(new) > 4:
            self.check(got, CollectionFull, changed=False)
            return
        self.model |= new
        self.check(got, len(new), changed=bool(new))

    @rule(values=st.lists(LETTERS, min_size=1, max_size=3), how=HOW)
    def discard(self, values: list[str], how: str) -> None:
        got = self.call(how, self.handle.discard, *values)
        gone = set(values) & self.model
        self.model -= gone
        self.check(got, len(gone), changed=bool(gone))

    @rule(values=st.lists(LETTERS, min_size=1, max_size=3))
    def look(self, values: list[str]) -> None:
        assert self.world.run(self.reading.contains_many(*values)) == [value in self.model for value in values]
        assert self.world.run(self.reading.size()) == len(self.model)


class SortedMachine(CollectionMachine):
    keep: ClassVar[str | None] = None
    declared = SortedSet(str, name="model_sorted", limit=4, ttl=HOUR)
    members = st.sampled_from("abcdef")
    numbers = st.sampled_from([0.0, 1.0, -1.0, 0.1, 2.5, 1e22, -1e-7, 3.0])

    def empty(self) -> None:
        self.model = {}

    def one_change(self) -> None:
        self.put({next(iter(self.model), "a"): 1.0}, "plain")

    def in_order(self) -> list[tuple[str, float]]:
        return sorted(self.model.items(), key=lambda pair: (pair[1], pair[0]))

    def held(self) -> dict[str, float]:
        return dict(self.in_order())

    def trim(self) -> None:
        while self.keep and len(self.model) > 4:
            del self.model[self.in_order()[0 if self.keep == "highest" else -1][0]]

    def is_full(self, members: set[str]) -> bool:
        new = members - self.model.keys()
        return not self.keep and bool(new) and len(self.model) + len(new) > 4

    @rule(values=st.dictionaries(members, numbers, min_size=1, max_size=6), how=HOW)
    def put(self, values: dict[str, float], how: str) -> None:
        got = self.call(how, self.handle.update, values)
        if self.is_full(set(values)):
            self.check(got, CollectionFull, changed=False)
            return
        new = len(values.keys() - self.model.keys())
        self.model |= values
        self.trim()
        self.check(got, new, changed=True)

    @rule(member=members, score=numbers, higher=st.booleans(), how=HOW)
    def better(self, member: str, score: float, higher: bool, how: str) -> None:
        got = self.call(how, self.handle.raise_to if higher else self.handle.lower_to, member, score)
        if self.is_full({member}):
            self.check(got, CollectionFull, changed=False)
            return
        before = self.model.get(member)
        changed = before is None or (score > before if higher else score < before)
        if changed:
            self.model[member] = score
            self.trim()
        self.check(got, None, changed=changed)

    @rule(member=members, by=numbers, how=HOW)
    def increment(self, member: str, by: float, how: str) -> None:
        got = self.call(how, self.handle.increment, member, by)
        if self.is_full({member}):
            self.check(got, CollectionFull, changed=False)
            return
        expected = self.model[member] = self.model.get(member, 0.0) + by
        self.trim()
        self.check(got, expected, changed=True)

    @rule(some=st.lists(members, min_size=1, max_size=3), how=HOW)
    def remove(self, some: list[str], how: str) -> None:
        got = self.call(how, self.handle.remove, *some)
        gone = set(some) & self.model.keys()
        for member in gone:
            del self.model[member]
        self.check(got, len(gone), changed=bool(gone))

    @rule(count=st.integers(1, 3), highest=st.booleans(), how=HOW)
    def pop(self, count: int, highest: bool, how: str) -> None:
        got = self.call(how, self.handle.pop_highest if highest else self.handle.pop_lowest, count)
        expected = (self.in_order()[::-1] if highest else self.in_order())[:count]
        for member, _ in expected:
            del self.model[member]
        self.check(got, expected, changed=bool(expected))

    @rule(start=st.integers(-5, 5), stop=st.integers(-5, 5) | st.none(), least=numbers, most=numbers, member=members)
    def look(self, start: int, stop: int | None, least: float, most: float, member: str) -> None:
        order = self.in_order()
        assert self.world.run(self.reading.range(start, stop)) == order[::-1][start:stop]
        assert self.world.run(self.reading.range(start, stop, highest_first=False)) == order[start:stop]
        between = [pair for pair in order if least <= pair[1] <= most]
        assert self.world.run(self.reading.between(least, most)) == between
        assert self.world.run(self.reading.count(least, most)) == len(between)
        ranks = {pair[0]: index for index, pair in enumerate(order[::-1])}
        assert self.world.run(self.reading.rank(member)) == ranks.get(member)
        assert self.world.run(self.reading.score(member)) == self.model.get(member)


class HighestMachine(SortedMachine):
    keep = "highest"
    declared = SortedSet(str, name="model_highest", limit=4, keep="highest", ttl=HOUR)


class LowestMachine(SortedMachine):
    keep = "lowest"
    declared = SortedSet(str, name="model_lowest", limit=4, keep="lowest", ttl=HOUR)


class CounterMachine(CollectionMachine):
    declared = Counter(name="model_counter", least=-5, most=20, ttl=HOUR)

    def empty(self) -> None:
        self.model = 0

    def read(self) -> Awaitable[Any]:
        return cast("Awaitable[Any]", self.reading.get())

    def one_change(self) -> None:
        self.change(True, 7, "plain")

    @rule(whole=st.booleans(), number=st.integers(-8, 25), how=HOW)
    def change(self, whole: bool, number: int, how: str) -> None:
        got = self.call(how, self.handle.set if whole else self.handle.add, number)
        wanted = number if whole else self.model + number
        if -5 <= wanted <= 20:
            self.model = wanted
            self.check(got, wanted, changed=True)
        else:
            self.check(got, OutOfBounds, changed=False)


class UniqueMachine(CollectionMachine):
    declared = UniqueCounter(str, name="model_unique", ttl=HOUR)

    def empty(self) -> None:
        self.model = set()

    def held(self) -> int:
        return len(self.model)  # exact for so few

    def read(self) -> Awaitable[Any]:
        return cast("Awaitable[Any]", self.reading.count())

    def one_change(self) -> None:
        self.add([f"new {len(self.model)}"], "plain")

    @rule(values=st.lists(LETTERS, min_size=1, max_size=3), how=HOW)
    def add(self, values: list[str], how: str) -> None:
        got, before = self.call(how, self.handle.add, *values), len(self.model)
        self.model |= set(values)
        self.check(got, len(self.model), changed=len(self.model) > before)


class QueueMachine(CollectionMachine):
    """The model: id -> [value, attempts, when it can be had again, or None: it waits]. `items` workers were given."""

    declared = WorkQueue(int, name="model_queue", limit=6, ttl=HOUR)
    items: list[Any]

    def __init__(self) -> None:
        self.items = []
        super().__init__()

    def empty(self) -> None:
        self.model = {}

    def read(self) -> Awaitable[Any]:
        async def size() -> int:
            waiting, leased = await self.reading.size()
            assert waiting == sum(until is None for _, _, until in self.model.values())
            return cast("int", waiting + leased)

        return size()

    def held(self) -> int:
        return len(self.model)

    def one_change(self) -> None:
        self.clear("plain")
        self.put([1], False, "plain")

    @rule(values=st.lists(SMALL, min_size=1, max_size=3), delayed=st.booleans(), how=HOW)
    def put(self, values: list[int], delayed: bool, how: str) -> None:
        got = self.call(how, self.handle.put, *values, delay=HOUR if delayed else timedelta())
        if len(self.model) + len(values) > 6:
            self.check(got, CollectionFull, changed=False)
            return
        assert isinstance(got, list)
        assert got == sorted(got)
        assert min(got) > max(self.model, default=0)
        for id_, value in zip(got, values, strict=True):
            self.model[id_] = [value, 0, self.world.now + 60 if delayed else None]
        self.check(len(got), len(values), changed=True)

    @rule(count=st.integers(1, 3), how=HOW)
    def claim(self, count: int, how: str) -> None:
        got = self.call("plain" if how == "repeated" else how, self.handle.claim_many, count, lease=HOUR / 6)
        for item in self.model.values():
            if item[2] is not None and item[2] <= self.world.now:
                item[2] = None
        expected = []
        for id_ in [id_ for id_ in sorted(self.model) if self.model[id_][2] is None][:count]:
            item = self.model[id_]
            item[1], item[2] = item[1] + 1, self.world.now + 10
            expected.append((id_, item[0], item[1]))
        self.items += got
        self.check([(item.id, item.value, item.attempt) for item in got], expected, changed=bool(expected))

    @rule(data=st.data(), how=st.sampled_from(["done", "release", "delay", "extend"]), reply=HOW)
    @precondition(lambda self: self.items)
    def settle(self, data: st.DataObject, how: str, reply: str) -> None:
        item = data.draw(st.sampled_from(self.items))
        verbs: dict[str, Callable[[], Awaitable[None]]] = {
            "done": item.done,
            "release": item.release,
            "delay": lambda: item.release(delay=HOUR),
            "extend": lambda: item.extend(HOUR),
        }
        got = self.call("plain" if reply == "repeated" else reply, verbs[how])
        held = self.model.get(item.id)
        if held is None or held[1] != item.attempt or held[2] is None:
            self.check(got, LeaseLost, changed=False)
            return
        if how == "done":
            del self.model[item.id]
        else:
            held[2] = None if how == "release" else self.world.now + 60
        self.check(got, None, changed=True)

    @rule()
    def end_leases(self) -> None:
        leased = self.log.key("doc", self.declared.name, ".leased")
        for id_, item in self.model.items():
            if item[2] is not None:
                assert self.world.raw.zadd(leased, {str(id_): 1}, xx=True, ch=True) in (0, 1)
                item[2] = LONG_AGO


MACHINES = [
    ListMachine,
    MapMachine,
    SetMachine,
    SortedMachine,
    HighestMachine,
    LowestMachine,
    CounterMachine,
    UniqueMachine,
    QueueMachine,
]


@pytest.mark.parametrize("machine", MACHINES)
def test_every_operation_does_what_the_model_does(machine: type[Machine], world: World) -> None:
    play(machine, world, examples=30)
