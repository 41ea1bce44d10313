"""Generated message classes as state types."""

from __future__ import annotations

import asyncio
import secrets
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

import omnistate
from messages import Cart, Line, NewerCart
from omnistate import Client
from omnistate.state import schema_of
from omnistate.store import Keyspace

omnistate.protobuf(Cart, name="Basin", ttl=timedelta(days=7))
omnistate.protobuf(NewerCart, name="Basin", ttl=timedelta(days=7))
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
LINES = st.builds(lambda quantity, note: Line(quantity=quantity, note=note), st.integers(-(2**31), 2**31 - 1), TEXT)
CARTS = st.fixed_dictionaries(
    {},
    optional={
        "lines": st.dictionaries(TEXT, LINES, max_size=4),
        "flags": st.dictionaries(st.integers(-(2**63), 2**63 - 1), st.booleans(), max_size=3),
        "note": TEXT,
        "total": st.integers(-(2**63), 2**63 - 1),
        "raw": st.binary(max_size=50),
        "tags": st.lists(TEXT, max_size=3),
        "last": LINES,
        "weight": st.floats(allow_nan=False) | st.just(float("nan")),
    },
)


def add(cart: Any, sku: str, quantity: int = 1) -> int:
    cart.lines[sku].quantity += quantity
    return int(cart.lines[sku].quantity)


@settings(max_examples=200, deadline=None)
@given(CARTS, CARTS)
def test_every_message_comes_back_and_follows_by_events(before: dict[str, Any], after: dict[str, Any]) -> None:
    from omnistate.state import Patch
    from omnistate.state._api import Origin, target_of
    from omnistate.state._commands import Held, describe
    from omnistate.state._events import Followed, decode_event

    schema = schema_of(Cart)
    old, new = schema.split(schema.encode(Cart(**before))), schema.split(schema.encode(Cart(**after)))
    assert schema.decode(schema.join(new)).SerializeToString(deterministic=True) == Cart(**after).SerializeToString(
        deterministic=True
    )
    stored = schema.pack(new, b"doc", None)
    assert schema.unpack(stored, b"doc", None) == (new, {})
    patch = Patch(*schema.diff(old, new))
    event = b'{"type":"state.changed","state":"Cart"' + describe(schema, patch, stored) + b',"time":1}'
    reader = Followed(target_of(Keyspace("t").customer("ana"), schema, Origin()), Held(None, old))
    reader.apply(decode_event(event))
    assert schema.decode(reader.encoded()).SerializeToString(deterministic=True) == Cart(**after).SerializeToString(
        deterministic=True
    )


