"""Queries by index: right after every kind of write, after expiry and deletion, page by page."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

import omnistate
from machine import Server, missing
from omnistate import UPDATED, Client
from omnistate.store import Keyspace
from omnistate.store._keys import partition_of


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


async def ids(query: omnistate.Query[Any]) -> set[str]:
    return {found.customer_id async for found in query}


async def test_equality_and_ranges_find_what_was_written_by_any_verb(omni: Client) -> None:
    def basket(name: str) -> omnistate.StateHandle[Basket]:
        return omni.customer(name).state(Basket)

    await basket("set").set(Basket(total=10, status=Status.PAID))
    await basket("patch").patch(total=20, due=date(2026, 1, 2))
    await basket("put").put("items", "cup", 1)
    await basket("increment").increment("total", by=30)
    await basket("increment").increment("total", by=10)
    await basket("update").update(lambda value: setattr(value, "total", 50))
    async with omni.customer("transaction").transaction() as tx:
        tx.state(Basket).patch(total=60, owner="x")
    async with omni.customer("counted").transaction() as tx:
        tx.state(Basket).increment("total", by=70)
    query = omni.query(Basket)
    assert await ids(query) == {"set", "patch", "put", "increment", "update", "transaction", "counted"}
    assert await ids(query.where("status", equals=Status.PAID)) == {"set"}
    assert await ids(query.where("status", equals=Status.OPEN).where("total", at_least=20, at_most=40)) == {
        "patch",
        "increment",
    }
    assert await ids(query.where("total", at_most=0)) == {"put"}  # a default counts too
    assert await ids(query.where("total", equals=70)) == {"counted"}
    assert await ids(query.where("due", at_least=date(2026, 1, 1))) == {"patch"}
    assert await ids(query.where("owner", equals="x")) == {"transaction"}
    found = await query.where("total", equals=10).page()
    assert [(one.customer_id, one.owner, one.value.total) for one in found.found] == [("set", None, 10)]
    await basket("set").patch(total=99)
    assert await ids(query.where("total", equals=10)) == set()
    assert await ids(query.where("total", at_least=99)) == {"set"}
    await basket("patch").patch(due=None)
    assert await ids(query.where("due", at_least=date(2000, 1, 1))) == set()


async def test_an_index_over_a_computed_value_is_right_after_any_verb(omni: Client) -> None:
    handle = omni.customer("ana").state(Priced)
    query = omni.query(Priced)
    for call, total in (
        (handle.put("items", "a", 5), 5),
        (handle.increment("items", "b", by=2), 7),
        (handle.update(lambda value: value.items.update(a=1)), 3),
        (handle.patch(name="x"), 3),
        (handle.remove("items", "b"), 1),
        (handle.set(Priced(items={"z": 9})), 9),
    ):
        await call
        assert await ids(query.where("total", equals=total)) == {"ana"}
        assert len((await query.page()).found) == 1
    async with omni.customer("ana").transaction() as tx:
        value = await tx.get(Priced)
        value.items["y"] = 1
    assert await ids(query.where("total", equals=10)) == {"ana"}
    with pytest.raises(omnistate.InvalidInput, match="tx.get"):
        async with omni.customer("ana").transaction() as tx:
            tx.state(Priced).put("items", "q", 1)
    await handle.delete()
    assert await ids(query) == set()


async def test_what_expired_or_was_deleted_is_not_found_swept_or_not(omni: Client, raw: Redis, tenant: str) -> None:
    for name in ("ana", "ben", "cem"):
        await omni.customer(name).state(Basket).patch(total=5)
    await omni.customer("ben").state(Basket).delete()
    log = Keyspace(tenant).customer("cem")
    words = raw.hget(log.meta, "doc:Basket").split(b" ")  # type: ignore[union-attr]
    words[0] = b"1".zfill(13)
    raw.hset(log.meta, "doc:Basket", b" ".join(words))
    raw.zadd(log.written[4], {log.name: 0})
    query = omni.query(Basket).where("total", equals=5)
    assert await ids(query) == {"ana"}
    assert raw.zcard(log.index("Basket.total")) >= 1
    assert await omni.sweep() == 1
    assert raw.zscore(log.index("Basket.total"), log.name) is None
    assert raw.zscore(log.index("Basket.@updated"), log.name) is None
    await omni.customer("cem").state(Basket).patch(total=5)
    assert await ids(query) == {"ana", "cem"}


async def test_idle_carts_over_a_hundred_are_found(omni: Client, raw: Redis, tenant: str) -> None:
    for name, total in (("ana", 150), ("ben", 50), ("cem", 150)):
        await omni.customer(name).state(Basket).patch(total=total)
    for name in ("ana", "ben"):
        log = Keyspace(tenant).customer(name)
        raw.zincrby(log.index("Basket.@updated"), -7_200_000, log.name)
    query = omni.query(Basket).idle(timedelta(hours=1))
    assert await ids(query) == {"ana", "ben"}
    assert await ids(query.where("total", at_least=100)) == {"ana"}
    await omni.customer("ana").state(Basket).put("items", "x", 1)
    assert await ids(query) == {"ben"}


async def test_pages_hold_everything_once_and_a_cursor_goes_on_where_it_was(omni: Client) -> None:
    names = {f"customer-{number}" for number in range(700)}
    await asyncio.gather(*(omni.customer(name).state(Basket).patch(total=len(name)) for name in names))
    query = omni.query(Basket).where("status", equals=Status.OPEN)
    for limit in (1, 7, 100, 1000):
        seen: list[str] = []
        cursor: str | None = None
        while len(seen) < 60 or limit > 7:
            page = await query.page(limit=limit, after=cursor)
            assert len(page.found) <= limit
            seen += [found.customer_id for found in page.found]
            cursor = page.cursor
            if cursor is None:
                break
        assert len(seen) == len(set(seen))
        if limit > 7:
            assert set(seen) == names


async def test_one_partition_full_of_equal_values_is_paged(omni: Client, tenant: str) -> None:
    space = Keyspace(tenant)
    names = [f"c{number}" for number in range(60_000)]
    crowd = [name for name in names if space.customer(name).common == space.customer("c0").common][:150]
    assert len(crowd) == 150
    await asyncio.gather(*(omni.customer(name).state(Basket).patch(owner="same") for name in crowd))
    query, seen, cursor = omni.query(Basket).where("owner", equals="same"), [], None
    while True:
        page = await query.page(limit=13, after=cursor)
        seen += [found.customer_id for found in page.found]
        for found in page.found[-1:]:  # what the cursor stands on goes away: the next page begins after it all the same
            await omni.customer(found.customer_id).state(Basket).delete()
        cursor = page.cursor
        if cursor is None:
            break
    assert sorted(seen) == sorted(crowd)


async def test_pages_hold_everything_once_whatever_the_servers_locale_says_of_order(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/en_US").exists():
        missing("localedef with its sources", "apt-get install locales")
    subprocess.run(["localedef", "-i", "en_US", "-f", "UTF-8", tmp_path / "en_US.UTF-8"], check=True)
    monkeypatch.setenv("LOCPATH", str(tmp_path))
    monkeypatch.setenv("LC_ALL", "en_US.UTF-8")  # a B C, not B C a
    server = Server(valkey.binary)
    try:
        async with omnistate.connect(server.url) as omni:
            ids = (f"{letter}{number}{end}" for number in range(2000) for letter in "aB_é" for end in ("x", "-"))
            names = [name for name in ids if partition_of(omni.keyspace.customer(name).name) == 7]
            await asyncio.gather(*(omni.customer(name).state(Basket).patch(total=1) for name in names))
            query, seen = omni.query(Basket).where("total", equals=1), list[str]()
            page = await query.page(limit=5)
            while page.cursor is not None and len(seen) <= len(names):
                seen += [found.customer_id for found in page.found]
                page = await query.page(limit=5, after=page.cursor)
            seen += [found.customer_id for found in page.found]
            assert sorted(seen) == sorted(names)
    finally:
        server.stop()


async def test_random_writes_are_found_as_a_model_says(omni: Client) -> None:
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    chance, model = random.Random(seed), {}
    for _ in range(300):
        name = f"c{chance.randrange(20)}"
        handle = omni.customer(name).state(Basket)
        match chance.randrange(6):
            case 0:
                await handle.patch(total=chance.randrange(5), status=chance.choice(list(Status)))
            case 1:
                await handle.increment("total")
            case 2:
                await handle.update(lambda value: setattr(value, "owner", chance.choice(["x", "y", None])))
            case 3:
                await handle.set(Basket(total=chance.randrange(5)))
            case 4:
                await handle.delete()
            case _:
                await handle.put("items", "k", 1)
        snapshot = await handle.read()
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
        assert await ids(query) == {name for name, value in model.items() if fits(value)}


async def test_states_of_conversations_are_found_with_their_owner(omni: Client) -> None:
    talk = await omni.customer("ana").start_conversation("web")
    await talk.state(Basket).patch(total=77)
    (found,) = (await omni.query(Basket).where("total", equals=77).page(limit=1000)).found
    assert (found.customer_id, found.owner) == ("ana", ("conversation", talk.id.rpartition(".")[2]))


async def test_a_merged_customer_is_found_as_one(omni: Client) -> None:
    await omni.customer("ben").state(Basket).patch(total=5)
    await omni.customer("ana").merge(omni.customer("ben"))
    assert [found.customer_id async for found in omni.query(Basket).where("total", equals=5)] == ["ana"]


async def test_a_query_goes_on_beside_a_merge_that_is_half_done(omni: Client, raw: Redis, tenant: str) -> None:
    for name in ("ana", "ben"):
        await omni.customer(name).state(Basket).patch(total=5)
    raw.hset(Keyspace(tenant).customer("ben").meta, "into", "ana")  # frozen, and then the process died
    assert await ids(omni.query(Basket).where("total", equals=5)) == {"ana"}


async def test_a_datetime_without_a_time_zone_is_in_a_range_as_utc(omni: Client) -> None:
    class Due(omnistate.State, name="DueSometime", indexes={"at"}):
        at: datetime | None = None

    await omni.customer("naive").state(Due).patch(at=datetime(2026, 1, 1, 12, tzinfo=UTC).replace(tzinfo=None))
    await omni.customer("aware").state(Due).patch(at=datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=1))))
    for hour, found in ((10, {"naive", "aware"}), (11, {"naive", "aware"}), (12, {"naive"}), (13, set())):
        for zone in (UTC, None):
            query = omni.query(Due).where("at", at_least=datetime(2026, 1, 1, hour, tzinfo=zone))
            assert await ids(query) == found, (hour, zone)


async def test_a_document_that_cannot_be_read_stops_no_query(omni: Client, raw: Redis, tenant: str) -> None:
    for name in ("ana", "ben", "cem"):
        await omni.customer(name).state(Basket).set(Basket(total=5, owner="same"))
    raw.hset(Keyspace(tenant).customer("ben").key("doc", "Basket"), "total", '"five"')
    for query in (omni.query(Basket), omni.query(Basket).where("owner", equals="same")):
        found = {one.customer_id: one async for one in query}
        assert found.keys() == {"ana", "ben", "cem"}
        assert found["ana"].value == found["cem"].value == Basket(total=5, owner="same")
        with pytest.raises(omnistate.SchemaMismatch) as refused:
            _ = found["ben"].value
        assert refused.value.fields.keys() == {"total"}
        assert any("'ben'" in note for note in refused.value.__notes__)


async def test_large_integers_are_told_apart(omni: Client) -> None:
    await omni.customer("ana").state(Basket).patch(total=2**53 - 1)
    await omni.customer("ben").state(Basket).patch(total=2**60)
    await omni.customer("cem").state(Basket).patch(total=2**60 + 1)
    assert await ids(omni.query(Basket).where("total", equals=2**60 + 1)) == {"cem"}


async def test_bad_queries_are_refused(omni: Client) -> None:
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
            await query.page(after=cursor)
    with pytest.raises(omnistate.InvalidInput):
        await query.page(limit=0)
    with pytest.raises(omnistate.InvalidValue, match="indexed"):
        await omni.customer("ana").state(Basket).expire("total", after=timedelta(hours=1))
    assert datetime.now(UTC)
