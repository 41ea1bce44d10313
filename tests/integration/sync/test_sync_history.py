"""Who changed what and when; how it was; taking back what one actor did."""

# Written by tools/unasync.py from tests/integration/test_history.py: change that one.

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st
from redis import Redis

import omnistate.sync as omnistate
from omnistate.store import Keyspace
from omnistate.sync import ABSENT, Client, FieldChange, History, migrate


class Order(omnistate.State, history=1000):
    lines: dict[str, int] = {}
    note: str = ""
    total: int = 0


class Brief(omnistate.State, history=History(changes=3)):
    number: int = 0


class Aged(omnistate.State, history=timedelta(hours=1)):
    number: int = 0


def test_history_tells_who_changed_what_and_when(omni: Client) -> None:
    ana, agent = omni.customer("ana").via("web", actor="ana"), omni.customer("ana").via("desk", actor="maria")
    ana.state(Order).put("lines", "cup", 2)
    agent.state(Order).patch(note="fragile", total=10)
    ana.state(Order).increment("total", by=5)
    agent.state(Order).remove("lines", "cup")
    ana.state(Order).update(lambda value: setattr(value, "note", "gift"))
    found = ana.state(Order).history()
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
    assert ana.state(Order).history(limit=2) == found[:2]
    assert ana.state(Order).history(before=found[2].version) == found[3:]
    assert ana.state(Order).history(before=found[0].time + timedelta(seconds=1)) == found
    assert ana.state(Order).history(before=found[-1].time) == []
    for bad in ({"before": datetime.now()}, {"before": 5}, {"limit": 0}):  # noqa: DTZ005
        with pytest.raises(omnistate.InvalidInput):
            ana.state(Order).history(**bad)  # type: ignore[arg-type]


def test_the_past_ends_where_memory_ends_and_says_so(omni: Client, raw: Redis, tenant: str) -> None:
    ana = omni.customer("ana")
    positions = []
    for number in range(1, 7):
        ana.state(Brief).patch(number=number)
        positions.append(ana.position())
    assert [one.changes[0].after for one in ana.state(Brief).history()] == [6, 5, 4]
    for position, number in zip(positions[2:], (3, 4, 5, 6), strict=True):
        assert (ana.state(Brief).at(position)).value.number == number
    for position in (positions[1], omnistate.Position("beef", 1)):
        with pytest.raises(omnistate.PositionLost):
            ana.state(Brief).at(position)
    with pytest.raises(omnistate.PositionLost):
        ana.state(Aged).at(datetime.now(UTC) - timedelta(hours=2))
    with pytest.raises(omnistate.InvalidDeclaration, match="history="):
        ana.state(Plain).history()


class Plain(omnistate.State, name="Order"):
    lines: dict[str, int] = {}
    note: str = ""
    total: int = 0


def test_a_writer_that_remembers_nothing_breaks_the_chain_and_nothing_is_made_up(omni: Client) -> None:
    ana = omni.customer("ana")
    ana.state(Order).patch(note="one")
    start = ana.position()
    ana.state(Plain).patch(note="two")  # a process of before history= was declared
    ana.state(Order).patch(total=1)
    with pytest.raises(omnistate.PositionLost):
        ana.state(Order).at(start)
    assert len(ana.state(Order).history()) == 1


def test_changes_older_than_the_age_go(omni: Client, raw: Redis, tenant: str) -> None:
    ana = omni.customer("ana")
    key = Keyspace(tenant).customer("ana").key("doc", "Aged", ".history")
    for number in range(4):
        ana.state(Aged).patch(number=number)
    for index, line in enumerate(raw.lrange(key, 0, -1)):
        head = line.split(b" ")
        head[5] = str(int(head[5]) - 7_200_000).encode()
        raw.lset(key, index, b" ".join(head))
    ana.state(Aged).patch(number=9)
    assert raw.llen(key) == 3
    ana.state(Aged).patch(number=10)
    assert raw.llen(key) == 2
    assert 0 < raw.pttl(key) <= 3_600_000


def test_what_one_actor_did_is_taken_back_and_others_work_stays(omni: Client) -> None:
    human, robot = omni.customer("ana").via("desk", actor="maria"), omni.customer("ana").via("ai", actor="gpt")
    human.state(Order).set(Order(lines={"cup": 1, "pot": 1}, note="by maria", total=5))
    since = human.position()
    robot.state(Order).put("lines", "cup", 9)
    robot.state(Order).put("lines", "pan", 3)
    robot.state(Order).patch(note="by robot", total=7)
    robot.state(Order).remove("lines", "pot")
    human.state(Order).patch(total=8)
    robot.state(Order).increment("lines", "cup")
    undone = human.state(Order).undo(actor="gpt", since=since)
    assert human.state(Order).get() == Order(lines={"cup": 1, "pot": 1}, note="by maria", total=8)
    assert undone.kept == [FieldChange("total", None, 5, 7)]
    assert undone.changes == [
        FieldChange("lines", "cup", 10, 1), FieldChange("lines", "pan", 3, ABSENT),
        FieldChange("lines", "pot", ABSENT, 1), FieldChange("note", None, "by robot", "by maria"),
    ]  # fmt: skip
    assert undone.version is not None
    assert (human.state(Order).history())[0].actor == "maria"
    again = human.state(Order).undo(actor="gpt", since=since)
    assert (again.version, again.changes) == (None, [])
    with pytest.raises(omnistate.InvalidInput, match="since"):
        human.state(Order).undo(actor="gpt", since=5)  # type: ignore[arg-type]
    back = human.state(Order).undo(
        actor="maria", since=undone.version.__class__(since.epoch, undone.version.offset - 1)
    )
    assert back.changes
    assert (human.state(Order).get()).lines["cup"] == 10