async def test_a_message_is_a_state_as_every_other(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    assert await cart.get() == Cart()
    written = await cart.update(add, "cup", 2)
    assert (written.result, written.value.lines["cup"].quantity) == (2, 2)
    await asyncio.gather(*(cart.update(add, "pot") for _ in range(20)))
    await cart.patch(note="gift", total=7, tags=["a", "b"], last=Line(quantity=1))
    await cart.put("lines", "pan", Line(quantity=3))
    await cart.put("flags", 7, True)
    await cart.remove("lines", "cup")
    expected = Cart(lines={"pot": Line(quantity=20), "pan": Line(quantity=3)}, flags={7: True}, note="gift", total=7,
                    tags=["a", "b"], last=Line(quantity=1))  # fmt: skip
    assert await cart.get() == expected
    await cart.patch(note="", tags=[])
    assert (await cart.get()).note == ""
    assert list((await cart.get()).tags) == []
    stale = await cart.read()
    await cart.set(Cart(note="new"))
    with pytest.raises(omnistate.Conflict):
        await cart.set(Cart(), expect=stale)
    once = [(await cart.update_once("id", add, "cup")).repeated for _ in range(2)]
    assert once == [False, True]
    assert stale.json.startswith(b"{")
    assert await cart.delete()


async def test_writers_of_different_entries_do_not_conflict(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    await asyncio.gather(*(cart.put("lines", f"sku-{number}", Line(quantity=number)) for number in range(50)))
    assert len((await cart.get()).lines) == 50


async def test_watchers_see_messages(omni: Client) -> None:
    cart, seen = omni.customer("ana").state(Cart), []

    async def watch() -> None:
        async for change in cart.watch():
            seen.append(change.value)
            if change.value.note == "end":
                return

    task = asyncio.create_task(watch())
    while not seen:
        await asyncio.sleep(0.001)
    await cart.update(add, "cup", 2)
    await cart.patch(raw=b"\0\xff", weight=float("inf"))
    await cart.remove("lines", "cup")
    await cart.patch(note="end")
    await asyncio.wait_for(task, 5)
    assert seen[-1] == Cart(raw=b"\0\xff", weight=float("inf"), note="end")


async def test_fields_that_an_older_process_does_not_know_stay(omni: Client) -> None:
    new, old = omni.customer("ana").state(NewerCart), omni.customer("ana").state(Cart)
    await new.patch(coupon="SPRING", note="x")
    await old.update(add, "cup")
    await old.patch(note="y")
    assert ((await new.get()).coupon, (await new.get()).note) == ("SPRING", "y")


async def test_bad_input_is_refused(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    for call in (
        lambda: cart.patch(nota="typo"),
        lambda: cart.patch(note=7),
        lambda: cart.patch(lines={}),
        lambda: cart.put("lines", "x", Cart()),
        lambda: cart.put("lines", 7, Line()),
        lambda: cart.put("note", "x", "y"),
        lambda: cart.remove("note", "x"),
        lambda: cart.increment("total"),
        lambda: cart.set(Line()),
    ):
        with pytest.raises(omnistate.InvalidInput):
            await call()  # type: ignore[no-untyped-call]
    assert not (await cart.read()).exists
    for bad in (dict, omnistate.State, Cart()):
        with pytest.raises(omnistate.InvalidDeclaration):
            omnistate.protobuf(bad)  # type: ignore[arg-type]
    with pytest.raises(omnistate.InvalidDeclaration, match="protobuf"):
        omni.customer("ana").state(Line)


async def test_damage_is_told_and_the_rest_is_read(omni: Client, raw: Redis, tenant: str) -> None:
    cart = omni.customer("ana").state(Cart)
    await cart.patch(note="good", total=1)
    key = Keyspace(tenant).customer("ana").key("doc", "Basin")
    raw.hset(key, "total", b"\x04\xff\xff")
    for call in (cart.get, lambda: cart.update(add, "cup")):
        with pytest.raises(omnistate.SchemaMismatch):
            await call()  # type: ignore[operator]
    partial = await cart.read(partial=True)
    assert (partial.value.note, list(partial.unreadable)) == ("good", ["total"])
    assert raw.hget(key, "total") == b"\x04\xff\xff"


async def test_messages_are_compressed_and_encrypted_like_other_values(connect: Any, raw: Redis, tenant: str) -> None:
    sealed = omnistate.protobuf(Cart, name="Sealed", compress_over=100, encrypted={"note"})
    try:
        async with connect(keyring=omnistate.Keyring({"k": secrets.token_bytes(32)}, current="k")) as omni:
            cart = omni.customer("ana").state(sealed)
            await cart.patch(note="secret", raw=b"x" * 5000)
            assert await cart.get() == Cart(note="secret", raw=b"x" * 5000)
            fields = raw.hgetall(Keyspace(tenant).customer("ana").key("doc", "Sealed"))
            assert len(fields[b"raw"]) < 200  # type: ignore[index]
            assert b"secret" not in str(fields).encode()
    finally:
        omnistate.protobuf(Cart, name="Basin", ttl=timedelta(days=7))


async def test_merging_customers_moves_messages(omni: Client) -> None:
    await omni.customer("ben").state(Cart).patch(note="ben's")
    await omni.customer("ana").merge(omni.customer("ben"))
    assert (await omni.customer("ana").state(Cart).get()).note == "ben's"
