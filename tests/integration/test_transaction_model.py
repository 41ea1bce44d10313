"""Random transactions over two states, a counter, a map and a work queue of a customer, against a plain model: see `model`."""

from __future__ import annotations

import copy
from typing import Any, cast

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

import omnistate
from model import HOUR, HOW, Machine, World, play
from omnistate import (
    ABSENT,
    AlreadyThere,
    CollectionFull,
    Conflict,
    Counter,
    LeaseLost,
    Map,
    OutOfBounds,
    Snapshot,
    WorkQueue,
)


class Trolley(omnistate.State):
    items: dict[str, int] = {}
    note: str = ""


class Purse(omnistate.State, name="ModelPurse", ttl=HOUR):
    balance: int = 0
    spent: dict[str, int] = {}


POINTS = Counter(name="model_points", least=0, most=20)
TAGS = Map(str, int, name="model_tags", limit=3)
JOBS: WorkQueue[int] = WorkQueue(int, name="model_jobs", limit=4)
LEASE = 20 * HOUR  # longer than the clock is stepped

KEYS = st.sampled_from(["cup", "pot", "a:b"])
SMALL = st.integers(-5, 9)
OF_BASKET = st.one_of(
    st.tuples(st.just("put"), KEYS, SMALL),
    st.tuples(st.just("remove"), KEYS),
    st.tuples(st.just("increment"), KEYS, SMALL),
    st.tuples(st.just("note"), st.sampled_from(["", "x", "y"])),
    st.tuples(st.just("set"), SMALL),
    st.tuples(st.just("delete")),
)
OF_PURSE = st.one_of(
    st.tuples(st.just("pay"), SMALL), st.tuples(st.just("spend"), KEYS, SMALL), st.tuples(st.just("burn"))
)
OF_OTHERS = {
    "points": st.integers(-8, 8),
    "tags": st.tuples(KEYS | st.sampled_from(["d", "e"]), SMALL, st.booleans()),
    "jobs": st.lists(SMALL, min_size=1, max_size=3),
    "done": st.integers(0, 3),
}
PLANS = st.fixed_dictionaries(
    {"basket": st.lists(OF_BASKET, max_size=4), "purse": st.lists(OF_PURSE, max_size=2)},
    optional={name: strategy for name, strategy in OF_OTHERS.items() if name != "done"},
) | st.fixed_dictionaries({"done": OF_OTHERS["done"], "basket": st.lists(OF_BASKET, max_size=2), "purse": st.just([])})
Plan = dict[str, Any]


class Held:
    """What the customer has; None for a document that is not there."""

    def __init__(self) -> None:
        self.basket: Trolley | None = None
        self.purse: Purse | None = None
        self.points = 0
        self.tags: dict[str, int] = {}
        self.jobs: dict[int, list[int]] = {}  # value, attempts, and whether it is leased


class Refused(Exception):
    def __init__(self, kind: type[Exception]) -> None:
        super().__init__(kind)
        self.kind = kind


def change_basket(held: Held, changes: list[Any]) -> None:
    is_deleted = False
    for name, *arguments in changes:
        if name == "delete":
            held.basket, is_deleted = None, True
        if name == "delete" or (name == "remove" and is_deleted and held.basket is None):
            continue
        basket = held.basket = held.basket or Trolley()
        match name:
            case "put":
                basket.items[arguments[0]] = arguments[1]
            case "remove":
                basket.items.pop(arguments[0], None)
            case "increment":
                basket.items[arguments[0]] = basket.items.get(arguments[0], 0) + arguments[1]
            case "note":
                basket.note = arguments[0]
            case "set":
                held.basket = Trolley(items={"cup": arguments[0]})


def change_purse(held: Held, changes: list[Any]) -> None:
    for name, *arguments in changes:
        if name == "burn":
            held.purse = None
            continue
        purse = held.purse = held.purse or Purse()
        if name == "pay":
            purse.balance -= arguments[0]
        else:
            purse.spent[arguments[0]] = purse.spent.get(arguments[0], 0) + arguments[1]


