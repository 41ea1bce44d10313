"""Encrypted collections: nothing is in clear anywhere, moved values are refused, keys are rotated under load."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

import omnistate
from omnistate import Client, Keyring, List, Map, WorkQueue
from omnistate.ops import Bulk, export_all, import_all, migrate_all
from omnistate.store import Keyspace

KEYS = {"old": secrets.token_bytes(32), "new": secrets.token_bytes(32)}
SECRET = "4111-1111"


class Card(omnistate.State, encrypted=True):
    number: str = ""
    notes = List(str, limit=5000)
    tags = omnistate.Set(str, encrypted=False)
    plain = List(str, encrypted=False)


PINS = Map(str, str, name="sealed_pins", encrypted=True)
TASKS = WorkQueue(str, name="sealed_tasks", encrypted=True)
COLLECTIONS = {one.name: one for one in (Card.notes, Card.tags, Card.plain, PINS, TASKS)}


@pytest.fixture
def keyed(connect: Any) -> Any:
    def make(current: str = "old", names: tuple[str, ...] = ("old", "new"), **options: Any) -> Client:
        client: Client = connect(keyring=Keyring({name: KEYS[name] for name in names}, current=current), **options)
        return client

    return make


@pytest.fixture
async def omni(keyed: Any) -> AsyncIterator[Client]:
    async with keyed() as client:
        yield client


async def fill(omni: Client, name: str = "ana") -> None:
    ana = omni.customer(name)
    await ana.collection(Card.notes).append(SECRET + "1", SECRET + "2", "")
    await ana.collection(Card.notes).set(2, SECRET + "3")
    await ana.collection(PINS).update({"a": SECRET, "b": SECRET})
    await ana.collection(PINS).put("c", SECRET, ttl=timedelta(hours=1))
    await ana.collection(TASKS).put(SECRET + "1", SECRET + "2")


def everything_in(raw: Redis, tenant: str) -> bytes:
    found = []
    for key in raw.scan_iter(f"omni:{tenant}:*"):
        match raw.type(key):
            case b"list":
                found += raw.lrange(key, 0, -1)  # type: ignore[operator,arg-type]
            case b"hash":
                found += [one for pair in raw.hgetall(key).items() for one in pair]  # type: ignore[union-attr]
            case _:
                found += raw.zrange(key, 0, -1) if raw.type(key) == b"zset" else []  # type: ignore[operator]
    return b"\n".join(found)


async def test_what_is_encrypted_is_nowhere_in_clear_and_reads_as_ever(omni: Client, raw: Redis, tenant: str) -> None:
    await fill(omni)
    ana = omni.customer("ana")
    notes, pins, tasks = ana.collection(Card.notes), ana.collection(PINS), ana.collection(TASKS)
    assert await notes.all() == [SECRET + "1", SECRET + "2", SECRET + "3"]
    assert (await notes.get(1), await notes.slice(0, 1)) == (SECRET + "2", [SECRET + "1"])
    assert await pins.all() == dict.fromkeys("abc", SECRET)
    assert (await pins.get("a"), {key: value async for key, value in pins.items()}) == (SECRET, await pins.all())
    item = await tasks.claim()
    assert item is not None
    assert item.value == SECRET + "1"
    assert await notes.pop_many(2) == [SECRET + "3", SECRET + "2"]
    assert await pins.pop("a") == SECRET
    everything = everything_in(raw, tenant)
    assert b"$sealed" in everything
    assert SECRET.encode() not in everything
    assert base64.b64encode(SECRET.encode())[:8] not in everything


async def test_a_watcher_sees_what_is_inside(omni: Client) -> None:
    pins, seen = omni.customer("ana").collection(PINS), []
    async for change in pins.watch():
        seen.append(change.value)
        if len(seen) == 3:
            break
        await pins.put(f"k{len(seen)}", SECRET)
    assert seen[-1] == {"k1": SECRET, "k2": SECRET}


async def test_a_repeated_operation_is_known_though_its_ciphertext_differs(omni: Client) -> None:
    ana = omni.customer("ana")
    notes, pins, tasks = ana.collection(Card.notes), ana.collection(PINS), ana.collection(TASKS)
    for _ in range(2):
        assert await notes.append(SECRET, operation_id="one") == 1
        assert await pins.update({"a": SECRET}, operation_id="two") == 1
        assert len(await tasks.put(SECRET, operation_id="three")) == 1
        async with ana.transaction(operation_id="four") as tx:
            tx.collection(Card.notes).append(SECRET)
            tx.collection(PINS).put("b", SECRET)
    assert tx.repeated
    assert (await notes.size(), await pins.size(), await tasks.size()) == (2, 2, (1, 0))
    with pytest.raises(omnistate.OperationIdReused):
        await notes.append("other", operation_id="one")
    with pytest.raises(omnistate.OperationIdReused):
        async with ana.transaction(operation_id="four") as tx:
            tx.collection(Card.notes).append("other")
            tx.collection(PINS).put("b", SECRET)


async def test_a_transaction_under_an_id_may_be_repeated_on_another_channel(omni: Client) -> None:
    for channel in ("web", "desk"):
        async with omni.customer("ana").via(channel, actor=channel).transaction(operation_id="one") as tx:
            tx.collection(Card.plain).append("x")
    assert tx.repeated


@pytest.mark.parametrize("where", ["customer", "entry", "collection"])
async def test_a_ciphertext_that_was_moved_is_refused(omni: Client, raw: Redis, tenant: str, where: str) -> None:
    await fill(omni)
    await fill(omni, "ben")
    ana, ben = Keyspace(tenant).customer("ana"), Keyspace(tenant).customer("ben")
    pins = omni.customer("ben").collection(PINS)
    source = {
        "customer": (ana.key("doc", "sealed_pins"), "a"),
        "entry": (ben.key("doc", "sealed_pins"), "b"),
    }
    stolen = (
        raw.lindex(ben.key("doc", "Card.notes"), 0) if where == "collection" else raw.hget(*source[where])  # type: ignore[arg-type]
    )
    raw.hset(ben.key("doc", "sealed_pins"), "a", stolen)  # type: ignore[arg-type]
    with pytest.raises(omnistate.SchemaMismatch, match="moved"):
        await pins.get("a")
    assert await pins.get("b") == SECRET


@pytest.mark.parametrize("damage", [b'{"$sealed":"AAAA"}', b'{"$sealed":"%%%"}', b'{"$sealed":"', b'{"$sealed":"AQ"}'])
async def test_a_damaged_value_is_told_and_left(omni: Client, raw: Redis, tenant: str, damage: bytes) -> None:
    await fill(omni)
    key = Keyspace(tenant).customer("ana").key("doc", "sealed_pins")
    raw.hset(key, "a", damage)  # type: ignore[arg-type]
    with pytest.raises(omnistate.SchemaMismatch):
        await omni.customer("ana").collection(PINS).all()
    assert raw.hget(key, "a") == damage
    await omni.customer("ana").collection(PINS).put("a", "again")
    assert await omni.customer("ana").collection(PINS).get("a") == "again"


async def test_without_a_keyring_nothing_is_written_or_read(omni: Client, connect: Any) -> None:
    await fill(omni)
    async with connect() as bare:
        notes = bare.customer("ana").collection(Card.notes)
        with pytest.raises(omnistate.InvalidDeclaration, match="keyring"):
            notes.append("x")
        with pytest.raises(omnistate.SchemaMismatch, match="keyring"):
            await notes.all()
        assert await notes.size() == 3
    async with connect(keyring=Keyring({"new": KEYS["new"]}, current="new")) as other:
        with pytest.raises(omnistate.EncryptionKeyMissing, match="old"):
            await other.customer("ana").collection(Card.notes).all()


async def test_sealed_and_other_values_stand_side_by_side(omni: Client) -> None:
    """A declaration that is encrypted from today on, and one that no longer is."""
    ana = omni.customer("ana")
    plain = List(str, name="sealed_pins_of_yesterday")
    sealed = List(str, name="sealed_pins_of_yesterday", encrypted=True)
    await ana.collection(plain).append("a")
    await ana.collection(sealed).append("b")
    assert await ana.collection(plain).all() == await ana.collection(sealed).all() == ["a", "b"]


async def test_a_merge_seals_anew_for_the_customer_who_stays(omni: Client) -> None:
    await fill(omni)
    await fill(omni, "ben")
    await omni.customer("ben").collection(PINS).put("of ben", SECRET)
    ana = omni.customer("ana")
    await ana.merge(omni.customer("ben"))
    assert await ana.collection(Card.notes).size() == 6
    assert set(await ana.collection(Card.notes).all()) == {SECRET + one for one in "123"}
    assert (await ana.collection(PINS).all())["of ben"] == SECRET
    assert [item.value for item in await ana.collection(TASKS).claim_many(9)] == [SECRET + one for one in "1212"]


async def test_keys_are_rotated_while_everybody_writes(keyed: Any, raw: Redis, tenant: str) -> None:
    async with keyed() as omni:
        await fill(omni)
        board = omni.collection(Map(str, str, name="sealed_of_all", encrypted=True))
        await board.put("x", SECRET)
        ana = omni.customer("ana")
        await ana.collection(Card.notes).append(*[f"note {number}" for number in range(700)])
        talk = await ana.start_conversation("web")
        await talk.collection(Card.notes).append(SECRET)
        held = await ana.collection(TASKS).claim()
        deadline = raw.zscore(Keyspace(tenant).customer("ana").key("doc", "sealed_pins", ".due"), "c")
    declared = COLLECTIONS | {"sealed_of_all": board.declaration}
    async with keyed("new") as omni:
        bulk = Bulk(omni.services, omni.keyspace)
        dry = await migrate_all(bulk, {}, declared, force=True, dry_run=True)
        assert dry.changed == {"Card.notes": 2, "sealed_pins": 1, "sealed_tasks": 1, "sealed_of_all": 1}
        done = asyncio.Event()

        async def write() -> int:
            number, notes = 0, omni.customer("ana").collection(Card.notes)
            while not done.is_set():
                number += 1
                await notes.append(f"new {number}")
                await asyncio.sleep(0.01)
            return number

        writer = asyncio.create_task(write())
        report = await migrate_all(bulk, {}, declared, force=True)
        done.set()
        written = await writer
        assert report.changed == dry.changed
        assert report.failures == 0
        assert (await migrate_all(bulk, {}, declared, force=True)).changed == {}
    assert raw.zscore(Keyspace(tenant).customer("ana").key("doc", "sealed_pins", ".due"), "c") == deadline
    async with keyed("new", ("new",)) as omni:  # the old key is gone
        ana = omni.customer("ana")
        notes = [SECRET + one for one in "123"] + [f"note {number}" for number in range(700)]
        assert await ana.collection(Card.notes).all() == notes + [f"new {number}" for number in range(1, written + 1)]
        assert await ana.collection(PINS).all() == dict.fromkeys("abc", SECRET)
        assert await omni.collection(board.declaration).get("x") == SECRET
        assert await omni.conversation(talk.id).collection(Card.notes).all() == [SECRET]
        assert held is not None
        await ana.collection(TASKS).done(held)  # whoever works on one goes on
        assert [item.value for item in await ana.collection(TASKS).claim_many(9)] == [SECRET + "2"]


async def test_a_watcher_goes_on_over_a_rotation(keyed: Any) -> None:
    async with keyed() as omni, keyed("new") as other:
        notes, seen = omni.customer("ana").collection(Card.notes), []
        await notes.append("a", "b")
        async for change in notes.watch():
            seen.append(change.value)
            if len(seen) == 1:
                await migrate_all(Bulk(other.services, other.keyspace), {}, COLLECTIONS, force=True)
            elif len(seen) == 2:
                await notes.append("c")
            else:
                break
        assert seen == [["a", "b"], ["a", "b"], ["a", "b", "c"]]


async def test_exported_in_clear_and_imported_encrypted(omni: Client, keyed: Any, tmp_path: Path, raw: Redis) -> None:
    await fill(omni)
    with open(tmp_path / "out.ndjson", "w+b") as file:
        await export_all(Bulk(omni.services, omni.keyspace), file, {"Card": Card}, COLLECTIONS)
        file.seek(0)
        [line] = [json.loads(one) for one in file]
        assert line["collections"]["sealed_pins"]["values"] == dict.fromkeys("abc", SECRET)
        file.seek(0)
        tenant = "t-" + secrets.token_hex(6)
        async with keyed(tenant=tenant) as other:
            report = await import_all(Bulk(other.services, other.keyspace), file, {"Card": Card}, COLLECTIONS)
            assert report.failures == 0
            ana = other.customer("ana")
            assert await ana.collection(Card.notes).all() == [SECRET + one for one in "123"]
            assert await ana.collection(PINS).all() == dict.fromkeys("abc", SECRET)
            assert await ana.collection(TASKS).size() == (2, 0)
            assert SECRET.encode() not in everything_in(raw, tenant)


async def test_what_cannot_be_encrypted_is_refused(omni: Client) -> None:
    for kind in (omnistate.Set, omnistate.SortedSet, omnistate.UniqueCounter):
        with pytest.raises(omnistate.InvalidDeclaration, match="cannot be encrypted"):
            kind(str, name="sealed_other", encrypted=True)
    with pytest.raises(omnistate.InvalidDeclaration, match="cannot be encrypted"):
        omnistate.Counter(name="sealed_other", encrypted=True)
    with pytest.raises(omnistate.InvalidDeclaration, match=r"Wrong.tags: .* encrypted=False"):

        class Wrong(omnistate.State, encrypted=True):
            tags = omnistate.Set(str)

    with pytest.raises(omnistate.InvalidDeclaration, match=r"List\(..., encrypted=True\)"):

        class Named(omnistate.State, encrypted={"notes"}):
            notes = List(str)

    class Open(omnistate.State):
        notes = List(str)

    with pytest.raises(omnistate.InvalidDeclaration, match="belongs to Open"):

        class Closed(Open, encrypted=True):
            number: str = ""

    assert Card.notes.is_encrypted
    assert not Card.plain.is_encrypted
    with pytest.raises(omnistate.InvalidInput, match="encrypted"):
        await omni.customer("ana").collection(Map(str, int, name="sealed_sums", encrypted=True)).increment("a")
    with pytest.raises(omnistate.InvalidValue, match="sealed"):
        await omni.customer("ana").collection(Map(str, dict, name="sealed_like")).put("a", {"$sealed": "x"})
