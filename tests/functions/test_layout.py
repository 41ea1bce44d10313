"""What the server-side functions leave behind: the keys they touch, time-outs, generations of operation ids."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis, RedisCluster

import omnistate
from everything import everything
from machine import raw_client
from omnistate import Client
from omnistate.store import Keyspace
from shop import Cart, Profile

SOURCE = Path(omnistate.__file__).parent
FUNCTIONS = set(re.findall(r"^define\('(\w+)'", "".join(p.read_text() for p in SOURCE.rglob("*.lua")), re.MULTILINE))
CONNECTIONS = {"arrive", "barrier"}  # are said by connections, not by commands
HOUR, DAY = 3_600_000, 86_400_000


class Draft(omnistate.State, ttl=timedelta(hours=2)):
    lines: dict[str, str] = {}


def prefix(tenant: str) -> str:
    return Keyspace(tenant).customer("ana").prefix.decode()


def age(raw: Redis, meta: str, *, days: float = 1.1) -> None:
    """Moves the moment at which the present generation of operation ids began, and that of the next look at time-outs."""
    (state, life) = (one.decode().split() for one in raw.hmget(meta, "s", "life"))  # type: ignore[union-attr]
    older, keep, generation = life
    raw.hset(meta, "s", " ".join([state[0][0] + "0" * 13, *state[1:]]))
    raw.hset(meta, "life", f"{older} {keep} {int(generation) - int(days * DAY)}")


def keys_of(words: list[str]) -> list[str]:
    """The keys of a command that one of our functions called."""
    name = words[0].upper()
    if name in ("TIME", "SPUBLISH", "INFO", "SCAN"):  # SCAN gives names, of which others are then declared
        return []
    if name in ("DEL", "UNLINK", "RENAME", "PFMERGE"):
        return words[1:]
    return words[1:2]


async def test_every_key_that_a_function_touches_was_declared(omni: Client, raw: Redis, url: str) -> None:
    if isinstance(raw, RedisCluster):
        pytest.skip("MONITOR sees one server")
    await everything(omni, "1")  # so that the library is loaded
    names, declared = set(), []
    with raw.monitor() as monitor:
        await everything(omni, "2")
        raw_client(url).echo("the end")
        for said in monitor.listen():
            words = said["command"].split(" ")  # keys come first, and hold no spaces
            if words[0].upper() == "ECHO":
                break
            if words[0].upper() == "FCALL":
                name = words[1].split("_", 3)[3]
                if name in CONNECTIONS:
                    continue
                names.add(name)
                declared = words[3 : 3 + int(words[2])]
                slots = {key.split("{")[1].split("}")[0] for key in declared}
                assert len(slots) == 1, declared
            elif said["client_type"] == "lua":
                for key in keys_of(words):
                    assert key in declared, (words, declared)
    assert names == FUNCTIONS - CONNECTIONS


async def test_a_header_names_version_size_and_deadline(omni: Client, raw: Redis, tenant: str) -> None:
    draft = omni.customer("ana").state(Draft)
    version = await draft.put("lines", "1", "x")
    meta = prefix(tenant) + "meta"
    deadline, collected, offset, epoch, size, codec, of_class = raw.hget(meta, "doc:Draft").decode().split()  # type: ignore[union-attr]
    assert (int(offset), epoch) == (version.offset, version.epoch)
    assert int(size) >= len("lines:1") + len('"x"')
    now = sum(part * weight for part, weight in zip(raw.time(), (1000, 0.001), strict=True))  # type: ignore[arg-type]
    assert 0 <= now + 2 * HOUR - int(deadline) < 60_000
    assert raw.pexpiretime(prefix(tenant) + "doc:Draft") == int(collected) > int(deadline)
    assert (codec, of_class) == ("json", "1")


async def test_a_hash_that_was_emptied_gets_its_time_out_again(omni: Client, raw: Redis, tenant: str) -> None:
    draft = omni.customer("ana").state(Draft)
    for _ in range(3):
        await draft.put("lines", "1", "x")
        assert raw.pttl(prefix(tenant) + "doc:Draft") > HOUR
        await draft.remove("lines", "1")
        assert not raw.exists(prefix(tenant) + "doc:Draft")
    await draft.set(Draft())
    await draft.put("lines", "1", "x")
    assert raw.pttl(prefix(tenant) + "doc:Draft") > HOUR


async def test_a_class_that_loses_its_ttl_keeps_its_documents(omni: Client, raw: Redis, tenant: str) -> None:
    await omni.customer("ana").state(Draft).put("lines", "1", "x")
    forever = type("Draft", (omnistate.State,), {"__annotations__": {"lines": dict[str, str]}, "lines": {}})
    await omni.customer("ana").state(forever).put("lines", "2", "y")
    assert raw.ttl(prefix(tenant) + "doc:Draft") == -1
    assert raw.ttl(prefix(tenant) + "meta") == -1


async def test_what_an_abandoned_customer_leaves_expires(omni: Client, raw: Redis, tenant: str) -> None:
    await omni.customer("ana").state(Draft).put("lines", "1", "x")
    keys = list(raw.scan_iter(prefix(tenant).replace("{", "?").replace("}", "?") + "*", count=1000))
    assert len(keys) == 4
    for key in keys:
        assert 0 < raw.pttl(key) <= 33 * DAY, key


async def test_a_document_without_ttl_keeps_the_position_for_ever(omni: Client, raw: Redis, tenant: str) -> None:
    await omni.customer("ana").state(Draft).put("lines", "1", "x")
    await omni.customer("ana").state(Profile).patch(name="Ana")
    assert raw.ttl(prefix(tenant) + "meta") == raw.ttl(prefix(tenant) + "docs") == -1


async def test_operation_ids_are_remembered_for_a_generation_and_the_next(
    omni: Client, raw: Redis, tenant: str
) -> None:
    meta, cart = prefix(tenant) + "meta", omni.customer("ana").state(Cart)
    assert await cart.increment("visits", operation_id="once") == 1
    await omni.customer("ana").state(Draft).put("lines", "1", "x")
    raw.hset(meta, "turn", "doc:Cart somebody 1")
    age(raw, meta)
    await cart.patch(note="a new generation")
    assert raw.hexists(prefix(tenant) + "older", "op:once")
    assert not raw.hexists(meta, "op:once")
    assert raw.hget(meta, "turn") == b"doc:Cart somebody 1"
    assert await cart.increment("visits", operation_id="once") == 1  # found in the last one, not applied again
    assert (await omni.customer("ana").state(Draft).get()).lines == {"1": "x"}
    assert (await cart.get()) == Cart(note="a new generation", visits=1)
    age(raw, meta)
    await cart.patch(note="and another")
    assert await cart.increment("visits", operation_id="once") == 2  # forgotten, as documented
    assert (await cart.get()) == Cart(note="and another", visits=2)


async def test_a_new_generation_forgets_documents_that_have_expired(omni: Client, raw: Redis, tenant: str) -> None:
    class Brief(omnistate.State, ttl=timedelta(milliseconds=20)):
        word: str = ""

    meta, ana = prefix(tenant) + "meta", omni.customer("ana")
    await ana.state(Brief).patch(word="x")
    await ana.state(Cart).patch(note="stays")
    while not _expired(raw, meta):
        await asyncio.sleep(0.005)
    age(raw, meta)
    await ana.state(Profile).patch(name="Ana")
    assert raw.smembers(prefix(tenant) + "docs") == {b"doc:Cart", b"doc:Profile"}
    assert not raw.hexists(meta, "doc:Brief")
    assert (await ana.state(Cart).get()).note == "stays"


async def test_a_customer_with_an_older_generation_is_swept(omni: Client, raw: Redis, tenant: str) -> None:
    class Brief(omnistate.State, ttl=timedelta(milliseconds=20)):
        word: str = ""

    meta, ana = prefix(tenant) + "meta", omni.customer("ana")
    await ana.state(Profile).patch(name="Ana")
    age(raw, meta)
    await ana.state(Profile).patch(name="Bea")
    assert raw.exists(prefix(tenant) + "older")
    await ana.state(Brief).patch(word="x")
    while not _expired(raw, meta):
        await asyncio.sleep(0.005)
    assert await omni.sweep() == 1


def _expired(raw: Redis, meta: str) -> bool:
    """By the server's clock."""
    deadline = int(raw.hget(meta, "doc:Brief").split()[0])  # type: ignore[union-attr]
    seconds, microseconds = raw.time()  # type: ignore[misc]
    return bool(seconds * 1000 + microseconds / 1000 > deadline)


