"""Conversations on real servers: messages, one owner, hand-off, claim, and what happens when a step is the last."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis import Redis

import omnistate
from omnistate import CUSTOMER, Client, Conversation, Owner
from omnistate.conversation import _commands as commands
from omnistate.conversation._commands import Entry
from omnistate.store import new_operation_id
from shop import Cart


async def waiting_talk(omni: Client, name: str = "ana") -> Conversation:
    talk = await omni.customer(name).start_conversation("whatsapp")
    await talk.say(CUSTOMER, "a person, please")
    await talk.hand_off("agents", reason="asked", by="bot")
    return talk


async def test_messages_are_in_order_and_paged(omni: Client) -> None:
    talk = await omni.customer("ana").start_conversation("whatsapp")
    for number in range(10):
        assert await talk.say(CUSTOMER if number % 2 else "bot", f"message {number}") == number
    assert [one.text for one in await talk.messages(first=3, limit=2)] == ["message 3", "message 4"]
    assert [one.text for one in await talk.messages(first=-2)] == ["message 8", "message 9"]
    assert [one.text for one in await talk.messages(first=-3, limit=2)] == ["message 7", "message 8"]
    whole = await talk.messages()
    assert [one.role for one in whole[:2]] == ["helper", "customer"]
    assert [one.offset for one in whole] == sorted(one.offset for one in whole)
    assert (await talk.status()).messages == 10


async def test_the_same_inbound_message_is_stored_once(omni: Client) -> None:
    talk = await omni.customer("ana").start_conversation("whatsapp")
    said = await asyncio.gather(*(talk.say(CUSTOMER, "hello", operation_id="wamid.1") for _ in range(20)))
    assert set(said) == {0}
    assert len(await talk.messages()) == 1


async def test_only_the_owner_may_answer(omni: Client) -> None:
    talk = await omni.customer("ana").start_conversation("whatsapp")
    await talk.say("bot", "hello")
    with pytest.raises(omnistate.OwnershipLost) as caught:
        await talk.say("maria", "hello")
    assert (caught.value.owner, caught.value.epoch) == ("bot", 1)
    await talk.hand_off("agents", reason="asked")
    with pytest.raises(omnistate.OwnershipLost):
        await talk.say("bot", "too late")
    await talk.say(CUSTOMER, "I may always speak")
    assert [one.text for one in await talk.messages()] == ["hello", "I may always speak"]


async def test_a_claim_makes_exactly_one_owner(omni: Client) -> None:
    await waiting_talk(omni)
    claims = await asyncio.gather(*(omni.queue("agents").claim(f"agent-{number}") for number in range(20)))
    winners = [number for number, claimed in enumerate(claims) if claimed is not None]
    assert len(winners) == 1
    talk = claims[winners[0]]
    assert talk is not None
    assert await talk.owner() == Owner("helper", f"agent-{winners[0]}", 3)


async def test_who_waits_longest_is_first(omni: Client) -> None:
    talks = [await waiting_talk(omni, name) for name in ("ana", "ben", "cy")]
    queue = omni.queue("agents")
    assert [one.conversation_id for one in await queue.waiting()] == [talk.id for talk in talks]
    assert await queue.depth() == 3
    for talk in talks:
        claimed = await queue.claim("maria")
        assert claimed is not None
        assert claimed.id == talk.id
    assert await queue.claim("maria") is None
    assert await queue.depth() == 0


async def test_hand_off_by_somebody_else_is_refused_and_leaves_no_entry(omni: Client) -> None:
    talk = await omni.customer("ana").start_conversation("web")
    with pytest.raises(omnistate.OwnershipLost):
        await talk.hand_off("agents", by="maria")
    assert await talk.owner() == Owner("helper", "bot", 1)
    assert await omni.queue("agents").depth() == 0


async def test_bot_and_agent_never_both_own(omni: Client) -> None:
    """The bot answers as fast as it can while an agent takes over: nothing of the bot's comes after the claim."""
    for _ in range(20):
        talk = await omni.customer("ana").start_conversation("web")

        async def bot(talk: Conversation = talk) -> None:
            for number in range(50):
                try:
                    await talk.say("bot", f"answer {number}")
                except omnistate.OwnershipLost:
                    return

        async def take_over(talk: Conversation = talk) -> None:
            await talk.hand_off("agents")
            claimed = await omni.queue("agents").claim("maria")
            assert claimed is not None
            await claimed.say("maria", "mine")

        await asyncio.gather(bot(), take_over())
        authors = [one.author for one in await talk.messages(limit=100)]
        assert authors[-1] == "maria"
        assert authors.count("maria") == 1


