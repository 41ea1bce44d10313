"""Identities, merging, sessions."""

# Written by tools/unasync.py from tests/integration/test_customer.py: change that one.

from __future__ import annotations

import pytest

import omnistate.sync as omnistate
from omnistate.customer._identity import claim
from omnistate.sync import Client
from shop import Cart, Profile


def test_an_identity_leads_to_the_same_customer_again(omni: Client) -> None:
    first = omni.identify("web", "visitor-1")
    assert (omni.identify("web", "visitor-1")).id == first.id
    assert (omni.identify("mobile", "visitor-1")).id != first.id
    assert [(one.channel, one.address) for one in first.identities()] == [("web", "visitor-1")]


def test_an_identity_whose_second_step_was_lost_is_finished_by_the_next_call(omni: Client) -> None:
    key, _ = omni.keyspace.identity("web", "visitor-1")
    omni.services.link.execute(claim(key, "cus_first"))
    found = omni.identify("web", "visitor-1")
    assert found.id == "cus_first"
    assert [one.address for one in found.identities()] == ["visitor-1"]


def test_linking_adds_a_way_to_be_known(omni: Client) -> None:
    ana = omni.identify("web", "visitor-1")
    ana.link("whatsapp", "+447700900123")
    ana.link("whatsapp", "+447700900123")
    assert (omni.identify("whatsapp", "+447700900123")).id == ana.id
    assert len(ana.identities()) == 2


def test_linking_never_merges(omni: Client) -> None:
    ana, ben = omni.identify("web", "ana"), omni.identify("web", "ben")
    with pytest.raises(omnistate.IdentityTaken) as caught:
        ana.link("web", "ben")
    assert caught.value.owner == ben.id
    assert "ben" not in str(caught.value).replace(ben.id, "")


def test_merge_uses_the_classs_own_method_and_moves_identities(omni: Client) -> None:
    ana, phone = omni.identify("web", "visitor-1"), omni.identify("whatsapp", "+447700900123")
    ana.state(Cart).update(Cart.add, "cup", 2)
    phone.state(Cart).update(Cart.add, "cup", 1)
    phone.state(Cart).update(Cart.add, "pot", 1)
    phone.state(Profile).patch(name="Ana")
    ana.merge(phone)
    assert (ana.state(Cart).get()).items == {"cup": 3, "pot": 1}
    assert (ana.state(Profile).get()).name == "Ana"
    assert (omni.identify("whatsapp", "+447700900123")).id == ana.id
    with pytest.raises(omnistate.CustomerMerged) as caught:
        phone.state(Cart).update(Cart.add, "late")
    assert caught.value.into == ana.id
    with pytest.raises(omnistate.CustomerMerged):
        phone.state(Cart).get()


def test_merge_keeps_the_survivors_document_where_the_class_says_nothing(omni: Client) -> None:
    ana, phone = omni.identify("web", "a"), omni.identify("web", "b")
    ana.state(Profile).patch(name="kept")
    phone.state(Profile).patch(name="lost")
    ana.merge(phone)
    assert (ana.state(Profile).get()).name == "kept"


def test_merging_again_changes_nothing(omni: Client) -> None:
    ana, phone = omni.identify("web", "a"), omni.identify("web", "b")
    phone.state(Cart).update(Cart.add, "cup", 2)
    for _ in range(3):
        ana.merge(phone)
    assert (ana.state(Cart).get()).items == {"cup": 2}


@pytest.mark.parametrize("calls_before_the_crash", range(1, 12))
def test_a_merge_that_was_killed_is_finished_by_the_next(omni: Client, calls_before_the_crash: int) -> None:
    ana, phone = omni.identify("web", "a"), omni.identify("web", "b")
    ana.state(Cart).update(Cart.add, "cup", 1)
    phone.state(Cart).update(Cart.add, "cup", 2)
    phone.state(Profile).patch(name="Ana")
    link = omni.services.link
    execute, left = link.execute, calls_before_the_crash

    def die_after(command: object, **options: object) -> object:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return execute(command, **options)  # type: ignore[arg-type]

    link.execute = omni.services.combiner._execute = die_after  # type: ignore[method-assign,assignment]
    try:
        ana.merge(phone)
    except KeyboardInterrupt:
        pass
    finally:
        link.execute = omni.services.combiner._execute = execute  # type: ignore[method-assign]
    ana.merge(phone)
    assert (ana.state(Cart).get()).items == {"cup": 3}
    assert (ana.state(Profile).get()).name == "Ana"
    assert (omni.identify("web", "b")).id == ana.id


def test_a_customer_cannot_be_merged_twice_or_into_itself(omni: Client) -> None:
    ana, ben, cy = [omni.identify("web", name) for name in ("ana", "ben", "cy")]
    ana.merge(ben)
    with pytest.raises(omnistate.CustomerMerged):
        cy.merge(ben)
    with pytest.raises(omnistate.CustomerMerged):
        ben.merge(cy)
    with pytest.raises(omnistate.InvalidInput):
        ana.merge(ana)


def test_events_tell_everything_in_order(omni: Client) -> None:
    ana = omni.identify("web", "ana")
    position = ana.position()
    ana.via("mobile", actor="ana").state(Cart).update(Cart.add, "cup")
    session = ana.start_session("web")
    talk = ana.start_conversation("web")
    talk.say(omnistate.CUSTOMER, "hello")
    session.end()
    kinds = []
    for event in ana.events(after=position):
        kinds.append(event.type)
        if event.type == "session.ended":
            break
    assert kinds == ["state.changed", "session.started", "conversation.started", "message", "session.ended"]