@pytest.mark.parametrize("operation_id", ["s", "into", "turn", "doc:Cart", "op:x", "a b:c\r\n"])
async def test_an_operation_id_is_never_taken_for_something_else(omni: Client, operation_id: str) -> None:
    cart: Any = omni.customer("ana").state(Cart)
    for _ in range(2):
        assert await cart.increment("visits", operation_id=operation_id) == 1
    assert (await cart.get()).visits == 1


async def test_large_results_shorten_a_generation_of_operation_ids(omni: Client, raw: Redis, tenant: str) -> None:
    """What a queue gave away is remembered for a repeated call, but not without bound."""
    jobs = omni.customer("ana").collection(omnistate.WorkQueue(str, name="heavy"))
    meta = prefix(tenant) + "meta"
    for _ in range(12):
        await jobs.put(*["x" * 50_000] * 8)
        for item in await jobs.claim_many(8):
            await item.done()
        age(raw, meta, days=0.01)  # a quarter of an hour
    kept = sum(len(value) for key in ("meta", "older") for value in raw.hvals(prefix(tenant) + key))  # type: ignore[union-attr]
    assert kept < 2 * (4 * 2**20 + 500_000)


async def test_a_log_keeps_the_last_thousand_entries(omni: Client, raw: Redis, tenant: str) -> None:
    cart = omni.customer("ana").state(Cart)
    for _ in range(1100):
        await cart.increment("visits")
    length = raw.llen(prefix(tenant) + "log")
    assert 1000 <= length < 1064
    position = await omni.customer("ana").position()
    assert position.offset == 1100


async def test_the_meta_of_a_busy_customer_is_a_table(omni: Client, raw: Redis, tenant: str) -> None:
    meta, cart = prefix(tenant) + "meta", omni.customer("ana").state(Cart)
    await cart.patch(note="x")
    assert raw.object("ENCODING", meta) == b"listpack"
    for _ in range(130):
        await cart.increment("visits")
    assert raw.object("ENCODING", meta) == b"hashtable"
    age(raw, meta)
    assert await cart.increment("visits", operation_id="once") == 131  # a new generation begins with it
    assert raw.hlen(meta) < 10
    assert await cart.increment("visits", operation_id="once") == 131
    assert (await omni.customer("ana").position()).offset == 132
