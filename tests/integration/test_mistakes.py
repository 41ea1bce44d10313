"""What people get wrong: each mistake is told at once, in words that name the next step, and nothing is stored."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import omnistate
from omnistate import Client, StateHandle
from shop import Cart


async def not_a_function_for_update(cart: Cart) -> None:
    pass


MISTAKES: list[tuple[Callable[[Client, StateHandle[Cart]], Any], type[Exception], str]] = [
    (lambda omni, cart: cart.update(not_a_function_for_update), omnistate.InvalidInput, "must not be async"),
    (
        lambda omni, cart: cart.update(lambda v: v.items.update(x="y")),
        omnistate.InvalidValue,
        "Expected `int`, got `str`",
    ),
    (lambda omni, cart: cart.patch(nte="x"), omnistate.InvalidValue, "did you mean 'note'"),
    (lambda omni, cart: cart.patch(note=3), omnistate.InvalidValue, "Expected `str`, got `int`"),
    (lambda omni, cart: cart.put("note", "a", 1), omnistate.InvalidValue, "not a mapping: use patch"),
    (lambda omni, cart: cart.put("items", "a", "b"), omnistate.InvalidValue, "Expected `int`"),
    (lambda omni, cart: cart.put("items", 3, 1), omnistate.InvalidValue, "must be a str, not int"),
    (lambda omni, cart: cart.increment("note"), omnistate.InvalidValue, "not an integer: use update"),
    (lambda omni, cart: cart.increment("items"), omnistate.InvalidValue, "say which entry"),
    (lambda omni, cart: cart.increment("items", "a", by=1.5), omnistate.InvalidValue, "must be an int"),
    (lambda omni, cart: cart.increment("items", "a", by=True), omnistate.InvalidValue, "must be an int"),
    (lambda omni, cart: cart.increment("visits", operation_id=3), omnistate.InvalidId, "must be a str"),
    (lambda omni, cart: cart.set({"items": {}}), omnistate.InvalidValue, "expected a Cart, got dict"),
    (lambda omni, cart: cart.set(Cart(), expect=3), omnistate.InvalidInput, "ANY, ABSENT, the snapshot"),
    (lambda omni, cart: anext(cart.watch(after="x:1")), omnistate.InvalidInput, "Position.parse"),
    (lambda omni, cart: omni.customer("ana").state(dict), omnistate.InvalidDeclaration, "dict is not a state class"),
    (lambda omni, cart: omni.customer("ana").state(Cart()), omnistate.InvalidDeclaration, "give the class itself"),
    (lambda omni, cart: omni.customer(3), omnistate.InvalidId, "must be a str, not int"),
    (
        lambda omni, cart: omni.customer("ana").start_session("web", idle=3),
        omnistate.InvalidInput,
        "must be a timedelta",
    ),
    (
        lambda omni, cart: omni.customer("ana").start_session("web", idle=timedelta(0)),
        omnistate.InvalidInput,
        "1 second",
    ),
    (lambda omni, cart: omni.customer("ana").merge("ben"), omnistate.InvalidInput, "takes the other customer"),
    (lambda omni, cart: omni.conversation("nonsense"), omnistate.InvalidId, "looks like <customer>"),
    (lambda omni, cart: omnistate.connect("localhost:6379"), omnistate.InvalidInput, "use redis://"),
    (lambda omni, cart: anext(omni.customer("ana").events(after=5)), omnistate.InvalidInput, "Position.parse"),
    (lambda omni, cart: omnistate.connect(keyring={"k": b"x"}), omnistate.InvalidInput, "must be a Keyring, not dict"),
    (lambda omni, cart: omnistate.connect(timeout=5), omnistate.InvalidInput, "timeout=timedelta"),
    (lambda omni, cart: omnistate.connect("redis://x", data_dir="y"), omnistate.InvalidInput, "not both"),
    (lambda omni, cart: omnistate.connect("redis://x").customer("ana"), omnistate.NotConnected, "async with"),
]


@pytest.mark.parametrize(("mistake", "error", "words"), MISTAKES)
async def test_a_mistake_is_told(omni: Client, mistake: Any, error: type[Exception], words: str) -> None:
    cart = omni.customer("ana").state(Cart)
    with pytest.raises(error) as told:
        said = mistake(omni, cart)
        if inspect.isawaitable(said):
            await said
    assert words in str(told.value)
    assert not (await cart.read()).exists


async def test_a_handle_says_that_its_client_is_closed(connect: Callable[..., Client]) -> None:
    async with connect() as omni:
        cart = omni.customer("ana").state(Cart)
        assert "ana" in repr(cart)
        assert omni.url in repr(omni)
    for call in (cart.get(), cart.update(Cart.add, "cup"), cart.increment("visits"), anext(cart.watch())):
        with pytest.raises(omnistate.NotConnected):
            await call
    assert repr(omni) == "<Client not open>"


async def test_a_watcher_is_told_when_its_client_is_closed(connect: Callable[..., Client]) -> None:
    async with connect() as omni:
        changes = omni.customer("ana").state(Cart).watch()
        await anext(changes)
        waiting = asyncio.create_task(anext(changes))
        await asyncio.sleep(0)
    with pytest.raises(omnistate.NotConnected):
        await asyncio.wait_for(waiting, 5)


async def test_two_merges_of_long_ids_are_two_operations(omni: Client) -> None:
    survivor = omni.customer("ana")
    for letter in "bc":
        other = omni.customer("x" * 200 + letter)
        await other.state(Cart).update(Cart.add, letter)
        await survivor.merge(other)
    assert (await survivor.state(Cart).get()).items == {"b": 1, "c": 1}
