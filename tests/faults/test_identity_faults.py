"""Identities whose clients are killed at every call, whose replies are lost at every call, and what the next caller finds."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest

import omnistate
from dying import Dies, die_at
from machine import SteppedServer
from omnistate import ASSERTED, VERIFIED, ChannelPolicy, Client, Customer
from omnistate.customer._identity import Facts, look
from proxy import Proxy

POLICIES = {"crm": ChannelPolicy(limit=3)}


@pytest.fixture
async def proxy(mortal_valkey: SteppedServer) -> AsyncIterator[Proxy]:
    async with Proxy(mortal_valkey.port) as made:
        yield made


@pytest.fixture
async def omni(mortal_valkey: SteppedServer, tenant: str) -> AsyncIterator[Client]:
    async with omnistate.connect(mortal_valkey.url, tenant=tenant, channels=POLICIES) as client:
        yield client


@pytest.fixture
def dies(proxy: Proxy, mortal_valkey: SteppedServer, tenant: str) -> Dies:
    return partial(die_at, proxy=proxy, server=mortal_valkey, tenant=tenant, channels=POLICIES)


async def record(omni: Client, channel: str, address: str) -> Facts:
    key, _ = omni.keyspace.identity(channel, address)
    return await omni.services.link.execute(look(key))


async def known(customer: Customer) -> dict[tuple[str, str], omnistate.Confidence]:
    return {(one.channel, one.address): one.confidence for one in await customer.identities()}


async def is_at(omni: Client, channel: str, address: str, *people: Customer) -> str:
    """Whose it is once somebody has come with it: the others' lists do not name it, and nothing is left to do."""
    owner = await omni.identify(channel, address)
    facts = await record(omni, channel, address)
    assert (facts.customer, facts.is_settled) == (owner.id, True)
    for one in {customer.id: customer for customer in (*people, owner)}.values():
        assert ((channel, address) in await known(one)) == (one.id == owner.id), one.id
    return owner.id


async def test_identifying_that_is_killed_at_any_call_leaves_one_customer(omni: Client, dies: Dies) -> None:
    for number in itertools.count(1):
        died = await dies(number, lambda client, name=f"n{number}": client.identify("crm", name, proof=VERIFIED))  # type: ignore[misc]
        owner = await is_at(omni, "crm", f"n{number}")
        assert await known(omni.customer(owner)) == {("crm", f"n{number}"): VERIFIED}
        if not died:
            assert number == 4
            return


async def test_proof_that_is_killed_at_any_call_is_in_the_list_after_the_next(omni: Client, dies: Dies) -> None:
    for number in itertools.count(1):
        name = f"n{number}"
        ana = await omni.identify("crm", name)
        died = await dies(number, lambda client, name=name: client.identify("crm", name, proof=VERIFIED))  # type: ignore[misc]
        assert await is_at(omni, "crm", name) == ana.id
        assert await known(ana) == {("crm", name): VERIFIED}
        if not died:
            assert number == 4
            return


async def test_unlinking_that_is_killed_at_any_call_is_finished_by_the_next(omni: Client, dies: Dies) -> None:
    for number, goes_on in itertools.product(range(1, 8), ("identify", "unlink", "link")):
        name = f"{goes_on}-{number}"
        ana, ben = await omni.identify("crm", name), omni.customer(f"ben-{name}")
        died = await dies(number, lambda client, ana=ana, name=name: client.customer(ana.id).unlink("crm", name))  # type: ignore[misc]
        is_moved = (await record(omni, "crm", name)).customer != ana.id
        assert is_moved == (number >= 3 or not died)
        if goes_on == "unlink":
            await ana.unlink("crm", name)
            assert (await known(ana), (await record(omni, "crm", name)).customer) == ({}, "")
        elif goes_on == "link" and is_moved:
            await ben.link("crm", name)
            assert await is_at(omni, "crm", name, ana, ben) == ben.id
        else:
            assert (await is_at(omni, "crm", name, ana) == ana.id) == (not is_moved)
        assert died == (number <= 5)


async def test_taking_that_is_killed_at_any_call_leaves_it_with_one_of_the_two(omni: Client, dies: Dies) -> None:
    seen = set()
    for number in itertools.count(1):
        name = f"n{number}"
        ana, ben = await omni.identify("crm", name), omni.customer(f"ben-{number}")

        async def take(client: Client, ben: Customer = ben, name: str = name) -> None:
            await client.customer(ben.id).link("crm", name, proof=VERIFIED, take=True)

        died = await dies(number, take)
        owner = await is_at(omni, "crm", name, ana, ben)
        seen.add(owner == ben.id)
        assert owner in (ana.id, ben.id)
        await take(omni)
        assert await is_at(omni, "crm", name, ana, ben) == ben.id
        assert await known(ben) == {("crm", name): VERIFIED}
        if not died:
            assert (number, seen) == (8, {True, False})
            return


