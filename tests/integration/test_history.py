"""Who changed what and when; how it was; taking back what one actor did."""

from __future__ import annotations

import asyncio
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

import omnistate
from omnistate import ABSENT, Client, FieldChange, History, migrate
from omnistate.store import Keyspace


class Order(omnistate.State, history=1000):
    lines: dict[str, int] = {}
    note: str = ""
    total: int = 0


class Brief(omnistate.State, history=History(changes=3)):
    number: int = 0


class Aged(omnistate.State, history=timedelta(hours=1)):
    number: int = 0


async def test_history_tells_who_changed_what_and_when(omni: Client) -> None:
    ana, agent = omni.customer("ana").via("web", actor="ana"), omni.customer("ana").via("desk", actor="maria")
    await ana.state(Order).put("lines", "cup", 2)
    await agent.state(Order).patch(note="fragile", total=10)
    await ana.state(Order).increment("total", by=5)
    await agent.state(Order).remove("lines", "cup")
    await ana.state(Order).update(lambda value: setattr(value, "note", "gift"))
    found = await ana.state(Order).history()
    assert [(one.channel, one.actor) for one in found] == [("web", "ana"), ("desk", "maria")] * 2 + [("web", "ana")]
    assert [one.changes for one in found] == [
        [FieldChange("note", None, "fragile", "gift")],
        [FieldChange("lines", "cup", 2, ABSENT)],
        [FieldChange("total", None, 10, 15)],
        [FieldChange("note", None, ABSENT, "fragile"), FieldChange("total", None, ABSENT, 10)],
        [FieldChange("lines", "cup", ABSENT, 2)],
    ]
    assert [one.version.offset for one in found] == [5, 4, 3, 2, 1]
    assert all(abs(datetime.now(UTC) - one.time) < timedelta(minutes=1) for one in found)
    assert await ana.state(Order).history(limit=2) == found[:2]
    assert await ana.state(Order).history(before=found[2].version) == found[3:]
    assert await ana.state(Order).history(before=found[0].time + timedelta(seconds=1)) == found
    assert await ana.state(Order).history(before=found[-1].time) == []
    for bad in ({"before": datetime.now()}, {"before": 5}, {"limit": 0}):  # noqa: DTZ005
        with pytest.raises(omnistate.InvalidInput):
            await ana.state(Order).history(**bad)  # type: ignore[arg-type]


async def test_an_actors_changes_since_a_time_are_taken_back(omni: Client) -> None:
    human, robot = omni.customer("ana").via("desk", actor="maria"), omni.customer("ana").via("ai", actor="gpt")
    await robot.state(Order).patch(note="earlier")
    (earlier,) = await human.state(Order).history()
    while datetime.now(UTC) < earlier.time + timedelta(milliseconds=5):
        await asyncio.sleep(0.001)
    await robot.state(Order).patch(note="later", total=3)
    undone = await human.state(Order).undo(actor="gpt", since=earlier.time + timedelta(milliseconds=2))
    assert len(undone.changes) == 2
    assert await human.state(Order).get() == Order(note="earlier")


async def test_a_document_is_seen_as_it_was(omni: Client, raw: Redis, tenant: str) -> None:
    order = omni.customer("ana").state(Order)
    moments, values = [await omni.customer("ana").position()], [Order()]
    for change in (
        order.put("lines", "cup", 2),
        order.patch(note="x"),
        order.set(Order(total=3)),
        order.increment("total", by=4),
        order.delete(),
        order.patch(note="again"),
    ):
        await change
        moments.append(await omni.customer("ana").position())
        values.append(await order.get())
    for moment, value in zip(moments, values, strict=True):
        assert (await order.at(moment)).value == value
    assert not (await order.at(moments[5])).exists
    assert await order.diff(moments[1], moments[4]) == [
        FieldChange("lines", "cup", 2, ABSENT), FieldChange("note", None, ABSENT, ""), FieldChange("total", None, ABSENT, 7)
    ]  # fmt: skip
    assert await order.diff(moments[6]) == []
    key = Keyspace(tenant).customer("ana").key("doc", "Order", ".history")
    for index, line in enumerate(raw.lrange(key, 0, -1)):  # one change a minute, the last one now
        head = line.split(b" ")
        head[5] = str(int(head[5]) - 60_000 * (5 - index)).encode()
        raw.lset(key, index, b" ".join(head))
    now = datetime.now(UTC)
    for index in range(1, 6):
        assert (await order.at(now - timedelta(seconds=60 * (6 - index) - 30))).value == values[index]
    with pytest.raises(omnistate.InvalidInput, match="time zone"):
        await order.at(datetime.now())  # noqa: DTZ005 - the mistake


