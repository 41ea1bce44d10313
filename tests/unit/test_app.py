"""Declarations of actions and apps."""

from __future__ import annotations

from typing import Any

import pytest

import omnistate
from omnistate import App, State
from omnistate.gateway._openapi import openapi
from shop import Cart, Profile


def test_arguments_are_checked_against_the_type_hints() -> None:
    add = App(Cart).actions["Cart.add"]
    assert add.decode(b'{"sku":"cup"}') == {"sku": "cup", "quantity": 1}
    for bad in (
        b"{}",
        b'{"sku":1}',
        b'{"sku":"x","quantity":"y"}',
        b'{"sku":"x","more":1}',
        b"[]",
        b"{",
        b"\xff",
        b"[" * 5000,
    ):
        with pytest.raises(omnistate.InvalidValue, match=r"Cart\.add"):
            add.decode(bad)


def test_an_action_is_for_the_channels_it_names() -> None:
    app = App(Cart)
    app.action("Cart.grant", channel="agent desk")
    with pytest.raises(omnistate.Denied):
        app.action("Cart.grant", channel="web")
    with pytest.raises(omnistate.InvalidInput, match=r"Cart\.add"):
        app.action("Cart.nothing", channel="web")


def declare(**members: Any) -> App:
    return App(type(State)("Wrong", (State,), members))


def test_actions_that_cannot_work_are_told_at_once() -> None:
    @omnistate.action
    async def later(self: Any) -> None: ...

    @omnistate.action
    def untyped(self: Any, sku) -> None: ...  # type: ignore[no-untyped-def]

    @omnistate.action
    def rest(self: Any, *skus: str) -> None: ...

    @omnistate.action
    def unknown(self: Any, sku: Nonsense) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    for function, words in ((later, "async"), (untyped, "type hint"), (rest, "by name"), (unknown, "resolved")):
        with pytest.raises(omnistate.InvalidDeclaration, match=words):
            declare(act=function)
    with pytest.raises(omnistate.InvalidDeclaration, match="set of names"):
        omnistate.action(channels="web")


def test_two_states_of_one_name_are_refused() -> None:
    with pytest.raises(omnistate.InvalidDeclaration, match="two states"):
        App(Cart, type(State)("Other", (State,), {}, name="Cart"))


def test_the_openapi_document_is_made_of_the_classes() -> None:
    document = openapi(App(Cart, Profile, title="shop"))
    assert document["openapi"] == "3.1.0"
    add = document["paths"]["/v1/customers/{customer}/actions/Cart.add"]["post"]
    assert add["summary"] == "Puts something into the cart."
    reference = add["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert document["components"]["schemas"][reference]["required"] == ["sku"]
    assert "/v1/customers/{customer}/states/Profile" in document["paths"]
