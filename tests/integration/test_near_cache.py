"""Documents that are kept in this process: what is read from memory, and what ends that."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from redis import Redis

import omnistate
from machine import Server
from omnistate import Client
from omnistate.store import Keyspace
from omnistate.store._node import Node
from proxy import Proxy

Connect = Callable[..., Client]


class Basket(omnistate.State, name="Hamper", near_cache=True):
    items: dict[str, int] = {}
    notes: list[str] = []
    visits: int = 0

    def add(self, sku: str) -> None:
        self.items[sku] = self.items.get(sku, 0) + 1


class Badge(omnistate.State, near_cache=True, frozen=True):
    name: str = ""
    roles: tuple[str, ...] = ()


class Fleeting(omnistate.State, near_cache=True, ttl=timedelta(milliseconds=300)):
    number: int = 0


class Plain(omnistate.State):
    number: int = 0


@pytest.fixture
async def other(connect: Connect) -> AsyncIterator[Client]:
    """Another process, as far as the cache is concerned."""
    async with connect() as client:
        yield client


async def eventually(what: Callable[[], Awaitable[Any]], value: object = True) -> None:
    async with asyncio.timeout(10):
        while await what() != value:
            await asyncio.sleep(0.002)


def near(omni: Client) -> omnistate.NearCacheStats:
    return omni.stats().near_cache


async def keep(omni: Client, *handles: omnistate.StateHandle[Any]) -> None:
    """Reads until all of them come from memory."""
    for handle in handles:
        async with asyncio.timeout(10):
            while True:
                hits = near(omni).hits
                await handle.read()
                if near(omni).hits > hits:
                    break
                await asyncio.sleep(0.002)


async def test_what_was_read_is_read_from_memory(omni: Client, raw: Redis) -> None:
    basket = omni.customer("ana").state(Basket)
    await basket.set(Basket(items={"cup": 2}))
    await keep(omni, basket)
    before = near(omni)
    for _ in range(10):
        assert await basket.get() == Basket(items={"cup": 2})
        snapshot = await basket.read()
        assert (snapshot.version, snapshot.value.items) == (1, {"cup": 2})
    after = near(omni)
    assert (after.hits, after.misses) == (before.hits + 20, before.misses)
    assert 0 < after.hit_rate < 1
    assert (after.documents, after.customers) == (1, 1)


async def test_nothing_written_is_kept_too(omni: Client) -> None:
    basket = omni.customer("nobody").state(Basket)
    await keep(omni, basket)
    snapshot = await basket.read()
    assert (snapshot.exists, snapshot.value) == (False, Basket())


async def test_each_reader_has_a_copy_of_its_own(omni: Client) -> None:
    basket = omni.customer("ana").state(Basket)
    await basket.set(Basket(items={"cup": 1}, notes=["gift"]))
    await keep(omni, basket)
    mine = await basket.get()
    mine.items["cup"], mine.visits = 99, 99
    mine.notes.append("mine")
    assert await basket.get() == (await basket.read()).value == Basket(items={"cup": 1}, notes=["gift"])


async def test_what_cannot_be_changed_is_not_copied(omni: Client) -> None:
    badge = omni.customer("ana").state(Badge)
    await badge.set(Badge("Ana", ("admin",)))
    await keep(omni, badge)
    assert await badge.get() is await badge.get()


async def test_a_change_elsewhere_ends_it(omni: Client, other: Client) -> None:
    mine, theirs = (one.customer("ana").state(Basket) for one in (omni, other))
    await keep(omni, mine)
    for number in range(1, 6):
        await theirs.increment("visits")
        await eventually(lambda: visits(mine), number)
        await keep(omni, mine)
    assert near(omni).invalidations == 5
    assert 0 <= near(omni).staleness_p50 <= near(omni).staleness_p99
    await theirs.delete()
    await eventually(lambda: visits(mine), 0)


async def visits(handle: omnistate.StateHandle[Basket]) -> int:
    return (await handle.get()).visits


async def test_other_documents_and_events_do_not(omni: Client, other: Client) -> None:
    ana = other.customer("ana")
    mine, talk = omni.customer("ana").state(Basket), await omni.customer("ana").start_conversation("web")
    of_talk, session = talk.state(Basket), await omni.customer("ana").start_session("web")
    await keep(omni, mine, of_talk)
    await ana.state(Plain).increment("number")
    await ana.via("web").state(Badge).set(Badge("x"))
    await talk.say(omnistate.CUSTOMER, "hello")
    await session.end()
    position = await ana.position()
    await eventually(lambda: positioned(mine, position))
    assert near(omni).documents == 2
    assert near(omni).invalidations == 0
    await other.conversation(talk.id).state(Basket).increment("visits")
    await eventually(lambda: visits(of_talk), 1)
    assert (await mine.read()).version == 0


async def positioned(handle: omnistate.StateHandle[Any], position: omnistate.Position) -> bool:
    """A document from memory is known to be the present one up to the newest event: watching goes on there."""
    return (await handle.read()).position == position


async def test_a_process_reads_what_it_wrote(omni: Client) -> None:
    ana = omni.customer("ana")
    basket = ana.state(Basket)

    async def in_a_transaction(number: int) -> None:
        async with ana.transaction() as tx:
            tx.state(Basket).patch(visits=number)

    async def by_a_durable_handle(number: int) -> None:
        await omni.durable(omnistate.ACCEPTED).customer("ana").state(Basket).patch(visits=number)

    writes: list[Callable[[int], Awaitable[object]]] = [
        lambda number: basket.set(Basket(visits=number)),
        lambda number: basket.patch(visits=number),
        lambda number: basket.update(lambda value: setattr(value, "visits", number)),
        lambda number: basket.update_once(f"once-{number}", lambda value: setattr(value, "visits", number)),
        lambda number: ana.update(lambda value: setattr(value, "visits", number), Basket),
        in_a_transaction,
        by_a_durable_handle,
    ]
    for number, write in enumerate(writes * 3, 1):
        await keep(omni, basket)
        await write(number)
        assert await visits(basket) == number
    assert await basket.increment("visits") == await visits(basket)
    await basket.delete()
    assert await visits(basket) == 0


async def test_fresh_comes_from_the_server(omni: Client, other: Client) -> None:
    mine, theirs = (one.customer("ana").state(Basket) for one in (omni, other))
    for number in range(1, 50):
        await keep(omni, mine)
        await theirs.increment("visits")
        assert (await mine.get(fresh=True)).visits == number
        assert (await mine.read(fresh=True)).value.visits == number


async def test_a_deadline_ends_it_without_an_event(omni: Client) -> None:
    fleeting = omni.customer("ana").state(Fleeting)
    await fleeting.patch(number=7)
    await keep(omni, fleeting)
    assert (await fleeting.get()).number == 7
    async with asyncio.timeout(10):
        while (await fleeting.get()).number == 7:
            await asyncio.sleep(0.002)
    assert not (await fleeting.read(fresh=True)).exists
    await eventually(lambda: count_expirations(omni, fleeting))


async def count_expirations(omni: Client, handle: omnistate.StateHandle[Any]) -> bool:
    await handle.get()
    return near(omni).expirations >= 1  # the last milliseconds may be asked for more than once


async def test_entries_with_deadlines_are_not_kept(omni: Client) -> None:
    basket = omni.customer("ana").state(Basket)
    await keep(omni, basket)
    await basket.put("items", "cup", 1, ttl=timedelta(milliseconds=200))
    async with asyncio.timeout(10):
        while (await basket.get()).items:
            await asyncio.sleep(0.002)


async def test_a_merged_customer_is_told(omni: Client, other: Client) -> None:
    mine = omni.customer("ben").state(Basket)
    await keep(omni, mine)
    await other.customer("ana").merge(other.customer("ben"))
    with pytest.raises(omnistate.CustomerMerged):
        await eventually(lambda: visits(mine), "never")
    with pytest.raises(omnistate.CustomerMerged):
        await mine.get()


async def test_memory_is_bounded_and_what_is_used_stays(connect: Connect, tenant: str, raw: Redis) -> None:
    async with connect(near_cache_bytes=100_000) as omni:
        favourite = omni.customer("favourite").state(Basket)
        await keep(omni, favourite)
        for number in range(200):
            await keep(omni, omni.customer(f"c{number}").state(Basket))
            hits = near(omni).hits
            await favourite.get()
            assert near(omni).hits == hits + 1
        stats = near(omni)
        assert stats.bytes <= 100_000
        assert stats.evictions > 150
        assert stats.documents == stats.customers < 30
        topics = raw.execute_command("PUBSUB SHARDCHANNELS", f"omni:{tenant}:*") if not is_cluster(raw) else []
        assert len(topics) <= stats.customers + 1  # what was dropped is no longer subscribed to


def is_cluster(raw: Redis) -> bool:
    return "RedisCluster" in type(raw).__name__


async def test_no_memory_is_no_cache(connect: Connect) -> None:
    async with connect(near_cache_bytes=0) as omni:
        basket = omni.customer("ana").state(Basket)
        await basket.increment("visits")
        assert await visits(basket) == 1
        assert near(omni) == omnistate.NearCacheStats()


async def test_lost_races_are_counted(omni: Client, other: Client) -> None:
    mine, theirs = (one.customer("ana").state(Basket) for one in (omni, other))
    await asyncio.gather(*(mine.update(Basket.add, "cup") for _ in range(10)))
    await theirs.update(Basket.add, "cup")  # has not seen it yet, so it reads first
    assert omni.stats().updates.conflicts == other.stats().updates.conflicts == 0
    await mine.update(Basket.add, "cup")
    stats = omni.stats().updates
    assert (stats.calls, stats.conflicts) == (11, 1)
    assert 0 < stats.writes < 11  # those that came together shared one
    assert stats.conflict_rate == 1 / (stats.writes + 1)


async def test_encrypted_documents_are_kept_in_the_clear(connect: Connect) -> None:
    class Secret(omnistate.State, near_cache=True, encrypted=True):
        word: str = ""

    keyring = omnistate.Keyring({"a": b"k" * 32}, current="a")
    async with connect(keyring=keyring) as omni:
        secret = omni.customer("ana").state(Secret)
        await secret.set(Secret("sesame"))
        await keep(omni, secret)
        assert (await secret.get()).word == "sesame"


async def test_a_document_that_cannot_be_read_is_told_each_time(omni: Client, other: Client) -> None:
    class Strange(omnistate.State, name="Hamper"):
        visits: str = ""

    mine = omni.customer("ana").state(Basket)
    await keep(omni, mine)
    await other.customer("ana").state(Strange).set(Strange("many"))
    for _ in range(3):
        with pytest.raises(omnistate.SchemaMismatch):
            await mine.get(fresh=True)
    with pytest.raises(omnistate.SchemaMismatch):
        await eventually(lambda: visits(mine), "never")


# When the connection is in doubt


@pytest.fixture
async def proxied(valkey: Server, tenant: str) -> AsyncIterator[tuple[Proxy, Client, Client]]:
    """A client behind a proxy, and one that writes past it."""
    async with (
        Proxy(valkey.port) as proxy,
        omnistate.connect(valkey.url, tenant=tenant) as other,
        omnistate.connect(proxy.url, tenant=tenant) as omni,
    ):
        yield proxy, omni, other


async def test_after_a_lost_connection_nothing_old_is_read(proxied: tuple[Proxy, Client, Client]) -> None:
    proxy, omni, other = proxied
    mine, theirs = (one.customer("ana").state(Basket) for one in (omni, other))
    for number in range(1, 20):
        await keep(omni, mine)
        proxy.cut()
        await theirs.increment("visits")
        await asyncio.sleep(0)  # the end of the connection arrives
        async with asyncio.timeout(10):
            while near(omni).documents:
                await asyncio.sleep(0)
        assert await visits(mine) == number
    assert near(omni).flushes == 19


async def test_a_silent_connection_is_left_within_three_seconds(proxied: tuple[Proxy, Client, Client]) -> None:
    proxy, omni, other = proxied
    mine, theirs = (one.customer("ana").state(Basket) for one in (omni, other))
    await keep(omni, mine)
    proxy.silent = True
    began = asyncio.get_running_loop().time()
    await theirs.increment("visits")
    assert await visits(mine) == 0  # nobody can know yet
    async with asyncio.timeout(10):
        while near(omni).documents:
            await asyncio.sleep(0.01)
    print(f"left after {asyncio.get_running_loop().time() - began:.1f} s")
    reading = asyncio.create_task(visits(mine))
    await asyncio.sleep(0.05)
    assert not reading.done()  # it asks the server, and waits for it
    proxy.silent = False
    assert await reading == 1
    await keep(omni, mine)


async def test_a_gap_is_noticed(proxied: tuple[Proxy, Client, Client], tenant: str, valkey: Server) -> None:
    _, omni, _ = proxied
    mine = omni.customer("ana").state(Basket)
    await mine.increment("visits")
    await keep(omni, mine)
    log = Keyspace(tenant).customer("ana")
    position = (await mine.read()).position
    with Redis(port=valkey.port) as raw:
        raw.execute_command("SPUBLISH", log.topic, f"{position.offset + 3} {position.epoch} {{}}")
    async with asyncio.timeout(10):
        while not near(omni).flushes:
            await asyncio.sleep(0)
    await keep(omni, mine)


async def test_no_reader_sees_a_value_older_than_its_last(url: str, connect: Connect, raw: Redis) -> None:
    """Four processes write and read while connections are cut: versions only grow, and in the end all see the last one."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect()) for _ in range(4)]
        names = ["ana", "ben", "eve"]
        written = dict.fromkeys(names, 0)
        goes_on = True

        async def write(omni: Client) -> None:
            while goes_on:
                name = chance.choice(names)
                now = await omni.customer(name).state(Basket).increment("visits")
                written[name] = max(written[name], now)
                assert await visits(omni.customer(name).state(Basket)) >= now  # what was written here is read here
                await asyncio.sleep(chance.random() * 0.01)

        async def watch(omni: Client) -> None:
            seen = dict.fromkeys(names, 0)
            while goes_on:
                name = chance.choice(names)
                now = await visits(omni.customer(name).state(Basket))
                assert now >= seen[name]
                seen[name] = now
                floor = written[name]
                assert (await omni.customer(name).state(Basket).get(fresh=True)).visits >= floor
                await asyncio.sleep(chance.random() * 0.002)

        tasks = [asyncio.create_task(work(omni)) for omni in clients for work in (write, watch, watch)]
        for _ in range(15):
            await asyncio.sleep(0.05)
            for node in raw.get_primaries() if is_cluster(raw) else [None]:
                where = {} if node is None else {"target_nodes": node}
                for kind in chance.sample(["pubsub", "normal"], chance.randrange(3)):
                    raw.execute_command("CLIENT KILL TYPE", kind, "SKIPME", "yes", **where)
        goes_on = False
        await asyncio.gather(*tasks)
        for omni in clients:
            for name in names:
                handle = omni.customer(name).state(Basket)
                await eventually(lambda handle=handle: visits(handle), (await handle.get(fresh=True)).visits)
                await keep(omni, handle)
        assert sum(near(omni).hits for omni in clients) > 100
        assert sum(near(omni).invalidations for omni in clients) > 10