async def test_the_past_ends_where_memory_ends_and_says_so(omni: Client, raw: Redis, tenant: str) -> None:
    ana = omni.customer("ana")
    positions = []
    for number in range(1, 7):
        await ana.state(Brief).patch(number=number)
        positions.append(await ana.position())
    assert [one.changes[0].after for one in await ana.state(Brief).history()] == [6, 5, 4]
    for position, number in zip(positions[2:], (3, 4, 5, 6), strict=True):
        assert (await ana.state(Brief).at(position)).value.number == number
    for position in (positions[1], omnistate.Position("beef", 1)):
        with pytest.raises(omnistate.PositionLost):
            await ana.state(Brief).at(position)
    with pytest.raises(omnistate.PositionLost):
        await ana.state(Aged).at(datetime.now(UTC) - timedelta(hours=2))
    with pytest.raises(omnistate.InvalidDeclaration, match="history="):
        await ana.state(Plain).history()


class Plain(omnistate.State, name="Order"):
    lines: dict[str, int] = {}
    note: str = ""
    total: int = 0


async def test_a_writer_that_remembers_nothing_breaks_the_chain_and_nothing_is_made_up(omni: Client) -> None:
    ana = omni.customer("ana")
    await ana.state(Order).patch(note="one")
    start = await ana.position()
    await ana.state(Plain).patch(note="two")  # a process of before history= was declared
    await ana.state(Order).patch(total=1)
    with pytest.raises(omnistate.PositionLost):
        await ana.state(Order).at(start)
    assert len(await ana.state(Order).history()) == 1


async def test_changes_older_than_the_age_go(omni: Client, raw: Redis, tenant: str) -> None:
    ana = omni.customer("ana")
    key = Keyspace(tenant).customer("ana").key("doc", "Aged", ".history")
    for number in range(4):
        await ana.state(Aged).patch(number=number)
    for index, line in enumerate(raw.lrange(key, 0, -1)):
        head = line.split(b" ")
        head[5] = str(int(head[5]) - 7_200_000).encode()
        raw.lset(key, index, b" ".join(head))
    await ana.state(Aged).patch(number=9)
    assert raw.llen(key) == 3
    await ana.state(Aged).patch(number=10)
    assert raw.llen(key) == 2
    assert 0 < raw.pttl(key) <= 3_600_000


async def test_what_one_actor_did_is_taken_back_and_others_work_stays(omni: Client) -> None:
    human, robot = omni.customer("ana").via("desk", actor="maria"), omni.customer("ana").via("ai", actor="gpt")
    await human.state(Order).set(Order(lines={"cup": 1, "pot": 1}, note="by maria", total=5))
    since = await human.position()
    await robot.state(Order).put("lines", "cup", 9)
    await robot.state(Order).put("lines", "pan", 3)
    await robot.state(Order).patch(note="by robot", total=7)
    await robot.state(Order).remove("lines", "pot")
    await human.state(Order).patch(total=8)
    await robot.state(Order).increment("lines", "cup")
    undone = await human.state(Order).undo(actor="gpt", since=since)
    assert await human.state(Order).get() == Order(lines={"cup": 1, "pot": 1}, note="by maria", total=8)
    assert undone.kept == [FieldChange("total", None, 5, 7)]
    assert undone.changes == [
        FieldChange("lines", "cup", 10, 1), FieldChange("lines", "pan", 3, ABSENT),
        FieldChange("lines", "pot", ABSENT, 1), FieldChange("note", None, "by robot", "by maria"),
    ]  # fmt: skip
    assert undone.version is not None
    assert (await human.state(Order).history())[0].actor == "maria"
    again = await human.state(Order).undo(actor="gpt", since=since)
    assert (again.version, again.changes) == (None, [])
    with pytest.raises(omnistate.InvalidInput, match="since"):
        await human.state(Order).undo(actor="gpt", since=5)  # type: ignore[arg-type]
    back = await human.state(Order).undo(
        actor="maria", since=undone.version.__class__(since.epoch, undone.version.offset - 1)
    )
    assert back.changes
    assert (await human.state(Order).get()).lines["cup"] == 10


async def test_a_document_that_an_actor_deleted_comes_back(omni: Client) -> None:
    human, robot = omni.customer("ana").via("desk", actor="maria"), omni.customer("ana").via("ai", actor="gpt")
    await human.state(Order).set(Order(lines={"cup": 1}, note="x"))
    since = await human.position()
    await robot.state(Order).delete()
    await human.state(Order).undo(actor="gpt", since=since)
    assert await human.state(Order).get() == Order(lines={"cup": 1}, note="x")


async def test_transactions_are_remembered_too(omni: Client) -> None:
    ana = omni.customer("ana").via("web", actor="ana")
    async with ana.transaction() as tx:
        tx.state(Order).patch(note="a")
        tx.state(Brief).increment("number")
    async with ana.transaction() as tx:
        tx.state(Order).delete()
    assert [one.deleted for one in await ana.state(Order).history()] == [True, False]
    assert (await ana.state(Brief).history())[0].changes == [FieldChange("number", None, ABSENT, 1)]


