"""Conversations on real servers: messages, one owner, hand-off, claim, and what happens when a step is the last."""

# Written by tools/unasync.py from tests/integration/test_conversation.py: change that one.

from __future__ import annotations

from typing import Any

import pytest
from redis import Redis

import omnistate.sync as omnistate
from omnistate.conversation import _commands as commands
from omnistate.conversation._commands import Entry
from omnistate.store import new_operation_id
from omnistate.sync import CUSTOMER, Client, Conversation, Owner
from shop import Cart


def waiting_talk(omni: Client, name: str = "ana") -> Conversation:
    talk = omni.customer(name).start_conversation("whatsapp")
    talk.say(CUSTOMER, "a person, please")
    talk.hand_off("agents", reason="asked", by="bot")
    return talk


def test_messages_are_in_order_and_paged(omni: Client) -> None:
    talk = omni.customer("ana").start_conversation("whatsapp")
    for number in range(10):
        assert talk.say(CUSTOMER if number % 2 else "bot", f"message {number}") == number
    assert [one.text for one in talk.messages(first=3, limit=2)] == ["message 3", "message 4"]
    assert [one.text for one in talk.messages(first=-2)] == ["message 8", "message 9"]
    assert [one.text for one in talk.messages(first=-3, limit=2)] == ["message 7", "message 8"]
    whole = talk.messages()
    assert [one.role for one in whole[:2]] == ["helper", "customer"]
    assert [one.offset for one in whole] == sorted(one.offset for one in whole)
    assert (talk.status()).messages == 10


def test_only_the_owner_may_answer(omni: Client) -> None:
    talk = omni.customer("ana").start_conversation("whatsapp")
    talk.say("bot", "hello")
    with pytest.raises(omnistate.OwnershipLost) as caught:
        talk.say("maria", "hello")
    assert (caught.value.owner, caught.value.epoch) == ("bot", 1)
    talk.hand_off("agents", reason="asked")
    with pytest.raises(omnistate.OwnershipLost):
        talk.say("bot", "too late")
    talk.say(CUSTOMER, "I may always speak")
    assert [one.text for one in talk.messages()] == ["hello", "I may always speak"]


def test_who_waits_longest_is_first(omni: Client) -> None:
    talks = [waiting_talk(omni, name) for name in ("ana", "ben", "cy")]
    queue = omni.queue("agents")
    assert [one.conversation_id for one in queue.waiting()] == [talk.id for talk in talks]
    assert queue.depth() == 3
    for talk in talks:
        claimed = queue.claim("maria")
        assert claimed is not None
        assert claimed.id == talk.id
    assert queue.claim("maria") is None
    assert queue.depth() == 0


def test_hand_off_by_somebody_else_is_refused_and_leaves_no_entry(omni: Client) -> None:
    talk = omni.customer("ana").start_conversation("web")
    with pytest.raises(omnistate.OwnershipLost):
        talk.hand_off("agents", by="maria")
    assert talk.owner() == Owner("helper", "bot", 1)
    assert omni.queue("agents").depth() == 0


def put_only(omni: Client, talk: Conversation) -> Entry:
    """The first half of a hand-off: the process died before the second."""
    entry = Entry(talk.id, new_operation_id())
    log = omni.keyspace.queue("agents")
    omni.services.link.execute(commands.put(log, "agents", entry, reason="", operation_id=new_operation_id()))
    return entry


def test_a_hand_off_that_died_half_way_is_skipped_and_others_are_served(omni: Client) -> None:
    talk = omni.customer("ana").start_conversation("web")
    put_only(omni, talk)
    other = waiting_talk(omni, "ben")
    claimed = omni.queue("agents").claim("maria")
    assert claimed is not None
    assert claimed.id == other.id
    assert talk.owner() == Owner("helper", "bot", 1)
    assert omni.queue("agents").depth() == 1


def test_an_overdue_half_hand_off_is_cancelled_and_cannot_happen_later(omni: Client, raw: Redis) -> None:
    talk = omni.customer("ana").start_conversation("web")
    entry = put_only(omni, talk)
    waiting = omni.keyspace.queue("agents").key("waiting")
    raw.zincrby(waiting, -60_000, str(entry))
    assert omni.queue("agents").claim("maria") is None
    assert omni.queue("agents").depth() == 0
    late = commands.hand_off(
        talk._keys, "agents", "", entry.token, by=None, channel=None, operation_id=new_operation_id()
    )
    assert omni.services.link.execute(late) is None
    assert talk.owner() == Owner("helper", "bot", 1)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_claim_that_died_is_finished_or_given_on(omni: Client, raw: Redis, steps: int) -> None:
    talk = waiting_talk(omni)
    log, execute = omni.keyspace.queue("agents"), omni.services.link.execute
    entry = execute(commands.lease(log, operation_id=new_operation_id()))
    assert entry is not None
    if steps == 2:
        assert execute(commands.take(talk._keys, "maria", "agents", entry, operation_id="t")) == "ok"
    assert omni.queue("agents").claim("paul") is None  # leased
    raw.zadd(log.key("leased"), {str(entry): 1})  # the lease ends
    claimed = omni.queue("agents").claim("paul")
    assert (claimed is not None) == (steps == 1)
    assert (talk.owner()).name == ("paul" if steps == 1 else "maria")
    assert raw.zcard(log.key("leased")) == raw.zcard(log.key("waiting")) == raw.hlen(log.key("since")) == 0


def test_a_conversation_has_states_of_its_own(omni: Client) -> None:
    talk = omni.customer("ana").start_conversation("web")
    talk.state(Cart).patch(note="slots")
    assert (talk.state(Cart).get()).note == "slots"
    assert (omni.customer("ana").state(Cart).get()).note == ""


def test_a_merged_customers_conversation_goes_on(omni: Client) -> None:
    ana, phone = omni.identify("web", "ana"), omni.identify("whatsapp", "ana")
    talk = phone.start_conversation("whatsapp")
    ana.merge(phone)
    talk.say(CUSTOMER, "still here")
    talk.hand_off("agents")
    assert omni.queue("agents").claim("maria") is not None


@pytest.mark.parametrize("bad", ["", "x", ".x", "a.b.c", "{}.x", "ana.x y", "a" * 300 + ".x", "ana.\ud800"])
def test_what_is_no_conversation_id_is_refused(omni: Client, bad: str) -> None:
    with pytest.raises(omnistate.InvalidInput):
        omni.conversation(bad)


def test_an_unknown_conversation_is_not_found(omni: Client) -> None:
    with pytest.raises(omnistate.ConversationNotFound):
        omni.conversation("ana.doesnotexist").say(CUSTOMER, "x")
    with pytest.raises(omnistate.ConversationNotFound):
        omni.conversation("ana.doesnotexist").messages()


@pytest.mark.parametrize("text", ["x" * 40_000, "\ud800", None])
def test_a_bad_text_is_refused(omni: Client, text: Any) -> None:
    talk = omni.customer("ana").start_conversation("web")
    with pytest.raises(omnistate.InvalidInput):
        talk.say(CUSTOMER, text)
    assert talk.messages() == []