class Held:
    """Lets reads of the near cache reach the server, and holds what it answers."""

    def __init__(self, omni: Client) -> None:
        self._execute = omni.services.link.execute
        self.answered, self.goes_on = asyncio.Event(), asyncio.Event()
        assert omni.services.near is not None
        omni.services.near._link = self

    async def execute(self, command: Any) -> Any:
        reply = await self._execute(command)
        self.answered.set()
        await self.goes_on.wait()
        return reply


async def test_an_answer_that_a_change_overtakes_is_not_kept(omni: Client, other: Client) -> None:
    mine, theirs = (one.customer("ana").state(Basket) for one in (omni, other))
    await keep(omni, mine)
    held = Held(omni)
    reading = asyncio.create_task(mine.read(fresh=True))
    await held.answered.wait()
    await theirs.increment("visits")
    assert omni.services.near is not None
    await eventually(lambda: followed_to(omni, "ana"), (await other.customer("ana").position()).offset)
    held.goes_on.set()
    assert (await reading).value.visits == 0  # as it was when the server read it
    assert await visits(mine) == 1


async def followed_to(omni: Client, name: str) -> int:
    return omni.services.feed.position(omni.keyspace.customer(name)).offset


async def test_an_answer_that_a_write_of_this_process_overtakes_is_not_kept(
    omni: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = omni.customer("ana").state(Basket)
    await keep(omni, mine)
    monkeypatch.setattr("omnistate.state._near._Log.on_entry", lambda *_: None)  # the event is late
    held = Held(omni)
    reading = asyncio.create_task(mine.read(fresh=True))
    await held.answered.wait()
    await mine.increment("visits")
    held.goes_on.set()
    assert (await reading).value.visits == 0
    assert await visits(mine) == 1


async def test_nothing_is_kept_while_the_log_is_not_followed(
    proxied: tuple[Proxy, Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, omni, other = proxied
    mine, theirs = (one.customer("ana").state(Basket) for one in (omni, other))
    await keep(omni, mine)

    async def refuse(*_: object) -> None:
        raise OSError("no subscriptions for now")

    with monkeypatch.context() as patched:
        patched.setattr("omnistate.store._node.Node.dial", refuse_subscribers(refuse))
        proxy.cut()
        await eventually(lambda: count_documents(omni), 0)
        for number in range(1, 10):
            await theirs.increment("visits")
            assert await visits(mine) == number
        assert near(omni).documents == 0
        assert near(omni).bypassed >= 9
    await keep(omni, mine)


def refuse_subscribers(refuse: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[Any]]:
    dial = Node.dial

    async def choose(node: Node, *, greet: bool = False, stall: float | None = None) -> Any:
        return await (dial(node, greet=greet, stall=stall) if greet else refuse())

    return choose


async def count_documents(omni: Client) -> int:
    return near(omni).documents


async def test_a_log_that_was_lost_is_followed_anew(omni: Client, other: Client, raw: Redis) -> None:
    mine, theirs = (one.customer("ana").state(Basket) for one in (omni, other))
    for _ in range(20):
        await theirs.increment("visits")
    await keep(omni, mine)
    log = omni.keyspace.customer("ana")
    raw.delete(log.meta, log.log, log.key("doc", "Hamper"))  # as a failover to an empty server would
    await theirs.increment("visits")
    await eventually(lambda: visits(mine), 1)
    await keep(omni, mine)
    assert await visits(mine) == 1