def test_a_document_that_an_actor_deleted_comes_back(omni: Client) -> None:
    human, robot = omni.customer("ana").via("desk", actor="maria"), omni.customer("ana").via("ai", actor="gpt")
    human.state(Order).set(Order(lines={"cup": 1}, note="x"))
    since = human.position()
    robot.state(Order).delete()
    human.state(Order).undo(actor="gpt", since=since)
    assert human.state(Order).get() == Order(lines={"cup": 1}, note="x")


def test_transactions_are_remembered_too(omni: Client) -> None:
    ana = omni.customer("ana").via("web", actor="ana")
    with ana.transaction() as tx:
        tx.state(Order).patch(note="a")
        tx.state(Brief).increment("number")
    with ana.transaction() as tx:
        tx.state(Order).delete()
    assert [one.deleted for one in ana.state(Order).history()] == [True, False]
    assert (ana.state(Brief).history())[0].changes == [FieldChange("number", None, ABSENT, 1)]


def test_the_past_of_an_older_class_is_shown_as_the_present_one(omni: Client) -> None:
    class Newer(omnistate.State, name="Order", version=2, history=1000):
        lines: dict[str, int] = {}
        remark: str = ""
        total: int = 0

        @migrate(1, 2)
        def rename(fields: dict[str, Any]) -> None:  # noqa: N805
            fields["remark"] = fields.pop("note", "")

    ana = omni.customer("ana")
    ana.state(Order).set(Order(note="one"))
    first = ana.position()
    ana.state(Order).patch(note="two")
    ana.state(Newer).patch(remark="three")
    ana.state(Newer).patch(total=1)
    assert [one.changes for one in ana.state(Newer).history()][:3] == [
        [FieldChange("total", None, 0, 1)],
        [FieldChange("remark", None, "two", "three")],
        [FieldChange("remark", None, "one", "two")],
    ]
    assert (ana.state(Newer).at(first)).value.remark == "one"


def test_an_encrypted_past_stays_encrypted(connect: Any, raw: Redis, tenant: str) -> None:
    class Card(omnistate.State, encrypted=True, history=10):
        number: str = ""

    with connect(keyring=omnistate.Keyring({"k": secrets.token_bytes(32)}, current="k")) as omni:
        card = omni.customer("ana").state(Card)
        for number in ("4111", "4242"):
            card.patch(number=number)
        assert (card.history())[0].changes == [FieldChange("number", None, "4111", "4242")]
        key = Keyspace(tenant).customer("ana").key("doc", "Card", ".history")
        assert b"4111" not in b"".join(raw.lrange(key, 0, -1))


def test_a_merge_leaves_no_past_of_the_other_customer_behind(omni: Client, raw: Redis, tenant: str) -> None:
    omni.customer("ben").state(Order).patch(note="secret of ben")
    omni.customer("ana").merge(omni.customer("ben"))
    assert not raw.exists(Keyspace(tenant).customer("ben").key("doc", "Order", ".history"))


VALUES = st.fixed_dictionaries(
    {}, optional={"lines": st.dictionaries(st.sampled_from("abc"), st.integers(0, 3), max_size=3),
                  "note": st.sampled_from(["", "x", "y"]), "total": st.integers(0, 3)}
)  # fmt: skip
STEPS = st.lists(
    st.tuples(st.sampled_from(["set", "patch", "put", "remove", "increment", "update", "delete"]), VALUES), max_size=12
)


def _do(order: Any, verb: str, fields: dict[str, Any]) -> None:
    if verb == "set":
        order.set(Order(**fields))
    elif verb == "patch":
        order.patch(**{name: value for name, value in fields.items() if name != "lines"})
    elif verb == "put":
        order.put("lines", "a", fields.get("total", 0))
    elif verb == "remove":
        order.remove("lines", "a")
    elif verb == "increment":
        order.increment("total")
    elif verb == "delete":
        order.delete()
    else:
        order.update(lambda value: [setattr(value, name, one) for name, one in msgspec.to_builtins(fields).items()])


SERVER = ""


@pytest.fixture(autouse=True)
def server(valkey: Any) -> None:
    global SERVER  # noqa: PLW0603 - hypothesis takes no fixtures of a function
    SERVER = valkey.url