async def put_only(omni: Client, talk: Conversation) -> Entry:
    """The first half of a hand-off: the process died before the second."""
    entry = Entry(talk.id, new_operation_id())
    log = omni.keyspace.queue("agents")
    await omni.services.link.execute(commands.put(log, "agents", entry, reason="", operation_id=new_operation_id()))
    return entry


async def test_a_hand_off_that_died_half_way_is_skipped_and_others_are_served(omni: Client) -> None:
    talk = await omni.customer("ana").start_conversation("web")
    await put_only(omni, talk)
    other = await waiting_talk(omni, "ben")
    claimed = await omni.queue("agents").claim("maria")
    assert claimed is not None
    assert claimed.id == other.id
    assert await talk.owner() == Owner("helper", "bot", 1)
    assert await omni.queue("agents").depth() == 1


async def test_an_overdue_half_hand_off_is_cancelled_and_cannot_happen_later(omni: Client, raw: Redis) -> None:
    talk = await omni.customer("ana").start_conversation("web")
    entry = await put_only(omni, talk)
    waiting = omni.keyspace.queue("agents").key("waiting")
    raw.zincrby(waiting, -60_000, str(entry))
    assert await omni.queue("agents").claim("maria") is None
    assert await omni.queue("agents").depth() == 0
    late = commands.hand_off(
        talk._keys, "agents", "", entry.token, by=None, channel=None, operation_id=new_operation_id()
    )
    assert await omni.services.link.execute(late) is None
    assert await talk.owner() == Owner("helper", "bot", 1)


@pytest.mark.parametrize("steps", [1, 2])
async def test_a_claim_that_died_is_finished_or_given_on(omni: Client, raw: Redis, steps: int) -> None:
    talk = await waiting_talk(omni)
    log, execute = omni.keyspace.queue("agents"), omni.services.link.execute
    entry = await execute(commands.lease(log, operation_id=new_operation_id()))
    assert entry is not None
    if steps == 2:
        assert await execute(commands.take(talk._keys, "maria", "agents", entry, operation_id="t")) == "ok"
    assert await omni.queue("agents").claim("paul") is None  # leased
    raw.zadd(log.key("leased"), {str(entry): 1})  # the lease ends
    claimed = await omni.queue("agents").claim("paul")
    assert (claimed is not None) == (steps == 1)
    assert (await talk.owner()).name == ("paul" if steps == 1 else "maria")
    assert raw.zcard(log.key("leased")) == raw.zcard(log.key("waiting")) == raw.hlen(log.key("since")) == 0


async def test_a_conversation_has_states_of_its_own(omni: Client) -> None:
    talk = await omni.customer("ana").start_conversation("web")
    await talk.state(Cart).patch(note="slots")
    assert (await talk.state(Cart).get()).note == "slots"
    assert (await omni.customer("ana").state(Cart).get()).note == ""


async def test_a_merged_customers_conversation_goes_on(omni: Client) -> None:
    ana, phone = await omni.identify("web", "ana"), await omni.identify("whatsapp", "ana")
    talk = await phone.start_conversation("whatsapp")
    await ana.merge(phone)
    await talk.say(CUSTOMER, "still here")
    await talk.hand_off("agents")
    assert await omni.queue("agents").claim("maria") is not None


@pytest.mark.parametrize("bad", ["", "x", ".x", "a.b.c", "{}.x", "ana.x y", "a" * 300 + ".x", "ana.\ud800"])
async def test_what_is_no_conversation_id_is_refused(omni: Client, bad: str) -> None:
    with pytest.raises(omnistate.InvalidInput):
        omni.conversation(bad)


async def test_an_unknown_conversation_is_not_found(omni: Client) -> None:
    with pytest.raises(omnistate.ConversationNotFound):
        await omni.conversation("ana.doesnotexist").say(CUSTOMER, "x")
    with pytest.raises(omnistate.ConversationNotFound):
        await omni.conversation("ana.doesnotexist").messages()


@pytest.mark.parametrize("text", ["x" * 40_000, "\ud800", None])
async def test_a_bad_text_is_refused(omni: Client, text: Any) -> None:
    talk = await omni.customer("ana").start_conversation("web")
    with pytest.raises(omnistate.InvalidInput):
        await talk.say(CUSTOMER, text)
    assert await talk.messages() == []
