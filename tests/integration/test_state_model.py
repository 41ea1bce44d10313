"""Random operations on a document by two clients, each with its own memory of it, against a plain model: see `model`."""

from __future__ import annotations

import asyncio
import copy
import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

import omnistate
from model import HOUR, HOW, Machine, World, play
from omnistate import Conflict, InvalidValue, Snapshot, StateHandle

TEN_MINUTES = HOUR / 6
MOST = 2**53 - 1
KEYS = st.sampled_from(["cup"] * 24 + ["a:b", "é☃", "", " ", "x" * 200, '"', "\n", "{}"])
FEW = st.sampled_from(["cup", "a:b", ""])
TEXTS = st.sampled_from(["", "x", '"', "\\", "\x00", "é☃\U0001f600", "[]", "null", "1", "x" * 3000])
LOOSE = TEXTS | st.sampled_from([1, True, 1.0, None, [], {}, [1], [True], {"a": []}])
NUMBERS = st.sampled_from([0, 1, -1, 2**31, MOST, -MOST])
FLAGS = st.sampled_from([None, True, False])
ENDS = st.sampled_from([None, None, 10, 60])  # minutes
SINGLE = st.sampled_from(["plain"] * 6 + ["lost", "killed"])  # of verbs that take no operation id


class Exact(omnistate.State, ttl=HOUR, lifetime=7 * HOUR / 6):
    """Compared by value."""

    items: dict[str, int] = {}
    texts: dict[str, str | None] = {}
    note: str = ""
    count: int = 0
    flag: bool | None = None


class Loose(omnistate.State, ttl=HOUR, lifetime=7 * HOUR / 6):
    """Compared as JSON."""

    items: dict[str, int] = {}
    texts: dict[str, Any] = {}
    note: str = ""
    count: int = 0
    flag: Any = None


Name = tuple[str, str | None]  # a field, or a field and the key of an entry


def assign(value: Any, field: str, key: str, new: Any) -> None:
    getattr(value, field)[key] = new


def change_of(name: str, key: str, number: int, text: Any) -> Callable[[Any], object]:
    """Doing it twice is doing it once."""
    changes: dict[str, Callable[[Any], object]] = {
        "set item": lambda value: value.items.update({key: number}),
        "drop item": lambda value: value.items.pop(key, None),
        "set text": lambda value: value.texts.update({key: text}),
        "clear texts": lambda value: value.texts.clear(),
        "set note": lambda value: setattr(value, "note", str(text)),
        "new items": lambda value: setattr(value, "items", {}),
        "no flag": lambda value: setattr(value, "flag", None),
    }
    return changes[name]


CHANGES = st.tuples(
    st.sampled_from(["set item", "drop item", "set text", "clear texts", "set note", "new items", "no flag"]),
    KEYS,
    NUMBERS,
    LOOSE,
)


def flat_of(value: Any) -> dict[Name, bytes]:
    """1, 1.0 and True are told apart; the order of a mapping's entries does not matter."""
    flat: dict[Name, Any] = {(name, None): getattr(value, name) for name in ("note", "count", "flag")}
    for field in ("items", "texts"):
        flat |= {(field, key): one for key, one in getattr(value, field).items()}
    return {name: msgspec.json.encode(one) for name, one in flat.items()}