async def test_signing_out_that_is_killed_at_any_call_leaves_one_or_the_other(omni: Client, dies: Dies) -> None:
    seen = set()
    for number in itertools.count(1):
        name = f"n{number}"
        ana = await omni.identify("crm", f"ana-{number}", proof=VERIFIED)
        await ana.link("web", name)
        died = await dies(number, lambda client, ana=ana, name=name: client.customer(ana.id).sign_out("web", name))  # type: ignore[misc]
        at = (await record(omni, "web", name)).customer
        assert at
        seen.add(at == ana.id)
        assert await is_at(omni, "web", name, ana) == at
        fresh = await ana.sign_out("web", name)
        assert fresh.id != ana.id
        assert at in (ana.id, fresh.id)
        assert await is_at(omni, "web", name, ana, fresh) == fresh.id
        assert await known(fresh) == {("web", name): ASSERTED}
        if not died:
            assert (number, seen) == (8, {True, False})
            return


async def test_a_merge_finds_what_a_killed_call_has_left(omni: Client, dies: Dies) -> None:
    """Unlinking, taking and signing out, killed; then their customers are merged, and only then somebody comes again."""
    works: dict[str, Callable[[Client, Customer, Customer, str], Awaitable[Any]]] = {
        "unlink": lambda client, ana, _, name: client.customer(ana.id).unlink("web", name),
        "sign_out": lambda client, ana, _, name: client.customer(ana.id).sign_out("web", name),
        "take": lambda client, _, ben, name: client.customer(ben.id).link("web", name, proof=VERIFIED, take=True),
    }
    for number, (verb, work) in itertools.product(range(1, 7), works.items()):
        name = f"{verb}-{number}"
        ana, ben, cy = [await omni.identify("crm", f"{who}-{name}") for who in ("ana", "ben", "cy")]
        await ana.link("web", name)
        await dies(number, lambda client, a=ana, b=ben, n=name, w=work: w(client, a, b, n))  # type: ignore[misc]
        before = (await record(omni, "web", name)).customer
        await cy.merge(ana)
        await cy.merge(ben)
        owner = await is_at(omni, "web", name, cy)
        assert (owner == cy.id) == (before in (ana.id, ben.id)), (before, owner)
        assert await known(cy) == {
            **{("crm", f"{who}-{name}"): ASSERTED for who in ("ana", "ben", "cy")},
            **({("web", name): VERIFIED if before == ben.id else ASSERTED} if owner == cy.id else {}),
        }


@pytest.mark.parametrize("call", range(1, 8))
async def test_each_reply_may_be_lost(proxy: Proxy, omni: Client, tenant: str, call: int) -> None:
    async with omnistate.connect(proxy.url, tenant=tenant, channels=POLICIES) as lossy:

        async def losing(work: Awaitable[Any]) -> Any:
            proxy.lose_call = call
            result = await work
            proxy.lose_call = 0
            return result

        ana = await losing(lossy.identify("crm", "ana", proof=VERIFIED))
        ben = await losing(lossy.identify("crm", "ben", proof=VERIFIED))
        assert await losing(ana.link("shop", "17")) is None
        await losing(ana.link("shop", "17", proof=VERIFIED))
        assert await losing(ana.link("web", "tablet")) is None
        assert await losing(ben.link("web", "tablet")) == ana.id
        fresh = await losing(ben.sign_out("web", "tablet"))
        assert await losing(ana.unlink("shop", "17"))
        assert await is_at(omni, "web", "tablet", ana, ben, fresh) == fresh.id
        position = await ana.position()
        assert position.offset == 6  # linked; linked, verified; linked, unlinked; unlinked
        assert await known(ana) == {("crm", "ana"): VERIFIED}


async def test_an_identity_that_does_not_fit_is_nobodys_also_when_its_caller_was_killed(
    omni: Client, dies: Dies
) -> None:
    """The list is full by the time that it is to name the identity."""
    for number in itertools.count(1):
        ana = omni.customer(f"ana-{number}")
        await ana.link("crm", f"{number}-a")
        await ana.link("crm", f"{number}-b")

        async def both(client: Client, ana: Customer = ana, number: int = number) -> None:
            calls = [client.customer(ana.id).link("crm", f"{number}-{name}") for name in ("c", "d")]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert sum(isinstance(one, omnistate.QuotaExceeded) for one in results) == 1

        died = await dies(number, both)
        owners = [await is_at(omni, "crm", f"{number}-{name}", ana) for name in ("c", "d")]
        held = await known(ana)
        assert len(held) == 2 + owners.count(ana.id) <= 3
        if not died:
            return
