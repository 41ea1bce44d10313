"""Queries by index: right after every kind of write, after expiry and deletion, page by page."""

# Written by tools/unasync.py from tests/integration/test_query.py: change that one.

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from enum import Enum
from typing import Any

import pytest
from redis import Redis

import omnistate.sync as omnistate
from omnistate.store import Keyspace
from omnistate.sync import UPDATED, Client


class Status(Enum):
    OPEN = "open"
    PAID = "paid"


class Basket(omnistate.State, ttl=timedelta(days=7), indexes={"status", "total", "due", "owner", UPDATED}):
    items: dict[str, int] = {}
    status: Status = Status.OPEN
    total: int = 0
    due: date | None = None
    owner: str | None = None


class Priced(omnistate.State, indexes={"total"}):
    """Its index is computed from the whole value."""

    items: dict[str, int] = {}
    name: str = ""

    @property
    def total(self) -> int:
        return sum(self.items.values())


def ids(query: omnistate.Query[Any]) -> set[str]:
    return {found.customer_id for found in query}


def test_equality_and_ranges_find_what_was_written_by_any_verb(omni: Client) -> None:
    def basket(name: str) -> omnistate.StateHandle[Basket]:
        return omni.customer(name).state(Basket)

    basket("set").set(Basket(total=10, status=Status.PAID))
    basket("patch").patch(total=20, due=date(2026, 1, 2))
    basket("put").put("items", "cup", 1)
    basket("increment").increment("total", by=30)
    basket("increment").increment("total", by=10)
    basket("update").update(lambda value: setattr(value, "total", 50))
    with omni.customer("transaction").transaction() as tx:
        tx.state(Basket).patch(total=60, owner="x")
    with omni.customer("counted").transaction() as tx:
        tx.state(Basket).increment("total", by=70)
    query = omni.query(Basket)
    assert ids(query) == {"set", "patch", "put", "increment", "update", "transaction", "counted"}
    assert ids(query.where("status", equals=Status.PAID)) == {"set"}
    assert ids(query.where("status", equals=Status.OPEN).where("total", at_least=20, at_most=40)) == {
        "patch",
        "increment",
    }
    assert ids(query.where("total", at_most=0)) == {"put"}  # a default counts too
    assert ids(query.where("total", equals=70)) == {"counted"}
    assert ids(query.where("due", at_least=date(2026, 1, 1))) == {"patch"}
    assert ids(query.where("owner", equals="x")) == {"transaction"}
    found = query.where("total", equals=10).page()
    assert [(one.customer_id, one.owner, one.value.total) for one in found.found] == [("set", None, 10)]
    basket("set").patch(total=99)
    assert ids(query.where("total", equals=10)) == set()
    assert ids(query.where("total", at_least=99)) == {"set"}
    basket("patch").patch(due=None)
    assert ids(query.where("due", at_least=date(2000, 1, 1))) == set()


def test_what_expired_or_was_deleted_is_not_found_swept_or_not(omni: Client, raw: Redis, tenant: str) -> None:
    for name in ("ana", "ben", "cem"):
        omni.customer(name).state(Basket).patch(total=5)
    omni.customer("ben").state(Basket).delete()
    log = Keyspace(tenant).customer("cem")
    words = raw.hget(log.meta, "doc:Basket").split(b" ")  # type: ignore[union-attr]
    words[0] = b"1".zfill(13)
    raw.hset(log.meta, "doc:Basket", b" ".join(words))
    raw.zadd(log.written[4], {log.name: 0})
    query = omni.query(Basket).where("total", equals=5)
    assert ids(query) == {"ana"}
    assert raw.zcard(log.index("Basket.total")) >= 1
    assert omni.sweep() == 1
    assert raw.zscore(log.index("Basket.total"), log.name) is None
    assert raw.zscore(log.index("Basket.@updated"), log.name) is None
    omni.customer("cem").state(Basket).patch(total=5)
    assert ids(query) == {"ana", "cem"}


def test_idle_carts_over_a_hundred_are_found(omni: Client, raw: Redis, tenant: str) -> None:
    for name, total in (("ana", 150), ("ben", 50), ("cem", 150)):
        omni.customer(name).state(Basket).patch(total=total)
    for name in ("ana", "ben"):
        log = Keyspace(tenant).customer(name)
        raw.zincrby(log.index("Basket.@updated"), -7_200_000, log.name)
    query = omni.query(Basket).idle(timedelta(hours=1))
    assert ids(query) == {"ana", "ben"}
    assert ids(query.where("total", at_least=100)) == {"ana"}
    omni.customer("ana").state(Basket).put("items", "x", 1)
    assert ids(query) == {"ben"}