class DocumentMachine(Machine):
    """`value` is what a reader sees; `ended` holds entries that have ended without an event, `hidden` all of it."""

    kind: ClassVar[type[Any]]

    def __init__(self) -> None:
        super().__init__()
        self.exists, self.version, self.born, self.deadline = False, 0, 0.0, 0.0
        self.hidden: tuple[Any, ...] | None = None
        self.empty()
        customers = self.customer, self.world.other.customer(self.name)
        self.handles: list[StateHandle[Any]] = [customer.state(self.kind) for customer in customers]
        self.reading: StateHandle[Any] = self.reader.state(self.kind)
        self.snapshots: list[Snapshot[Any]] = []
        self.follower = self.follow(self.reading.watch())

    def empty(self) -> None:
        self.value = self.kind()
        self.deadlines: dict[Name, float] = {}
        self.ended: dict[Name, Any] = {}

    def text(self, text: Any) -> Any:
        return text if self.kind is Loose else str(text)

    # What the model does.

    def written(self, version: Any) -> None:
        """A write succeeded: what has ended without an event is over for good, and what is there lives on."""
        assert version.offset > self.highest
        self.end_entries()
        if not self.exists:
            self.born = self.world.now
        self.exists, self.hidden, self.version = True, None, version.offset
        self.deadline = min(self.world.now + 60, self.born + 70)

    def end_entries(self) -> bool:
        gone, self.ended = self.ended, {}
        for name in gone:
            del self.deadlines[name]
        return bool(gone)

    def set_deadline(self, name: Name, minutes: int | None) -> None:
        if minutes is not None:
            self.deadlines[name] = self.world.now + minutes

    def keep_deadlines(self) -> None:
        """Deadlines go with their entries."""
        held = flat_of(self.value).keys() | self.ended.keys()
        self.deadlines = {name: deadline for name, deadline in self.deadlines.items() if name in held}

    def take(self, name: Name) -> Any:
        field, key = name
        if key is not None:
            return getattr(self.value, field).pop(key)
        old = getattr(self.value, field)
        setattr(self.value, field, getattr(self.kind(), field))
        return old

    def give(self, name: Name, one: Any) -> None:
        field, key = name
        if key is not None:
            getattr(self.value, field)[key] = one
        else:
            setattr(self.value, field, one)

    def on_time(self) -> None:
        now = self.world.now
        if self.exists and self.deadline <= now:
            self.hidden = self.value, self.deadlines, self.ended
            self.exists = False
            self.empty()
        elif self.hidden is not None and self.deadline > now:
            (self.value, self.deadlines, self.ended), self.exists, self.hidden = self.hidden, True, None
        for name, deadline in self.deadlines.items():
            if deadline <= now and name not in self.ended:
                self.ended[name] = self.take(name)
            elif deadline > now and name in self.ended:
                self.give(name, self.ended.pop(name))

    def swept(self) -> int:
        if self.hidden is not None:
            self.hidden = None
            return 1
        if not self.exists or not self.end_entries():
            return 0
        self.version = self.offset()
        return 1

    def agree(self) -> None:
        read = self.world.run(self.reading.read())
        assert flat_of(read.value) == flat_of(self.value)
        assert (read.exists, read.version) == (self.exists, self.version if self.exists else 0)

    def finish(self) -> None:
        self.patch("the end", None, True, "plain")
        self.follower.check(self.version, self.value)

    # What is done.

    @rule(key=KEYS, number=NUMBERS, minutes=ENDS, first=st.booleans(), how=SINGLE)
    def put(self, key: str, number: int, minutes: int | None, first: bool, how: str) -> None:
        self.put_one("items", key, number, minutes, first, how)

    @rule(key=FEW, text=LOOSE, minutes=ENDS, first=st.booleans(), how=SINGLE)
    def put_text(self, key: str, text: Any, minutes: int | None, first: bool, how: str) -> None:
        self.put_one("texts", key, self.text(text), minutes, first, how)

    def put_one(self, field: str, key: str, new: Any, minutes: int | None, first: bool, how: str) -> None:
        ttl = None if minutes is None else timedelta(minutes=minutes)
        self.written(self.call(how, self.handles[first].put, field, key, new, ttl=ttl))
        getattr(self.value, field)[key] = new
        self.set_deadline((field, key), minutes)

    @rule(key=KEYS, first=st.booleans(), how=SINGLE)
    def remove(self, key: str, first: bool, how: str) -> None:
        self.written(self.call(how, self.handles[first].remove, "items", key))
        self.value.items.pop(key, None)
        self.keep_deadlines()

    @rule(note=TEXTS, flag=FLAGS, first=st.booleans(), how=SINGLE)
    def patch(self, note: str, flag: Any, first: bool, how: str) -> None:
        self.written(self.call(how, self.handles[first].patch, note=note, flag=flag))
        self.value.note, self.value.flag = note, flag

    @rule(text=TEXTS, first=st.booleans())
    def patch_for_a_time(self, text: str, first: bool) -> None:
        self.patch(text, None, first, "plain")
        self.is_right()
        self.written(self.call("plain", self.handles[first].expire, "note", after=TEN_MINUTES))
        self.set_deadline(("note", None), 10)

    @rule(key=KEYS, minutes=ENDS, first=st.booleans(), how=SINGLE)
    def expire(self, key: str, minutes: int | None, first: bool, how: str) -> None:
        after = None if minutes is None else timedelta(minutes=minutes)
        got = self.call(how, self.handles[first].expire, "items", key, after=after)
        if not self.exists:
            assert got is None
            return
        self.written(got)
        if minutes is None:
            self.deadlines.pop(("items", key), None)
        elif key in self.value.items:
            self.set_deadline(("items", key), minutes)

    @rule(key=KEYS, by=st.sampled_from([1, -1, 7]), first=st.booleans(), how=HOW)
    def increment(self, key: str, by: int, first: bool, how: str) -> None:
        got = self.call(how, self.handles[first].increment, "items", key, by=by)
        wanted = self.value.items.get(key, 0) + by
        if abs(wanted) > MOST:
            assert got is InvalidValue
            return
        assert got == wanted
        self.written(self.world.run(self.reader.position()))
        self.value.items[key] = wanted

    @rule(first=st.booleans(), how=HOW)
    def count(self, first: bool, how: str) -> None:
        got = self.call(how, self.handles[first].increment, "count", by=3)
        assert got == self.value.count + 3
        self.written(self.world.run(self.reader.position()))
        self.value.count += 3

    @rule(
        changes=st.lists(CHANGES, max_size=3),
        writers=st.sampled_from([1, 1, 3]),
        first=st.booleans(),
        how=SINGLE,
    )
    def update(self, changes: list[Any], writers: int, first: bool, how: str) -> None:
        def apply(value: Any) -> None:
            for name, key, number, text in changes:
                change_of(name, key, number, self.text(text))(value)

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*(self.handles[first].update(apply) for _ in range(writers)))

        self.updated(apply, self.call(how, all_of_them))

    def updated(self, change: Callable[[Any], object], done: list[Any]) -> None:
        after = copy.deepcopy(self.value)
        change(after)
        if flat_of(after) == flat_of(self.value):
            assert self.offset() == self.highest
        else:
            self.written(max((one.position for one in done), key=lambda position: position.offset))
            self.value = after
            self.keep_deadlines()
        for one in done:
            assert flat_of(one.value) == flat_of(self.value)

    @rule(key=KEYS, number=NUMBERS, first=st.booleans(), how=SINGLE)
    def update_once(self, key: str, number: int, first: bool, how: str) -> None:
        id_, update_once = f"op-{next(self.ids)}", self.handles[first].update_once

        async def repeat() -> tuple[bool, bool]:
            again, now = await update_once(id_, assign, "items", key, number), await self.handles[first].read()
            return again.repeated, (again.version, again.value) == (now.version, now.value)

        done = self.call(how, update_once, id_, assign, "items", key, number)
        assert not done.repeated or how in ("lost", "killed")
        if self.offset() > self.highest:
            self.remember(repeat, (True, True))
        change = functools.partial(assign, field="items", key=key, new=number)
        self.updated(change, [done])

    @rule(key=KEYS, text=LOOSE, first=st.booleans(), how=HOW)
    def set(self, key: str, text: Any, first: bool, how: str) -> None:
        value = self.kind(items={key: 1}, texts={key: self.text(text)})
        self.written(self.call(how, self.handles[first].set, value))
        self.value, self.deadlines = copy.deepcopy(value), {}

    @rule(first=st.booleans(), how=HOW)
    def delete(self, first: bool, how: str) -> None:
        assert self.call(how, self.handles[first].delete) == self.exists
        self.deleted()

    def deleted(self) -> None:
        if self.exists:
            self.exists = False
            self.empty()

    @rule(first=st.booleans())
    def look(self, first: bool) -> None:
        self.snapshots.append(self.world.run(self.handles[first].read()))

    @rule(data=st.data(), text=TEXTS, deletes=st.booleans(), first=st.booleans(), how=SINGLE)
    @precondition(lambda self: self.snapshots)
    def write_what_rests_on_a_snapshot(
        self, data: st.DataObject, text: str, deletes: bool, first: bool, how: str
    ) -> None:
        snapshot, handle = data.draw(st.sampled_from(self.snapshots)), self.handles[first]
        is_fresh = snapshot.version == (self.version if self.exists else 0)
        if deletes:
            got = self.call(how, handle.delete, expect=snapshot)
            assert got == (self.exists if is_fresh else Conflict)
            if is_fresh:
                self.deleted()
            return
        value = self.kind(note=text)
        got = self.call(how, handle.set, value, expect=snapshot)
        if not is_fresh:
            assert got is Conflict
            return
        self.written(got)
        self.value, self.deadlines = value, {}

    @rule(first=st.booleans())
    def fail(self, first: bool) -> None:
        def spoil(value: Any) -> None:
            value.items["spoiled"] = 1
            value.note = 7

        assert self.call("plain", self.handles[first].update, spoil) is InvalidValue


@pytest.mark.parametrize("kind", [Exact, Loose])
def test_every_write_does_what_the_model_does(kind: type[Any], world: World) -> None:
    play(DocumentMachine, world, examples=50, kind=kind)
