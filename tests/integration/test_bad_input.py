"""Hostile ids and values that are too large, against a real server: a clear error, or stored and found again; no loss."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis import Redis

import omnistate
from omnistate import Client
from shop import Cart

KIB = 1024
HOSTILE = ["{}", "{x}", "*", "a\r\nb\x00c", "a:b", "a b", "[a-z]?", "%7B%7D", "..", "~", "é☃\U0001f600", "x" * 256]
REFUSED = ["", "x" * 257, "☃" * 100, "x" * 10_240, "\ud800", "a\udfffb", b"bytes", 7, None]


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_a_hostile_id_is_an_id_like_any_other(omni: Client, raw: Redis, tenant: str, hostile: str) -> None:
    other = omni.customer("ana")
    await other.state(Cart).put("items", "cup", 1)
    customer = await omni.identify(hostile, hostile)
    named = omni.customer(hostile)
    for one in (customer, named):
        await one.state(Cart).put("items", hostile, 2)
        await one.state(Cart).update(Cart.add, hostile)
        assert await one.state(Cart).increment("items", hostile) == 4
        assert (await one.state(Cart).get()).items == {hostile: 4}
    talk = await named.via(hostile, actor=hostile).start_conversation(hostile)
    await talk.say(omnistate.CUSTOMER, "hi")
    await talk.hand_off(hostile, reason=hostile, by="bot")
    assert await omni.queue(hostile).depth() == 1
    ticket = await omni.queue(hostile).claim(hostile)
    assert ticket is not None
    assert (await talk.owner()).name == hostile
    await ticket.say(hostile, hostile)
    assert [message.text for message in await talk.messages()] == ["hi", hostile]
    assert (await other.state(Cart).get()).items == {"cup": 1}
    for key in raw.scan_iter(f"omni:{tenant}:*", count=1000):
        assert key.count(b"{") == key.count(b"}") == 1
        assert not set(key) & set(b"\r\n\x00 *[]?")


@pytest.mark.parametrize("refused", REFUSED)
async def test_what_cannot_be_an_id_is_refused_before_anything_is_sent(omni: Client, refused: Any) -> None:
    async def conversation() -> Any:
        return await omni.customer("ana").start_conversation(refused)

    async def identify() -> Any:
        return await omni.identify("web", refused)

    for call in (conversation, identify):
        with pytest.raises(omnistate.InvalidId):
            await call()
    with pytest.raises(omnistate.InvalidId):
        omni.customer(refused)
    with pytest.raises(omnistate.InvalidId):
        omni.queue(refused)


async def test_a_value_over_the_limit_is_refused_and_nothing_is_lost(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    await cart.patch(note="x" * 200 * KIB)
    version = (await cart.read()).version

    def lengthen(value: Cart) -> None:
        value.note += "y" * 100 * KIB

    with pytest.raises(omnistate.ValueTooLarge) as raised:
        await cart.update(lengthen)
    assert raised.value.limit == 256 * KIB
    with pytest.raises(omnistate.ValueTooLarge):
        await cart.put("items", "k" * 100 * KIB, 1)
    with pytest.raises(omnistate.ValueTooLarge):
        await cart.set(Cart(note="z" * 257 * KIB))
    with pytest.raises(omnistate.ValueTooLarge):
        await cart.patch(note="z" * 257 * KIB)
    kept = await cart.read()
    assert (kept.version, len(kept.value.note)) == (version, 200 * KIB)


async def test_bytes_are_counted_as_they_are_and_not_as_they_were_written(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    for number in range(40):  # 4 MB written in all, 100 KB held
        await cart.patch(note=str(number % 10) * 100 * KIB)
    for number in range(20):
        await cart.put("items", f"{number}-" + "k" * 60 * KIB, 1)
        await cart.remove("items", f"{number}-" + "k" * 60 * KIB)
    assert (await cart.get()).items == {}
    with pytest.raises(omnistate.ValueTooLarge):
        await cart.put("items", "k" * 160 * KIB, 1)
    await cart.put("items", "k" * 140 * KIB, 1)


async def test_one_writer_whose_value_is_too_large_does_not_fail_the_others(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)

    def lengthen(value: Cart) -> None:
        value.note = "x" * 300 * KIB

    calls: list[Any] = [cart.update(Cart.add, "cup") for _ in range(10)]
    calls.insert(5, cart.update(lengthen))
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in done if isinstance(one, BaseException)] == [omnistate.ValueTooLarge]
    value = await cart.get()
    assert (value.items, value.note) == ({"cup": 10}, "")


async def test_a_sum_beyond_what_is_safe_is_refused_and_nothing_is_lost(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    assert await cart.increment("visits", by=2**53 - 1) == 2**53 - 1
    for by in (1, 2**53 - 1):
        with pytest.raises(omnistate.InvalidValue):
            await cart.increment("visits", by=by)
    with pytest.raises(omnistate.InvalidValue):
        await cart.increment("visits", by=2**53)
    assert (await cart.get()).visits == 2**53 - 1
    assert await cart.increment("visits", by=-(2**53 - 1)) == 0
