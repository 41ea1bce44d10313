"""What an acknowledged write has survived, and what is said when it has not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

import omnistate
from machine import DURABLE, Server, redis_8_binary
from omnistate import ACCEPTED, SYNCED, Client, replicated
from omnistate.ops import LocalSentinel, Node
from omnistate.store import find_binary
from shop import Cart, Profile

SOON = timedelta(seconds=1.2)


@pytest.fixture
async def omni(sentinel: LocalSentinel, tenant: str) -> AsyncIterator[Client]:
    await sentinel.heal()
    async with omnistate.connect(sentinel.url, tenant=tenant, timeout=SOON) as client:
        yield client


@pytest.fixture
async def replica(sentinel: LocalSentinel, omni: Client) -> AsyncIterator[Node]:
    (node,) = await sentinel.replicas()
    yield node
    node.resume()


async def test_every_verb_waits_for_the_replica(omni: Client, replica: Node) -> None:
    ana = omni.durable(replicated(1)).customer("ana")
    cart, points = ana.state(Cart), ana.collection(omnistate.Counter(name="points"))

    async def transact() -> None:
        async with ana.transaction() as tx:
            tx.state(Cart).patch(note="x")

    verbs = [
        lambda: cart.update(Cart.add, "cup"),
        lambda: cart.put("items", "cup", 1),
        cart.delete,
        lambda: points.add(1),
        lambda: ana.update(lambda cart, profile: setattr(cart, "note", f"{cart.note}y"), Cart, Profile),
        transact,
    ]
    for verb in verbs:
        await verb()
    replica.pause()
    for verb in verbs:
        with pytest.raises(omnistate.DurabilityNotReached) as short:
            await verb()
        assert (short.value.wanted, short.value.reached) == ("replicated(1)", 0)
        assert await omni.outcome(short.value)  # it is there
    await omni.customer("ana").state(Cart).patch(note="accepted")  # others wait for nobody
    replica.resume()
    for verb in verbs:
        await verb()


async def test_a_repeated_write_waits_again(omni: Client, replica: Node) -> None:
    cart = omni.durable(replicated(1)).customer("ana").state(Cart)
    replica.pause()
    for _ in range(3):  # the second and third write nothing, and what is there is not replicated yet
        with pytest.raises(omnistate.DurabilityNotReached):
            await cart.increment("visits", operation_id="visit-1")
    replica.resume()
    assert await cart.increment("visits", operation_id="visit-1") == 1
    assert await cart.increment("visits") == 2


async def test_a_wait_is_made_again_when_the_primary_is_replaced_meanwhile(
    replica: Node, sentinel: LocalSentinel, tenant: str
) -> None:
    async with omnistate.connect(sentinel.url, tenant=tenant, durability=replicated(1)) as omni:
        cart = omni.customer("ana").state(Cart)
        await cart.increment("visits")
        primary = await sentinel.primary()
        replica.pause()
        call = asyncio.create_task(cart.increment("visits"))
        while (await primary.info("clients"))["blocked_clients"] == "0":
            await asyncio.sleep(0.01)
        await primary.ask("REPLICAOF", "127.0.0.1", replica.port)  # which ends the wait with an error
        await primary.ask("REPLICAOF", "NO", "ONE")
        replica.resume()
        assert await call == 2
        assert await cart.increment("visits") == 3


async def test_more_replicas_than_there_are_cannot_confirm(omni: Client) -> None:
    with pytest.raises(omnistate.DurabilityNotReached) as short:
        await omni.durable(replicated(5)).customer("ana").state(Cart).increment("visits")
    assert short.value.reached == 1
    with pytest.raises(omnistate.InvalidInput):
        replicated(0)
    with pytest.raises(omnistate.InvalidInput, match="ACCEPTED, SYNCED or replicated"):
        omni.durable("synced")  # type: ignore[arg-type]


async def test_the_level_is_named_in_the_result(omni: Client) -> None:
    for level, name in ((ACCEPTED, "accepted"), (replicated(1), "replicated(1)")):
        ana = omni.durable(level).customer("ana")
        written = await ana.state(Cart).update(Cart.add, "cup")
        assert (written.durability, str(written.durability)) == (level, name)
        assert (await ana.update(lambda cart: cart.add("pot"), Cart)).durability == level


async def test_writers_of_one_moment_share_a_wait(omni: Client, sentinel: LocalSentinel) -> None:
    safe = omni.durable(replicated(1))
    await safe.customer("ana").state(Cart).increment("visits")
    primary = await sentinel.primary()
    before = int((await primary.info("commandstats"))["cmdstat_wait"].split("calls=")[1].split(",")[0])
    await asyncio.gather(*(safe.customer(f"c{number}").state(Cart).increment("visits") for number in range(200)))
    waits = int((await primary.info("commandstats"))["cmdstat_wait"].split("calls=")[1].split(",")[0]) - before
    assert 1 <= waits <= 20


@pytest.mark.parametrize(
    ("kind", "options", "is_possible"),
    [
        ("valkey", DURABLE, True),
        ("valkey", ("--appendonly", "yes", "--appendfsync", "everysec"), False),
        ("valkey", (), False),
        ("redis_8", ("--appendonly", "yes", "--appendfsync", "everysec"), True),
        ("redis_8", (), False),
    ],
)
async def test_synced_is_promised_only_where_it_is_true(
    kind: str, options: tuple[str, ...], is_possible: bool, tenant: str
) -> None:
    server = Server(find_binary() if kind == "valkey" else redis_8_binary(), *options)
    try:
        async with omnistate.connect(server.url, tenant=tenant, durability=SYNCED) as omni:
            cart = omni.customer("ana").state(Cart)
            if is_possible:
                assert str((await cart.update(Cart.add, "cup")).durability) == "synced"
                server.crash()
                assert (await cart.get()).items == {"cup": 1}
            else:
                with pytest.raises(omnistate.DurabilityUnavailable, match="append"):
                    await cart.update(Cart.add, "cup")
                assert (await cart.get()).items == {}
    finally:
        server.stop()