async def test_the_past_of_an_older_class_is_shown_as_the_present_one(omni: Client) -> None:
    class Newer(omnistate.State, name="Order", version=2, history=1000):
        lines: dict[str, int] = {}
        remark: str = ""
        total: int = 0

        @migrate(1, 2)
        def rename(fields: dict[str, Any]) -> None:  # noqa: N805
            fields["remark"] = fields.pop("note", "")

    ana = omni.customer("ana")
    await ana.state(Order).set(Order(note="one"))
    first = await ana.position()
    await ana.state(Order).patch(note="two")
    await ana.state(Newer).patch(remark="three")
    await ana.state(Newer).patch(total=1)
    assert [one.changes for one in await ana.state(Newer).history()][:3] == [
        [FieldChange("total", None, 0, 1)],
        [FieldChange("remark", None, "two", "three")],
        [FieldChange("remark", None, "one", "two")],
    ]
    assert (await ana.state(Newer).at(first)).value.remark == "one"


async def test_an_encrypted_past_stays_encrypted(connect: Any, raw: Redis, tenant: str) -> None:
    class Card(omnistate.State, encrypted=True, history=10):
        number: str = ""

    async with connect(keyring=omnistate.Keyring({"k": secrets.token_bytes(32)}, current="k")) as omni:
        card = omni.customer("ana").state(Card)
        for number in ("4111", "4242"):
            await card.patch(number=number)
        assert (await card.history())[0].changes == [FieldChange("number", None, "4111", "4242")]
        key = Keyspace(tenant).customer("ana").key("doc", "Card", ".history")
        assert b"4111" not in b"".join(raw.lrange(key, 0, -1))


async def test_a_merge_leaves_no_past_of_the_other_customer_behind(omni: Client, raw: Redis, tenant: str) -> None:
    await omni.customer("ben").state(Order).patch(note="secret of ben")
    await omni.customer("ana").merge(omni.customer("ben"))
    assert not raw.exists(Keyspace(tenant).customer("ben").key("doc", "Order", ".history"))


VALUES = st.fixed_dictionaries(
    {}, optional={"lines": st.dictionaries(st.sampled_from("abc"), st.integers(0, 3), max_size=3),
                  "note": st.sampled_from(["", "x", "y"]), "total": st.integers(0, 3)}
)  # fmt: skip
STEPS = st.lists(
    st.tuples(st.sampled_from(["set", "patch", "put", "remove", "increment", "update", "delete"]), VALUES), max_size=12
)


@settings(max_examples=30, deadline=None)
@given(STEPS)
def test_every_moment_of_any_past_is_seen_as_it_was(
    steps: list[tuple[str, dict[str, Any]]],
) -> None:
    import asyncio

    async def story() -> None:
        async with omnistate.connect(SERVER, tenant="t-" + secrets.token_hex(6)) as omni:
            order = omni.customer("ana").state(Order)
            seen = [(await omni.customer("ana").position(), await order.get())]
            for verb, fields in steps:
                await _do(order, verb, fields)
                seen.append((await omni.customer("ana").position(), await order.get()))
            for position, value in seen:
                assert (await order.at(position)).value == value

    asyncio.run(story())


async def _do(order: Any, verb: str, fields: dict[str, Any]) -> None:
    if verb == "set":
        await order.set(Order(**fields))
    elif verb == "patch":
        await order.patch(**{name: value for name, value in fields.items() if name != "lines"})
    elif verb == "put":
        await order.put("lines", "a", fields.get("total", 0))
    elif verb == "remove":
        await order.remove("lines", "a")
    elif verb == "increment":
        await order.increment("total")
    elif verb == "delete":
        await order.delete()
    else:
        await order.update(
            lambda value: [setattr(value, name, one) for name, one in msgspec.to_builtins(fields).items()]
        )


SERVER = ""


@pytest.fixture(autouse=True)
def server(valkey: Any) -> None:
    global SERVER  # noqa: PLW0603 - hypothesis takes no fixtures of a function
    SERVER = valkey.url


@pytest.mark.parametrize("damage", [b"", b"\xff", b"1 2 3", b"x" * 100])
async def test_a_damaged_past_is_a_mismatch_and_the_document_goes_on(
    omni: Client, raw: Redis, tenant: str, damage: bytes
) -> None:
    class Fragile(omnistate.State, history=10):
        note: str = ""

    ana, log = omni.customer("ana"), Keyspace(tenant).customer("ana")
    start = await ana.position()
    await ana.state(Fragile).patch(note="a")
    raw.lset(log.key("doc", "Fragile", ".history"), 0, damage)
    raw.lset(log.log, 0, damage)
    for ask in (ana.state(Fragile).history(), ana.state(Fragile).undo(actor="x", since=start)):
        with pytest.raises(omnistate.SchemaMismatch):
            await ask
    with pytest.raises(omnistate.SchemaMismatch, match="go on after it"):
        await anext(ana.events(after=start))
    await ana.state(Fragile).patch(note="b")
    assert (await ana.state(Fragile).get()).note == "b"
    raw.delete(log.key("doc", "Fragile", ".history"))
    raw.hset(log.key("doc", "Fragile"), "note", b'"cut')
    await ana.state(Fragile).patch(note="c")
    with pytest.raises(omnistate.SchemaMismatch, match="note"):
        await ana.state(Fragile).history()