class TransactionMachine(Machine):
    """`held` is what readers see; `hidden` is a purse that has ended without an event."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.deadline, self.hidden = Held(), 0.0, cast("Purse | None", None)
        self.items: list[Any] = []
        self.snapshots: list[Snapshot[Any]] = []
        self.other = self.world.other.customer(self.name)
        reader = self.reader
        self.readings = [reader.state(Trolley), reader.state(Purse), reader.collection(POINTS), reader.collection(TAGS)]
        self.followed = [self.follow(one.watch()) for one in self.readings]

    def on_time(self) -> None:
        if self.held.purse is not None and self.deadline <= self.world.now:
            self.held.purse, self.hidden = None, self.held.purse
        elif self.hidden is not None and self.deadline > self.world.now:
            self.held.purse, self.hidden = self.hidden, None

    def swept(self) -> int:
        ended, self.hidden = self.hidden, None
        return int(ended is not None)

    def agree(self) -> None:
        held, run = self.held, self.world.run
        for handle, expected in ((self.readings[0], held.basket), (self.readings[1], held.purse)):
            read = run(cast("Any", handle).read())
            assert (read.exists, read.value) == (expected is not None, expected or type(read.value)())
        assert run(self.reader.collection(POINTS).get()) == held.points
        assert run(self.reader.collection(TAGS).all()) == held.tags
        leased = sum(job[2] for job in held.jobs.values())
        assert run(self.reader.collection(JOBS).size()) == (len(held.jobs) - leased, leased)

    def finish(self) -> None:
        self.transact({"basket": [], "purse": [("pay", 1)]}, "plain", reads=False, fails=False)
        self.agree()
        values = [self.held.basket or Trolley(), self.held.purse, self.held.points, self.held.tags]
        for follower, handle, value in zip(self.followed, self.readings, values, strict=True):
            version = self.world.run(cast("Any", handle).version()) if handle in self.readings[2:] else None
            if version is None:
                version = self.world.run(cast("Any", handle).read()).version
            follower.check(version, value)

    # What a transaction is to do, in the model and in the store.

    def applied(self, plan: Plan) -> tuple[Held, Any]:
        """What there is afterwards, and how many events there are; raises `Refused`."""
        after, events = copy.deepcopy(self.held), 0
        change_basket(after, plan["basket"])
        change_purse(after, plan["purse"])
        for changes, before, now in (
            (plan["basket"], self.held.basket, after.basket),
            (plan["purse"], self.held.purse, after.purse),
        ):
            events += bool(changes) and (before is not None or now is not None)
        events += bool(plan["purse"]) and self.hidden is not None and after.purse is not None
        if "points" in plan:
            after.points += plan["points"]
            if not 0 <= after.points <= 20:
                raise Refused(OutOfBounds)
            events += 1
        if "tags" in plan:
            key, number, is_new = plan["tags"]
            if is_new and key in after.tags:
                raise Refused(AlreadyThere)
            if key not in after.tags and len(after.tags) == 3:
                raise Refused(CollectionFull)
            after.tags[key] = number
            events += 1
        if "jobs" in plan:
            if len(after.jobs) + len(plan["jobs"]) > 4:
                raise Refused(CollectionFull)
            events += 1
        if "done" in plan:
            item = plan["done"]
            job = after.jobs.get(item.id)
            if job is None or job[1:] != [item.attempt, True]:
                raise Refused(LeaseLost)
            del after.jobs[item.id]
            events += 1
        return after, events

    async def run_plan(self, plan: Plan, *, fails: bool, operation_id: str | None = None, **more: Any) -> Any:
        """The ids of new jobs and the sum of the points, which are the same when it is repeated."""
        points = jobs = None
        async with self.customer.transaction(operation_id=operation_id) as tx:
            await self.note_expectations(tx, **more)
            for name, *arguments in plan["basket"]:
                note_basket(tx.state(Trolley), name, arguments)
            for name, *arguments in plan["purse"]:
                purse = tx.state(Purse)
                match name:
                    case "pay":
                        purse.increment("balance", by=-arguments[0])
                    case "spend":
                        purse.increment("spent", arguments[0], by=arguments[1])
                    case "burn":
                        purse.delete()
            if "points" in plan:
                points = tx.collection(POINTS).add(plan["points"])
            if "tags" in plan:
                key, number, is_new = plan["tags"]
                tags = tx.collection(TAGS)
                _ = tags.add(key, number) if is_new else tags.put(key, number)
            if "jobs" in plan:
                jobs = tx.collection(JOBS).put(*plan["jobs"])
            if "done" in plan:
                _ = tx.collection(JOBS).done(plan["done"])
            if fails:
                raise ZeroDivisionError
        return (points and await points), (jobs and await jobs)

    async def note_expectations(
        self, tx: Any, reads: bool = False, mutates: str = "", interferes: bool = False, expects: Any = None
    ) -> None:
        if reads:
            basket = await tx.get(Trolley)
            if mutates:
                basket.items[mutates] = basket.items.get(mutates, 0) + 1
            await tx.get(Purse)
        if expects is not None:
            tx.state(Trolley).expect(expects)
        if interferes:
            await self.other.state(Trolley).increment("items", "cup")

    def transact(self, plan: Plan, how: str, *, fails: bool, reads: bool, mutates: str = "", **more: Any) -> None:
        """A transaction of which nothing that it rests on is changed."""
        before = self.offset()
        if mutates:
            more["mutates"] = mutates
        try:
            after, events = self.applied(plan | {"basket": [("increment", mutates, 1)]} if mutates else plan)
        except Refused as refused:
            got = self.attempt(how, plan, fails=fails, reads=reads, **more)
            assert got is (ZeroDivisionError if fails else refused.kind)
            assert self.offset() == before
            return
        got = self.attempt(how, plan, fails=fails, reads=reads, **more)
        if fails:
            assert got is ZeroDivisionError
            assert self.offset() == before
            return
        points, jobs = got
        assert points == (after.points if "points" in plan else None)
        for id_, value in zip(jobs or [], plan.get("jobs", []), strict=True):
            assert id_ not in after.jobs
            after.jobs[id_] = [value, 0, False]
        self.held = after
        if plan["purse"] and after.purse is not None:
            self.deadline, self.hidden = self.world.now + 60, None
        assert self.offset() == before + events

    def attempt(self, how: str, plan: Plan, **more: Any) -> Any:
        async def one(operation_id: str | None = None) -> Any:
            try:
                return await self.run_plan(plan, operation_id=operation_id, **more)
            except ZeroDivisionError:
                return ZeroDivisionError

        return self.call(how, one)

    # What is done.

    @rule(plan=PLANS, fails=st.sampled_from([False] * 5 + [True]), how=HOW)
    def transaction(self, plan: Plan, fails: bool, how: str) -> None:
        chosen = plan.pop("done", None)
        if chosen is not None and self.items:
            plan["done"] = self.items[chosen % len(self.items)]
        self.transact(plan, how, fails=fails, reads=False)

    @rule(plan=PLANS, mutates=KEYS | st.just(""), fails=st.sampled_from([False] * 5 + [True]), how=HOW)
    def transaction_that_reads(self, plan: Plan, mutates: str, fails: bool, how: str) -> None:
        plan.pop("done", None)
        if mutates:
            plan["basket"] = []
        self.transact(plan, how, fails=fails, reads=True, mutates=mutates)

    @rule(plan=PLANS)
    def transaction_that_is_disturbed(self, plan: Plan) -> None:
        """What was read is changed by another writer before the end of the block."""
        plan.pop("done", None)
        before = self.offset()
        got = self.attempt("plain", plan, fails=False, reads=True, interferes=True)
        assert got is Conflict
        assert self.offset() == before + 1
        change_basket(self.held, [("increment", "cup", 1)])

    @rule()
    def look(self) -> None:
        self.snapshots.append(self.world.run(self.other.state(Trolley).read()))

    @rule(data=st.data(), plan=PLANS, absent=st.booleans(), how=HOW)
    @precondition(lambda self: self.snapshots)
    def transaction_that_expects(self, data: st.DataObject, plan: Plan, absent: bool, how: str) -> None:
        plan.pop("done", None)
        expects = ABSENT if absent else data.draw(st.sampled_from(self.snapshots))
        now = self.world.run(self.readings[0].read()).version  # type: ignore[union-attr]
        if now == (0 if absent else cast("Snapshot[Any]", expects).version):
            self.transact(plan, how, fails=False, reads=False, expects=expects)
            return
        before = self.offset()
        assert self.attempt(how, plan, fails=False, reads=False, expects=expects) is Conflict
        assert self.offset() == before

    @rule(key=KEYS, by=SMALL, how=st.sampled_from(["plain", "lost", "killed"]))
    def update_of_both(self, key: str, by: int, how: str) -> None:
        def move(basket: Trolley, purse: Purse) -> None:
            basket.items[key] = basket.items.get(key, 0) + 1
            purse.balance -= by

        before, hidden = self.offset(), self.hidden is not None
        self.call(how, self.customer.update, move, Trolley, Purse)
        change_basket(self.held, [("increment", key, 1)])
        if by:
            change_purse(self.held, [("pay", by)])
            self.deadline, self.hidden = self.world.now + 60, None
        assert self.offset() == before + 1 + (1 + hidden if by else 0)

    @rule(count=st.integers(1, 3), how=st.sampled_from(["plain", "lost", "killed"]))
    def claim(self, count: int, how: str) -> None:
        items = self.call(how, self.other.collection(JOBS).claim_many, count, lease=LEASE)
        expected = [id_ for id_, job in sorted(self.held.jobs.items()) if not job[2]][:count]
        assert [item.id for item in items] == expected
        for item in items:
            job = self.held.jobs[item.id]
            job[1:] = [job[1] + 1, True]
            assert item.attempt == job[1]
        self.items += items


def note_basket(basket: Any, name: str, arguments: list[Any]) -> None:
    match name:
        case "set":
            basket.set(Trolley(items={"cup": arguments[0]}))
        case "note":
            basket.patch(note=arguments[0])
        case "delete":
            basket.delete()
        case _:
            if name == "increment":
                basket.increment("items", arguments[0], by=arguments[1])
            else:
                getattr(basket, name)("items", *arguments)


def test_every_transaction_does_what_the_model_does(world: World) -> None:
    play(TransactionMachine, world, examples=50)