def test_random_writes_are_found_as_a_model_says(omni: Client) -> None:
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    chance, model = random.Random(seed), {}
    for _ in range(300):
        name = f"c{chance.randrange(20)}"
        handle = omni.customer(name).state(Basket)
        match chance.randrange(6):
            case 0:
                handle.patch(total=chance.randrange(5), status=chance.choice(list(Status)))
            case 1:
                handle.increment("total")
            case 2:
                handle.update(lambda value: setattr(value, "owner", chance.choice(["x", "y", None])))
            case 3:
                handle.set(Basket(total=chance.randrange(5)))
            case 4:
                handle.delete()
            case _:
                handle.put("items", "k", 1)
        snapshot = handle.read()
        model.pop(name, None)
        if snapshot.exists:
            model[name] = snapshot.value
    checks: list[tuple[omnistate.Query[Basket], Callable[[Basket], bool]]] = [
        (omni.query(Basket), lambda _: True),
        (omni.query(Basket).where("total", at_least=1, at_most=3), lambda value: 1 <= value.total <= 3),
        (omni.query(Basket).where("owner", equals="x"), lambda value: value.owner == "x"),
        (
            omni.query(Basket).where("status", equals=Status.PAID).where("total", at_most=2),
            lambda value: value.status is Status.PAID and value.total <= 2,
        ),
    ]
    for query, fits in checks:
        assert ids(query) == {name for name, value in model.items() if fits(value)}


def test_states_of_conversations_are_found_with_their_owner(omni: Client) -> None:
    talk = omni.customer("ana").start_conversation("web")
    talk.state(Basket).patch(total=77)
    (found,) = (omni.query(Basket).where("total", equals=77).page(limit=1000)).found
    assert (found.customer_id, found.owner) == ("ana", ("conversation", talk.id.rpartition(".")[2]))


def test_a_merged_customer_is_found_as_one(omni: Client) -> None:
    omni.customer("ben").state(Basket).patch(total=5)
    omni.customer("ana").merge(omni.customer("ben"))
    assert [found.customer_id for found in omni.query(Basket).where("total", equals=5)] == ["ana"]


def test_a_query_goes_on_beside_a_merge_that_is_half_done(omni: Client, raw: Redis, tenant: str) -> None:
    for name in ("ana", "ben"):
        omni.customer(name).state(Basket).patch(total=5)
    raw.hset(Keyspace(tenant).customer("ben").meta, "into", "ana")  # frozen, and then the process died
    assert ids(omni.query(Basket).where("total", equals=5)) == {"ana"}


def test_a_datetime_without_a_time_zone_is_in_a_range_as_utc(omni: Client) -> None:
    class Due(omnistate.State, name="DueSometime", indexes={"at"}):
        at: datetime | None = None

    omni.customer("naive").state(Due).patch(at=datetime(2026, 1, 1, 12, tzinfo=UTC).replace(tzinfo=None))
    omni.customer("aware").state(Due).patch(at=datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=1))))
    for hour, found in ((10, {"naive", "aware"}), (11, {"naive", "aware"}), (12, {"naive"}), (13, set())):
        for zone in (UTC, None):
            query = omni.query(Due).where("at", at_least=datetime(2026, 1, 1, hour, tzinfo=zone))
            assert ids(query) == found, (hour, zone)


def test_a_document_that_cannot_be_read_stops_no_query(omni: Client, raw: Redis, tenant: str) -> None:
    for name in ("ana", "ben", "cem"):
        omni.customer(name).state(Basket).set(Basket(total=5, owner="same"))
    raw.hset(Keyspace(tenant).customer("ben").key("doc", "Basket"), "total", '"five"')
    for query in (omni.query(Basket), omni.query(Basket).where("owner", equals="same")):
        found = {one.customer_id: one for one in query}
        assert found.keys() == {"ana", "ben", "cem"}
        assert found["ana"].value == found["cem"].value == Basket(total=5, owner="same")
        with pytest.raises(omnistate.SchemaMismatch) as refused:
            _ = found["ben"].value
        assert refused.value.fields.keys() == {"total"}
        assert any("'ben'" in note for note in refused.value.__notes__)


def test_large_integers_are_told_apart(omni: Client) -> None:
    omni.customer("ana").state(Basket).patch(total=2**53 - 1)
    omni.customer("ben").state(Basket).patch(total=2**60)
    omni.customer("cem").state(Basket).patch(total=2**60 + 1)
    assert ids(omni.query(Basket).where("total", equals=2**60 + 1)) == {"cem"}


def test_bad_queries_are_refused(omni: Client) -> None:
    query = omni.query(Basket)
    for bad in (
        lambda: query.where("items", equals=1),
        lambda: query.where("total"),
        lambda: query.where("total", equals=1, at_least=1),
        lambda: query.where("total", equals=None),
        lambda: query.where("owner", at_least="x"),
        lambda: query.where("total", at_least=float("nan")),
        lambda: query.where("total", equals=10**400),
        lambda: query.where("owner", equals="\ud800"),
        lambda: query.where("owner", equals=object()),
        lambda: query.idle(3600),  # type: ignore[arg-type]
        lambda: omni.query(Priced).idle(timedelta(hours=1)),
        lambda: omni.query(type("Bare", (omnistate.State,), {})),
    ):
        with pytest.raises(omnistate.InvalidInput):
            bad()  # type: ignore[no-untyped-call]
    for cursor in ("", "x", "AAAA", "WzUwMF0", "é"):
        with pytest.raises(omnistate.InvalidInput):
            query.page(after=cursor)
    with pytest.raises(omnistate.InvalidInput):
        query.page(limit=0)
    with pytest.raises(omnistate.InvalidValue, match="indexed"):
        omni.customer("ana").state(Basket).expire("total", after=timedelta(hours=1))
    assert datetime.now(UTC)
