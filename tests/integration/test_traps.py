"""What users of neighbouring systems suffered, one test for each trap: it must not happen here."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from redis import Redis

import omnistate
from omnistate import ABSENT, Client
from omnistate.state import Origin, StateHandle
from omnistate.store import Keyspace
from shop import Cart, Profile

HOUR = timedelta(hours=1)


class Session(omnistate.State, ttl=HOUR):
    user: str = ""
    cart: dict[str, int] = {}


class Address(msgspec.Struct):
    """As old code knows it."""

    street: str = ""


def expire(raw: Redis, tenant: str, entry: str) -> None:
    """As if the deadline of a document had passed: nobody has swept yet."""
    meta = Keyspace(tenant).customer("ana").meta
    words = raw.hget(meta, "doc:" + entry).split(b" ")  # type: ignore[union-attr]
    words[0] = b"1".zfill(13)
    raw.hset(meta, "doc:" + entry, b" ".join(words))


async def test_trap_lost_update_by_writing_the_whole_document(omni: Client, connect: Any) -> None:
    async with connect() as other:
        one, two = omni.customer("ana").state(Cart), other.customer("ana").state(Cart)
        await asyncio.gather(
            *(handle.update(Cart.add, f"sku-{who}-{n}") for who, handle in enumerate((one, two)) for n in range(25))
        )
        assert len((await one.get()).items) == 50


@pytest.mark.parametrize("how", ["deleted", "expired"])
async def test_trap_a_stale_writer_brings_back_what_is_gone(omni: Client, raw: Redis, tenant: str, how: str) -> None:
    session = omni.customer("ana").state(Session)
    await session.patch(user="ana")
    stale = await session.read()
    if how == "deleted":
        await session.delete()
    else:
        expire(raw, tenant, "Session")
    for write in (
        lambda: session.set(Session(user="back"), expect=stale),
        lambda: session.delete(expect=stale),
    ):
        with pytest.raises(omnistate.Conflict):
            await write()  # type: ignore[no-untyped-call]
    assert not (await session.read()).exists
    await session.patch(user="ben")  # its successor
    with pytest.raises(omnistate.Conflict):
        await session.set(Session(user="back"), expect=stale)
    assert (await session.get()).user == "ben"


async def test_trap_a_process_that_remembers_a_document_updates_its_successor(
    omni: Client, connect: Any, raw: Redis, tenant: str
) -> None:
    """The memory from which `update` starts must not outlive the document."""
    session = omni.customer("ana").state(Session)
    await session.update(lambda value: value.cart.update(old=1))
    expire(raw, tenant, "Session")
    async with connect() as other:
        await other.customer("ana").state(Session).patch(user="new life")
    await session.update(lambda value: value.cart.update(new=1))
    assert await session.get() == Session(user="new life", cart={"new": 1})


async def test_trap_a_precondition_that_does_not_protect_creation(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    results = await asyncio.gather(
        *(cart.set(Cart(note=str(n)), expect=ABSENT) for n in range(20)), return_exceptions=True
    )
    assert sum(not isinstance(one, Exception) for one in results) == 1
    assert sum(isinstance(one, omnistate.Conflict) for one in results) == 19


async def test_trap_versions_that_begin_again_after_deletion(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    first = await cart.patch(note="x")
    await cart.delete()
    again = await cart.patch(note="y")
    assert again.offset > first.offset
    with pytest.raises(omnistate.Conflict):
        await cart.set(Cart(), expect=first)


async def test_trap_a_key_that_is_left_without_a_time_out(omni: Client, raw: Redis, tenant: str) -> None:
    ana = omni.customer("ana")
    await ana.state(Session).patch(user="x")
    await ana.state(Session).put("cart", "short", 1, ttl=timedelta(minutes=1))
    for declared in (
        omnistate.List(str, name="trap_list", ttl=HOUR),
        omnistate.Set(str, name="trap_set", ttl=HOUR),
        omnistate.SortedSet(str, name="trap_sorted", ttl=HOUR),
    ):
        await (ana.collection(declared).put("x", 1) if declared.kind == "sorted" else _add(ana.collection(declared)))
    await ana.collection(omnistate.Map(str, int, name="trap_map", ttl=HOUR)).put("x", 1, ttl=timedelta(minutes=1))
    await ana.collection(omnistate.WorkQueue(str, name="trap_queue", ttl=HOUR)).put("x")
    await ana.collection(omnistate.Counter(name="trap_counter", ttl=HOUR)).add()
    async with ana.transaction() as tx:
        tx.state(Session).patch(user="y")
    for key in raw.scan_iter(f"omni:{tenant}:*"):
        if not key.endswith(b":agenda"):
            assert raw.pttl(key) > 0, key


def _add(handle: Any) -> Any:
    return handle.append("x") if hasattr(handle, "append") else handle.add("x")


async def test_trap_an_expiry_that_nobody_hears_of_because_nobody_was_listening(
    omni: Client, raw: Redis, tenant: str
) -> None:
    ana = omni.customer("ana")
    await ana.state(Session).patch(user="x")
    before = await ana.position()
    expire(raw, tenant, "Session")
    raw.delete(Keyspace(tenant).customer("ana").key("doc", "Session"))  # the server's own expiry came first, unheard
    raw.zadd(Keyspace(tenant).customer("ana").written[4], {"c.ana": 0})
    assert await omni.sweep() == 1
    async for event in ana.events(after=before):  # a listener that comes later hears of it all the same
        assert event.type == "state.expired"
        break


async def test_trap_a_half_created_document_blocks_its_user(omni: Client, raw: Redis, tenant: str) -> None:
    session = omni.customer("ana").state(Session)
    await session.patch(user="ana")
    await session.put("cart", "old", 1)
    expire(raw, tenant, "Session")
    await session.put("cart", "new", 1)  # a write of one entry after the end
    assert await session.get() == Session(cart={"new": 1})


async def test_trap_a_changed_class_breaks_what_is_live(omni: Client, raw: Redis, tenant: str) -> None:
    await omni.customer("ana").state(Session).patch(user="ana")

    class Changed(omnistate.State, name="Session", ttl=HOUR):
        user: str = ""
        locale: str = "en"
        cart: dict[str, float] = {}

    new = omni.customer("ana").state(Changed)
    assert await new.get() == Changed(user="ana")
    await new.patch(locale="de")
    await omni.customer("ana").state(Session).update(lambda value: value.cart.update(x=1))  # an old process goes on
    assert await new.get() == Changed(user="ana", locale="de", cart={"x": 1})


async def test_trap_a_transaction_without_a_way_back(omni: Client) -> None:
    ana = omni.customer("ana")
    await ana.state(Profile).patch(name="Ana")
    with pytest.raises(omnistate.InvalidValue):
        async with ana.transaction() as tx:
            tx.state(Cart).patch(note="first")
            tx.state(Profile).increment("name")  # refused by the server: it is no integer
    assert not (await ana.state(Cart).read()).exists


async def test_trap_a_write_across_customers_that_is_half_done(omni: Client) -> None:
    with pytest.raises(omnistate.InvalidInput, match="another customer"):
        async with omni.customer("ana").transaction() as tx:
            tx.state(Cart).patch(note="x")
            tx.state(omni.customer("ben").state(Cart)).patch(note="x")
    assert not (await omni.customer("ana").state(Cart).read()).exists


async def test_trap_a_repeated_call_counts_twice(omni: Client) -> None:
    ana = omni.customer("ana")
    points, tags = omnistate.Counter(name="trap_points"), omnistate.List(str, name="trap_log")
    for _ in range(3):
        assert await ana.collection(points).add(5, operation_id="payment-1") == 5
        assert await ana.collection(tags).append("x", operation_id="log-1") == 1
        assert await ana.state(Cart).increment("visits", operation_id="visit-1") == 1


async def test_trap_a_writer_of_old_code_drops_what_new_code_keeps_inside_another_field(omni: Client) -> None:
    class New(omnistate.State, name="Book"):
        addresses: dict[str, dict[str, str]] = {}
        note: str = ""

    class Old(omnistate.State, name="Book"):
        addresses: dict[str, Address] = {}
        note: str = ""

    await omni.customer("ana").state(New).put("addresses", "home", {"street": "A", "city": "B"})
    await omni.customer("ana").state(Old).update(lambda value: setattr(value, "note", "x"))
    async with omni.customer("ana").transaction() as tx:
        (await tx.get(Old)).note = "y"
    assert (await omni.customer("ana").state(New).get()).addresses == {"home": {"street": "A", "city": "B"}}


async def test_a_customer_has_a_bounded_number_of_documents(omni: Client) -> None:
    ana, services = omni.customer("ana"), omni.services
    log = omni.keyspace.customer("ana")

    def of(number: int) -> StateHandle[Session]:
        return StateHandle(services, Session, log, Origin(), ("session", f"s{number}"))

    await asyncio.gather(*(of(number).patch(user="x") for number in range(1000)))
    with pytest.raises(omnistate.QuotaExceeded, match="1,000 documents"):
        await of(1000).patch(user="x")
    with pytest.raises(omnistate.QuotaExceeded):
        await ana.collection(omnistate.Counter(name="trap_one_more")).add()
    await of(5).patch(user="still writable")
    await of(5).delete()
    await of(1000).patch(user="room again")


async def test_a_customer_has_a_bounded_size(omni: Client) -> None:
    log = omni.keyspace.customer("ana")
    big = "x" * 250_000

    def of(number: int) -> StateHandle[Session]:
        return StateHandle(omni.services, Session, log, Origin(), ("session", f"s{number}"))

    for first in range(0, 260, 20):
        await asyncio.gather(*(of(number).patch(user=big) for number in range(first, first + 20)))
    with pytest.raises(omnistate.QuotaExceeded, match="bytes"):
        for number in range(260, 300):
            await of(number).patch(user=big)
    await of(3).delete()
    await of(299).patch(user=big)
