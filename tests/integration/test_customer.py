"""Identities, merging, sessions."""

from __future__ import annotations

import asyncio

import pytest

import omnistate
from omnistate import Client
from omnistate.customer._identity import claim
from shop import Cart, Profile


async def test_an_identity_leads_to_the_same_customer_again(omni: Client) -> None:
    first = await omni.identify("web", "visitor-1")
    assert (await omni.identify("web", "visitor-1")).id == first.id
    assert (await omni.identify("mobile", "visitor-1")).id != first.id
    assert [(one.channel, one.address) for one in await first.identities()] == [("web", "visitor-1")]


async def test_two_first_messages_at_once_make_one_customer(omni: Client) -> None:
    customers = await asyncio.gather(*(omni.identify("whatsapp", "+447700900123") for _ in range(50)))
    assert len({customer.id for customer in customers}) == 1
    assert len(await customers[0].identities()) == 1


async def test_an_identity_whose_second_step_was_lost_is_finished_by_the_next_call(omni: Client) -> None:
    key, _ = omni.keyspace.identity("web", "visitor-1")
    await omni.services.link.execute(claim(key, "cus_first"))
    found = await omni.identify("web", "visitor-1")
    assert found.id == "cus_first"
    assert [one.address for one in await found.identities()] == ["visitor-1"]


async def test_linking_adds_a_way_to_be_known(omni: Client) -> None:
    ana = await omni.identify("web", "visitor-1")
    await ana.link("whatsapp", "+447700900123")
    await ana.link("whatsapp", "+447700900123")
    assert (await omni.identify("whatsapp", "+447700900123")).id == ana.id
    assert len(await ana.identities()) == 2


async def test_linking_never_merges(omni: Client) -> None:
    ana, ben = await omni.identify("web", "ana"), await omni.identify("web", "ben")
    with pytest.raises(omnistate.IdentityTaken) as caught:
        await ana.link("web", "ben")
    assert caught.value.owner == ben.id
    assert "ben" not in str(caught.value).replace(ben.id, "")


async def test_merge_uses_the_classs_own_method_and_moves_identities(omni: Client) -> None:
    ana, phone = await omni.identify("web", "visitor-1"), await omni.identify("whatsapp", "+447700900123")
    await ana.state(Cart).update(Cart.add, "cup", 2)
    await phone.state(Cart).update(Cart.add, "cup", 1)
    await phone.state(Cart).update(Cart.add, "pot", 1)
    await phone.state(Profile).patch(name="Ana")
    await ana.merge(phone)
    assert (await ana.state(Cart).get()).items == {"cup": 3, "pot": 1}
    assert (await ana.state(Profile).get()).name == "Ana"
    assert (await omni.identify("whatsapp", "+447700900123")).id == ana.id
    with pytest.raises(omnistate.CustomerMerged) as caught:
        await phone.state(Cart).update(Cart.add, "late")
    assert caught.value.into == ana.id
    with pytest.raises(omnistate.CustomerMerged):
        await phone.state(Cart).get()


async def test_merge_keeps_the_survivors_document_where_the_class_says_nothing(omni: Client) -> None:
    ana, phone = await omni.identify("web", "a"), await omni.identify("web", "b")
    await ana.state(Profile).patch(name="kept")
    await phone.state(Profile).patch(name="lost")
    await ana.merge(phone)
    assert (await ana.state(Profile).get()).name == "kept"


async def test_merging_again_changes_nothing(omni: Client) -> None:
    ana, phone = await omni.identify("web", "a"), await omni.identify("web", "b")
    await phone.state(Cart).update(Cart.add, "cup", 2)
    for _ in range(3):
        await ana.merge(phone)
    assert (await ana.state(Cart).get()).items == {"cup": 2}


@pytest.mark.parametrize("calls_before_the_crash", range(1, 12))
async def test_a_merge_that_was_killed_is_finished_by_the_next(omni: Client, calls_before_the_crash: int) -> None:
    ana, phone = await omni.identify("web", "a"), await omni.identify("web", "b")
    await ana.state(Cart).update(Cart.add, "cup", 1)
    await phone.state(Cart).update(Cart.add, "cup", 2)
    await phone.state(Profile).patch(name="Ana")
    link = omni.services.link
    execute, left = link.execute, calls_before_the_crash

    async def die_after(command: object, **options: object) -> object:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return await execute(command, **options)  # type: ignore[arg-type]

    link.execute = omni.services.combiner._execute = die_after  # type: ignore[method-assign,assignment]
    try:
        await ana.merge(phone)
    except KeyboardInterrupt:
        pass
    finally:
        link.execute = omni.services.combiner._execute = execute  # type: ignore[method-assign]
    await ana.merge(phone)
    assert (await ana.state(Cart).get()).items == {"cup": 3}
    assert (await ana.state(Profile).get()).name == "Ana"
    assert (await omni.identify("web", "b")).id == ana.id


async def test_a_customer_cannot_be_merged_twice_or_into_itself(omni: Client) -> None:
    ana, ben, cy = [await omni.identify("web", name) for name in ("ana", "ben", "cy")]
    await ana.merge(ben)
    with pytest.raises(omnistate.CustomerMerged):
        await cy.merge(ben)
    with pytest.raises(omnistate.CustomerMerged):
        await ben.merge(cy)
    with pytest.raises(omnistate.InvalidInput):
        await ana.merge(ana)


async def test_merge_refuses_a_document_whose_class_is_not_here(omni: Client) -> None:
    ana, ben = await omni.identify("web", "ana"), await omni.identify("web", "ben")
    kind = type("Foreign", (omnistate.State,), {"__annotations__": {"word": str}, "word": ""})
    await ben.state(kind).patch(word="x")
    from omnistate.customer import _api

    hidden = {name: one for name, one in _api.imported_classes().items() if name != "Foreign"}
    original, _api.imported_classes = _api.imported_classes, lambda: hidden  # type: ignore[attr-defined]
    try:
        with pytest.raises(omnistate.InvalidInput, match="Foreign"):
            await ana.merge(ben)
    finally:
        _api.imported_classes = original  # type: ignore[attr-defined]
    assert (await ben.state(kind).get()).word == "x"


async def test_events_tell_everything_in_order(omni: Client) -> None:
    ana = await omni.identify("web", "ana")
    position = await ana.position()
    await ana.via("mobile", actor="ana").state(Cart).update(Cart.add, "cup")
    session = await ana.start_session("web")
    talk = await ana.start_conversation("web")
    await talk.say(omnistate.CUSTOMER, "hello")
    await session.end()
    kinds = []
    async for event in ana.events(after=position):
        kinds.append(event.type)
        if event.type == "session.ended":
            break
    assert kinds == ["state.changed", "session.started", "conversation.started", "message", "session.ended"]
