"""A story that calls every server-side function."""

from __future__ import annotations

import tempfile
from datetime import timedelta

import msgspec

import omnistate
from omnistate import Client, Customer, SessionPolicy
from omnistate.collection import imported_collections
from omnistate.ops import Bulk, erase_again, export_all, migrate_all
from shop import Cart

LISTED = omnistate.List(str, name="listed", limit=2, ttl=timedelta(days=1))
MAPPED = omnistate.Map(str, int, name="mapped", ttl=timedelta(days=1))
TAGGED_BRIEFLY = omnistate.Set(str, name="tagged_briefly", ttl=timedelta(days=1))
TAGGED = omnistate.Set(str, name="tagged")
RANKED = omnistate.SortedSet(str, name="ranked", limit=2, keep="highest")
COUNTED = omnistate.Counter(name="counted", ttl=timedelta(days=1))
UNIQUE = omnistate.UniqueCounter(str, name="unique", ttl=timedelta(days=1))
QUEUED = omnistate.WorkQueue(str, name="queued", ttl=timedelta(days=1))


async def every_collection(customer: Customer) -> None:
    """Each kind of collection, and what it leaves for a merge."""
    listed = customer.collection(LISTED)
    await listed.append("a", "b", "c")
    await listed.set(0, "x")
    await listed.pop()
    await listed.slice(0, 1)
    mapped = customer.collection(MAPPED)
    await mapped.update({"a": 1, "b": 2, "c": 3}, ttl=timedelta(hours=1))
    await mapped.put("a", 2)
    await mapped.increment("b")
    await mapped.pop("b")
    assert [one async for one in mapped.items()]
    assert await mapped.get_many("a", "b") == [2, None]
    assert (await mapped.size(), await mapped.all()) == (2, {"a": 2, "c": 3})
    tagged = customer.collection(TAGGED)
    await tagged.add("a", "b")
    await tagged.discard("b")
    assert [one async for one in tagged.members()] == ["a"]
    ranked = customer.collection(RANKED)
    await ranked.update({"a": 1, "b": 2, "c": 3})
    await ranked.increment("b")
    await ranked.pop_lowest()
    assert await ranked.top()
    await customer.collection(COUNTED).add(2)
    await customer.collection(UNIQUE).add("a", customer.id)
    assert await customer.collection(UNIQUE).count() == 2
    queued = customer.collection(QUEUED)
    await queued.put("a", "b", "c", "d")
    await queued.put("later", delay=timedelta(hours=1))
    for item in await queued.claim_many(3):
        await (
            item.done()
            if item.value == "a"
            else item.release()
            if item.value == "b"
            else item.extend(timedelta(hours=1))
        )
    await customer.collection(LISTED).version()
    await customer.collection(QUEUED).size()


async def every_session(omni: Client, ana: Customer) -> None:
    """What can become of a session, and what belongs to one."""
    policy = SessionPolicy(at_most=2)
    oldest, session, other = [
        await ana.start_session("web", idle=timedelta(minutes=5), policy=policy) for _ in range(3)
    ]
    await session.touch()
    await session.state(Cart).patch(note="of the session")
    assert (await session.state(Cart).get()).note == "of the session"
    await session.collection(TAGGED_BRIEFLY).add("a")
    session = await session.rotate()
    await session.reauthenticated()
    assert [one.id for one in await ana.sessions()] == [session.id, other.id]
    async with ana.transaction() as tx:
        tx.require(session)
        tx.touch(session)
        tx.end(other)
    moved = await session.rotate(to=ana.id + "x")
    await moved.load()
    assert not await oldest.end()
    await ana.start_session("mobile")
    await ana.revoke_sessions(channel="mobile")
    await ana.revoke_sessions()
    await omni.sweep()
    assert (await omni.session_endings()).endings


class Remembered(
    omnistate.State, ttl=timedelta(days=1), lifetime=timedelta(days=2), history=5, indexes={"number", omnistate.UPDATED}
):
    number: int = 0
    items: dict[str, int] = {}


