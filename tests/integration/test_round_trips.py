"""Every operation costs the round trips that its docstring says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

import omnistate
from omnistate import Client

LIST = omnistate.List(str, name="trips_list")
MAP = omnistate.Map(str, int, name="trips_map")
SET = omnistate.Set(str, name="trips_set")
SORTED = omnistate.SortedSet(str, name="trips_sorted")
COUNTER = omnistate.Counter(name="trips_counter")
UNIQUE = omnistate.UniqueCounter(str, name="trips_unique")
QUEUE = omnistate.WorkQueue(str, name="trips_queue")
HOUR = timedelta(hours=1)

Call = Callable[[Any], Awaitable[object]]
ONE: list[tuple[Any, list[Call]]] = [
    (LIST, [lambda c: c.append("a", "b"), lambda c: c.appendleft("c"), lambda c: c.get(0), lambda c: c.set(0, "x"),
            lambda c: c.slice(0, 2), lambda c: c.all(), lambda c: c.size(), lambda c: c.pop(), lambda c: c.popleft(),
            lambda c: c.pop_many(2), lambda c: c.popleft_many(2), lambda c: c.version(), lambda c: c.clear()]),
    (MAP, [lambda c: c.put("a", 1), lambda c: c.update({"b": 2, "c": 3}, ttl=HOUR), lambda c: c.add("d", 4),
           lambda c: c.increment("a"), lambda c: c.get("a"), lambda c: c.get_many("a", "b"), lambda c: c.contains("a"),
           lambda c: c.expire("a", after=HOUR), lambda c: c.remove("a"), lambda c: c.pop("b"), lambda c: c.size(),
           lambda c: c.all(), lambda c: c.clear()]),
    (SET, [lambda c: c.add("a", "b"), lambda c: c.contains("a"), lambda c: c.contains_many("a", "z"),
           lambda c: c.discard("a"), lambda c: c.size(), lambda c: c.all(), lambda c: c.clear()]),
    (SORTED, [lambda c: c.put("a", 1), lambda c: c.update({"b": 2}), lambda c: c.raise_to("a", 5),
              lambda c: c.lower_to("a", 2), lambda c: c.increment("a"), lambda c: c.score("a"), lambda c: c.scores("a", "b"),
              lambda c: c.rank("a"), lambda c: c.top(), lambda c: c.range(0, 2), lambda c: c.between(0, 9),
              lambda c: c.count(0, 9), lambda c: c.size(), lambda c: c.all(), lambda c: c.remove("a"),
              lambda c: c.pop_lowest(), lambda c: c.pop_highest(), lambda c: c.clear()]),
    (COUNTER, [lambda c: c.add(), lambda c: c.set(5), lambda c: c.get(), lambda c: c.clear()]),
    (UNIQUE, [lambda c: c.add("a"), lambda c: c.count(), lambda c: c.clear()]),
    (QUEUE, [lambda c: c.put("a", "b"), lambda c: c.claim(), lambda c: c.claim_many(5), lambda c: c.size(),
             lambda c: c.clear()]),
]  # fmt: skip


@pytest.mark.parametrize(("declared", "calls"), ONE, ids=[type(declared).__name__ for declared, _ in ONE])
async def test_each_operation_of_a_collection_is_one_round_trip(omni: Client, declared: Any, calls: list[Call]) -> None:
    collection = omni.customer("ana").collection(declared)
    link, trips = omni.services.link, []
    execute = link.execute

    async def counted(command: Any) -> Any:
        trips.append(command.function)
        return await execute(command)

    link.execute = counted  # type: ignore[method-assign]
    for call in calls:
        trips.clear()
        await call(collection)
        assert len(trips) == 1, trips


async def test_a_transaction_is_one_round_trip_and_one_for_each_reading(omni: Client) -> None:
    ana = omni.customer("ana")
    link, trips = omni.services.link, []
    execute = link.execute

    async def counted(command: Any) -> Any:
        trips.append(command.function)
        return await execute(command)

    link.execute = counted  # type: ignore[method-assign]
    async with ana.transaction() as tx:
        tx.collection(LIST).append("x")
        tx.collection(MAP).put("a", 1)
        await tx.get_all(COUNTER)
    assert trips == ["collection_read", "change"]


class Draft(omnistate.State, name="TripsDraft", ttl=HOUR):
    text: str = ""


OF_SESSION: dict[str, tuple[int, Callable[[omnistate.Customer, omnistate.Session], Awaitable[object]]]] = {
    "start": (1, lambda ana, _: ana.start_session("web", policy=omnistate.SessionPolicy(at_most=2))),
    "list": (1, lambda ana, _: ana.sessions()),
    "load": (1, lambda _, session: session.load()),
    "touch": (1, lambda _, session: session.touch()),
    "reauthenticated": (1, lambda _, session: session.reauthenticated()),
    "read": (1, lambda _, session: session.state(Draft).get()),
    "write": (1, lambda _, session: session.state(Draft).patch(text="x")),
    "rotate": (1, lambda _, session: session.rotate()),
    "go on": (3, lambda _, session: session.rotate(to="ben")),
    "revoke one": (1, lambda ana, session: ana.revoke_session(session.id)),
    "revoke all": (1, lambda ana, session: ana.revoke_sessions(keep=session)),
    "end": (1, lambda _, session: session.end()),
}


@pytest.mark.parametrize("verb", OF_SESSION)
async def test_what_is_done_with_a_session_costs_what_it_says(omni: Client, verb: str) -> None:
    ana, link = omni.customer("ana"), omni.services.link
    session, trips, execute = await ana.start_session("web"), list[str](), link.execute

    async def counted(command: Any, **options: Any) -> Any:
        trips.append(command.function)
        return await execute(command, **options)

    link.execute = counted  # type: ignore[method-assign]
    wanted, call = OF_SESSION[verb]
    await call(ana, session)
    assert len(trips) == wanted, trips
