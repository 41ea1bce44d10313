"""How values are stored: codecs side by side, compression, encryption; damage is told and nothing is overwritten."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

import omnistate
from omnistate import Client, Keyring
from omnistate.state import schema_of
from omnistate.store import Keyspace

KEYS = {"old": secrets.token_bytes(32), "new": secrets.token_bytes(32)}
OPTIONS: dict[str, dict[str, Any]] = {
    "json": {},
    "msgpack": {"codec": "msgpack"},
    "zstd": {"compress_over": 64},
    "encrypted": {"encrypted": True},
    "all": {"codec": "msgpack", "compress_over": 64, "encrypted": {"lines", "raw", "any", "word"}},
}


class Line(msgspec.Struct):
    price: Decimal = Decimal(0)
    tags: list[str] = []


def everything(variant: str) -> type[omnistate.State]:
    """One class, stored in one of the ways."""
    fields = {
        "lines": dict[str, Line], "numbered": dict[int, list[int]], "by_id": dict[UUID, date | None], "word": str,
        "amount": float, "count": int, "when": datetime | None, "raw": bytes, "any": Any, "flags": set[str],
    }  # fmt: skip
    defaults = {"lines": {}, "numbered": {}, "by_id": {}, "word": "", "amount": 0.0, "count": 0, "when": None,
                "raw": b"", "any": None, "flags": set()}  # fmt: skip
    metaclass = type(omnistate.State)
    namespace = {"__annotations__": fields, **defaults, "__module__": __name__}
    return metaclass("Everything", (omnistate.State,), namespace, name="Everything", **OPTIONS[variant])


CLASSES = {variant: everything(variant) for variant in OPTIONS}
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=80)
LEAVES = (
    st.none()
    | st.booleans()
    | st.sampled_from([2**53 + 1, -(2**63), 2**64 - 1, 0, 1.5, -0.0, 1e308, 5e-324, "", [], {}])
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
NESTED = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))
ZONES = st.sampled_from(
    [None, UTC, timezone(timedelta(hours=5, minutes=45)), timezone(timedelta(hours=-9, minutes=-30))]
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "lines": st.dictionaries(
            TEXT,
            st.builds(Line, st.decimals(allow_nan=False, allow_infinity=False), st.lists(TEXT, max_size=3)),
            max_size=4,
        ),
        "numbered": st.dictionaries(
            st.integers(-(2**63), 2**63 - 1), st.lists(st.integers(-9, 9), max_size=3), max_size=3
        ),
        "by_id": st.dictionaries(st.uuids(), st.none() | st.dates(), max_size=3),
        "word": TEXT,
        "amount": st.floats(allow_nan=False, allow_infinity=False),
        "count": st.integers(-(2**63), 2**63 - 1) | st.just(2**53 + 1),
        "when": st.none() | st.datetimes(timezones=ZONES),
        "raw": st.binary(max_size=200),
        "any": NESTED,
        "flags": st.sets(TEXT, max_size=4),
    },
)


@pytest.fixture
async def omni(connect: Any) -> AsyncIterator[Client]:
    async with connect(keyring=Keyring(KEYS, current="old")) as client:
        yield client


@pytest.fixture(params=OPTIONS)
def kind(request: pytest.FixtureRequest) -> Any:
    return CLASSES[request.param]


@settings(max_examples=300, deadline=None)
@given(FIELDS, st.sampled_from(list(OPTIONS)))
def test_every_value_comes_back_from_its_stored_form(fields: dict[str, Any], variant: str) -> None:
    schema, keyring = schema_of(CLASSES[variant]), Keyring(KEYS, current="old")
    value = CLASSES[variant](**fields)
    flat = schema.split(schema.encode(value))
    stored = schema.pack(flat, b"omni:t:doc", keyring)
    assert schema.unpack(stored, b"omni:t:doc", keyring) == (flat, {})
    assert schema.decode(schema.join(flat)) == value
    for other in OPTIONS.keys() - {variant}:  # any other class reads them, as what they are
        assert schema_of(CLASSES[other]).unpack(stored, b"omni:t:doc", keyring) == (flat, {})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_document_comes_back_from_the_server(data: st.DataObject, valkey: Any) -> None:
    variants = data.draw(st.lists(st.sampled_from(list(OPTIONS)), min_size=2, max_size=4))
    changes = data.draw(st.lists(FIELDS, min_size=2, max_size=4))

    async def story() -> None:
        tenant = "t-" + secrets.token_hex(6)
        async with omnistate.connect(valkey.url, tenant=tenant, keyring=Keyring(KEYS, current="old")) as client:
            expected: dict[str, Any] = {}
            for number, fields in enumerate(changes):
                kind: Any = CLASSES[variants[number % len(variants)]]
                expected.update(fields)

                def change(value: Any, fields: dict[str, Any] = fields) -> None:
                    for name, one in fields.items():
                        setattr(value, name, one)

                written = await client.customer("ana").state(kind).update(change)
                assert written.value == kind(**expected)
                for other in CLASSES.values():
                    assert await client.customer("ana").state(other).get() == other(**expected)

    asyncio.run(story())


async def test_a_watcher_of_any_codec_sees_what_was_written(omni: Client, kind: Any) -> None:
    handle = omni.customer("ana").state(kind)
    seen: list[Any] = []

    async def watch() -> None:
        async for change in handle.watch():
            seen.append(change.value)
            if change.value.count == 3:
                return

    task = asyncio.create_task(watch())
    while not seen:
        await asyncio.sleep(0.001)
    await handle.put("lines", "a:b", Line(Decimal("1.10"), ["x" * 200]))
    await handle.patch(raw=b"\0\xff" * 100, word="w" * 100, any={"[]": [], "{}": {}})
    await handle.remove("lines", "none")
    await handle.patch(count=3)
    await asyncio.wait_for(task, 5)
    assert seen[-1] == await handle.get()
    assert seen[-1].raw == b"\0\xff" * 100


async def test_integers_are_counted_by_the_server_whatever_the_codec(omni: Client) -> None:
    for variant in ("json", "msgpack", "zstd", "all"):
        await omni.customer(variant).state(CLASSES[variant]).patch(count=40)
        assert await omni.customer(variant).state(CLASSES[variant]).increment("count", by=2) == 42
    with pytest.raises(omnistate.InvalidValue, match="encrypted"):
        await omni.customer("ana").state(CLASSES["encrypted"]).increment("count")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
async def test_numbers_that_json_cannot_spell_are_refused(omni: Client, kind: Any, bad: float) -> None:
    handle = omni.customer("ana").state(kind)
    for field, value in (("amount", bad), ("any", bad), ("any", [{"x": bad}])):
        with pytest.raises(omnistate.InvalidValue):
            await handle.patch(**{field: value})
        with pytest.raises(omnistate.InvalidValue):
            await handle.update(lambda state, field=field, value=value: setattr(state, field, value))
    assert not (await handle.read()).exists


def _note(card: Card, key: str, text: str) -> None:
    card.notes[key] = text


SECRET = "4111-1111-1111-1111"


class Card(omnistate.State, encrypted={"number", "notes"}):
    number: str = ""
    notes: dict[str, str] = {}
    holder: str = ""


def document(raw: Redis, tenant: str, customer: str = "ana", name: str = "Card") -> tuple[bytes, dict[bytes, bytes]]:
    key = Keyspace(tenant).customer(customer).key("doc", name)
    return key, raw.hgetall(key)  # type: ignore[return-value]


async def test_what_is_encrypted_is_nowhere_in_clear(omni: Client, raw: Redis, tenant: str) -> None:
    card = omni.customer("ana").state(Card)
    await card.patch(number=SECRET, holder="Ana")
    await card.put("notes", "a", SECRET)
    await card.update(lambda value: setattr(value, "holder", "Ana B"))
    assert await card.get() == Card(number=SECRET, notes={"a": SECRET}, holder="Ana B")
    for key in raw.scan_iter(f"omni:{tenant}:*"):
        kind = raw.type(key)
        found = {b"hash": raw.hgetall, b"set": raw.smembers}.get(kind)
        said = str(found(key) if found else raw.lrange(key, 0, -1) if kind == b"list" else "")
        assert SECRET not in said
        assert base64.b64encode(SECRET.encode()).decode() not in said
    assert "Ana B" in str(document(raw, tenant)[1])


async def test_watchers_follow_through_a_deployment_that_begins_to_encrypt(omni: Client) -> None:
    class Open(omnistate.State, name="Card"):
        number: str = ""
        notes: dict[str, str] = {}
        holder: Any = ""

    ana = omni.customer("ana")
    await ana.state(Open).patch(number="0")
    async with contextlib.aclosing(ana.state(Card).watch()) as new, contextlib.aclosing(ana.state(Open).watch()) as old:

        async def seen() -> list[Any]:
            return [(await anext(watcher)).value for watcher in (new, old)]

        assert await seen() == [Card(number="0"), Open(number="0")]
        await ana.state(Open).patch(number="1")
        assert await seen() == [Card(number="1"), Open(number="1")]
        await ana.state(Card).put("notes", "a", SECRET)
        assert await seen() == [Card(number="1", notes={"a": SECRET}), Open(number="1", notes={"a": SECRET})]
        for lookalike in ({"$sealed": "AAAA"}, {"$sealed": "no base64"}, {"$sealed": 1}):
            await ana.state(Open).patch(holder=lookalike)
            assert (await anext(old)).value.holder == lookalike


@pytest.mark.parametrize("where", ["customer", "field", "entry"])
async def test_a_ciphertext_that_was_moved_is_refused(omni: Client, raw: Redis, tenant: str, where: str) -> None:
    ana = omni.customer("ana").state(Card)
    await ana.patch(number=SECRET, holder="Ana")
    await ana.put("notes", "a", "x")
    key, fields = document(raw, tenant)
    if where == "customer":
        await omni.customer("ben").state(Card).patch(number="1", holder="Ben")
        key = document(raw, tenant, "ben")[0]
        raw.hset(key, "number", fields[b"number"])
        card, bad = omni.customer("ben").state(Card), "number"
    else:
        bad = "number" if where == "field" else "notes:b"
        raw.hset(key, bad, fields[b"notes:a"])
        card = ana
    before = raw.hgetall(key)
    for call in (card.get, card.read, lambda: card.update(lambda value: setattr(value, "holder", "changed"))):
        with pytest.raises(omnistate.SchemaMismatch) as refused:
            await call()  # type: ignore[operator]
        assert bad in refused.value.fields
    assert raw.hgetall(key) == before
    partial = await card.read(partial=True)
    assert partial.unreadable.keys() == {bad}
    assert partial.value.holder in ("Ana", "Ben")


async def test_keys_are_rotated_while_everybody_writes(connect: Any, raw: Redis, tenant: str) -> None:
    old, both, new = (
        Keyring({"old": KEYS["old"]}, current="old"),
        Keyring(KEYS, current="new"),
        Keyring(KEYS, current="new"),
    )
    async with connect(keyring=old) as first:
        await first.customer("ana").state(Card).patch(number=SECRET, holder="Ana")
    async with connect(keyring=Keyring(KEYS, current="old")) as one, connect(keyring=both) as other:

        async def write(client: Client, who: int) -> None:
            for number in range(20):
                await client.customer("ana").state(Card).update(_note, str(who), str(number))

        await asyncio.gather(*(write(client, who) for who, client in enumerate((one, other, one, other))))
        assert (await one.customer("ana").state(Card).get()).notes == {str(who): "19" for who in range(4)}
    async with connect(keyring=Keyring({"new": KEYS["new"]}, current="new")) as late:
        with pytest.raises(omnistate.SchemaMismatch) as missing:
            await late.customer("ana").state(Card).get()
        assert "'old'" in missing.value.fields["number"]
        assert (await late.customer("ana").state(Card).read(partial=True)).value.holder == "Ana"
    async with connect(keyring=new) as late:
        await late.customer("ana").state(Card).update(lambda value: setattr(value, "number", "4242"))
    assert new.uses_current_key(document(raw, tenant)[1][b"number"][1:])
    async with connect() as without:
        with pytest.raises(omnistate.SchemaMismatch, match="cannot be read"):
            await without.customer("ana").state(Card).get()
        with pytest.raises(omnistate.InvalidDeclaration, match="Keyring"):
            await without.customer("ana").state(Card).patch(number="1")


async def test_a_merge_seals_anew_for_the_customer_who_stays(omni: Client) -> None:
    await omni.customer("ben").state(Card).patch(number=SECRET)
    await omni.customer("ana").merge(omni.customer("ben"))
    assert (await omni.customer("ana").state(Card).get()).number == SECRET


@pytest.mark.parametrize("variant", ["msgpack", "zstd", "encrypted", "all"])
async def test_damaged_bytes_are_told_and_nothing_is_overwritten(
    omni: Client, raw: Redis, tenant: str, variant: str
) -> None:
    handle = omni.customer("ana").state(CLASSES[variant])
    value: Any = CLASSES[variant](word="w" * 300, any={"x": ["y" * 100]}, amount=1.5)
    await handle.set(value)
    key, fields = document(raw, tenant, name="Everything")
    good = fields[b"any"]
    for damage in (
        good[:-1],
        good[: len(good) // 2],
        good[:1],
        b"",
        b"\x1f" + good[1:],
        good[:1] + bytes(len(good) - 1),
    ):
        raw.hset(key, "any", damage)
        with pytest.raises(omnistate.SchemaMismatch) as refused:
            await handle.get()
        assert "any" in refused.value.fields
        with pytest.raises(omnistate.SchemaMismatch):
            await handle.update(lambda state: setattr(state, "word", "changed"))
        partial = await handle.read(partial=True)
        assert (partial.value.word, partial.value.any, list(partial.unreadable)) == ("w" * 300, None, ["any"])
        assert raw.hget(key, "any") == damage
    await handle.patch(any="repaired")
    assert (await handle.get()).any == "repaired"


async def test_what_the_keyring_takes_is_checked() -> None:
    for keys, current in (
        ({"a": b"short"}, "a"),
        ({"a": KEYS["old"]}, "b"),
        ({}, "a"),
        ({"": KEYS["old"]}, ""),
        ({"a": 1}, "a"),
    ):
        with pytest.raises(omnistate.InvalidInput):
            Keyring(keys, current=current)  # type: ignore[arg-type]
    assert KEYS["old"].hex() not in repr(Keyring(KEYS, current="old"))


async def test_a_key_service_wraps_the_data_keys(connect: Any) -> None:
    class Service:
        calls = 0

        def wrap(self, data_key: bytes) -> bytes:
            Service.calls += 1
            return bytes(byte ^ 0x5A for byte in data_key)

        unwrap = wrap

    async with connect(keyring=Keyring({"kms": Service()}, current="kms")) as client:
        for number in range(50):
            await client.customer("ana").state(Card).patch(number=str(number))
        assert (await client.customer("ana").state(Card).get()).number == "49"
    assert Service.calls == 1  # one data key for all of them


@pytest.mark.parametrize(
    "options", [{"codec": "yaml"}, {"compress_over": 5}, {"encrypted": "note"}, {"encrypted": {"no"}}, {"indexes": {"no"}},
                {"version": 0}, {"writes": "2"}, {"history": 0}, {"history": "30d"}, {"encrypted": True, "indexes": {"note"}}]
)  # fmt: skip
def test_what_cannot_work_is_refused_at_declaration(options: dict[str, Any]) -> None:
    with pytest.raises(omnistate.InvalidDeclaration):
        schema_of(
            type(omnistate.State)("Bad", (omnistate.State,), {"__annotations__": {"note": str}, "note": ""}, **options)
        )