class Newer(
    omnistate.State, name="Remembered", version=2, codec="msgpack", compress_over=64, history=5, indexes={"number"}
):
    number: int = 0
    items: dict[str, int] = {}

    @omnistate.migrate(1, 2)
    def nothing(fields: dict[str, object]) -> None:  # noqa: N805
        """Nothing to do."""


async def every_feature(omni: Client, ana: Customer) -> None:
    """History, indexes, versions, transactions, upkeep, and what is done with many customers."""
    kept, before = ana.state(Remembered), await ana.position()
    await kept.patch(number=1)
    async for _ in kept.watch(after=before):
        break
    await kept.increment("number")
    await kept.put("items", "short", 1, ttl=timedelta(milliseconds=1))
    await kept.expire("items", "short", after=timedelta(hours=1))
    await kept.update(lambda value: value.items.update(a=1))
    await kept.history()
    assert [found.customer_id async for found in omni.query(Remembered).where("number", equals=2).idle(timedelta())]
    async with ana.transaction() as tx:
        tx.state(Remembered).increment("number")
        tx.state(Cart).delete()
        tx.collection(COUNTED).add()
    await ana.update(lambda one, other: None, Remembered, Cart)
    bulk = Bulk(omni.services, omni.keyspace)
    await migrate_all(bulk, {"Remembered": Newer}, force=True)
    await ana.state(Newer).undo(actor="nobody", since=await ana.position())
    calls: list[int] = []

    def refuse_the_second_time(value: Newer) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise ValueError("not twice")
        value.number += 1

    for _ in range(2):
        await ana.state(Newer).update_once("once", refuse_the_second_time)
    with tempfile.TemporaryFile() as file:
        await export_all(bulk, file, {"Remembered": Newer, "Cart": Cart}, imported_collections())
    await ana.state(Newer).delete()
    await omni.sweep()


async def every_step_of_an_erasure(omni: Client, who: str) -> None:
    """Of a customer who waits in a queue, and is exported before."""
    cleo = await omni.identify("web", "cleo" + who)
    await cleo.state(Remembered).patch(number=7)
    await (await cleo.start_conversation("web")).hand_off("agents")
    assert [line async for line in cleo.export().lines()]
    for dry_run in (True, False):
        await cleo.erase(actor="everything", reason="a story", dry_run=dry_run)
    gone = [msgspec.structs.replace(one, digest="0" * 40) for one in await omni.erasures()]
    await erase_again(Bulk(omni.services, omni.keyspace), gone)


async def everything(omni: Client, who: str) -> None:
    """At least one call of each function."""
    ana = await omni.identify("web", "ana" + who)
    await ana.link("mobile", "ana" + who)
    await ana.link("mobile", "ana" + who, proof=omnistate.VERIFIED)
    assert await ana.unlink("mobile", "ana" + who)
    cart = ana.state(Cart)
    await cart.update(Cart.add, "cup")
    await cart.increment("visits")
    await cart.remove("items", "cup")
    await cart.set(Cart(note="x"))
    await cart.delete()
    await cart.patch(note="y")
    await every_session(omni, ana)
    talk = await ana.start_conversation("web")
    await talk.say(omnistate.CUSTOMER, "help")
    await talk.messages()
    await talk.hand_off("agents", reason="r", by="bot")
    ticket = await omni.queue("agents").claim("maria")
    assert ticket is not None
    await ticket.say("maria", "hi")
    await omni.queue("agents").waiting()
    ben = await omni.identify("web", "ben" + who)
    await ben.state(Cart).update(Cart.add, "pot")
    for customer in (ana, ben):
        await every_collection(customer)
    await every_feature(omni, ana)
    await ana.merge(ben)
    await ana.identities()
    assert await ana.collection(QUEUED).clear()
    await every_step_of_an_erasure(omni, who)
