"""An erasure that is killed, or whose replies are lost, at every step; and what is left on the disk after it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

import omnistate
from erasable import CHANNELS, KEYRING, Canaries, found, keys_of_tenant, plant, plant_merged
from machine import Server, SteppedServer, raw_client
from omnistate import Client, CustomerErased
from omnistate.customer import erase_customer
from omnistate.ops import Sweeper
from proxy import Proxy
from shop import Cart

WHO = {"actor": "the operator", "reason": "request 4711"}
FUNCTIONS = [b"_erase_begin", b"_erase_read", b"_identity_forget", b"_agenda_queues", b"_queue_forget",
             b"_queue_forget_operations", b"_customer_keys", b"_erase_keys", b"_erase_index", b"_erase_record",
             b"_erase_end"]  # fmt: skip


@pytest.fixture
async def proxy(mortal_valkey: SteppedServer) -> AsyncIterator[Proxy]:
    mortal_valkey.set_clock(timedelta())
    async with Proxy(mortal_valkey.port) as made:
        yield made
    mortal_valkey.set_clock(timedelta())


@pytest.fixture
async def omni(mortal_valkey: Server, tenant: str) -> AsyncIterator[Client]:
    async with omnistate.connect(mortal_valkey.url, tenant=tenant, keyring=KEYRING, channels=CHANNELS) as client:
        yield client


@pytest.fixture
def raw(mortal_valkey: Server) -> Iterator[Redis]:
    client = raw_client(mortal_valkey.url)
    yield client
    client.close()


def nothing_is_left(raw: Redis, tenant: str, word: Canaries) -> bool:
    assert {place: keys for place, keys in found(raw, tenant, word.words).items() if keys} == {}
    assert not [key for key in keys_of_tenant(raw, tenant) if key.endswith(b":erasing")]
    return True


@pytest.mark.parametrize("function", FUNCTIONS)
async def test_a_lost_reply_changes_nothing(
    omni: Client, proxy: Proxy, raw: Redis, tenant: str, function: bytes
) -> None:
    word = Canaries()
    ana = await plant(omni, word)
    await plant_merged(omni, word, ana)
    planned = await ana.erase(**WHO, dry_run=True)
    async with omnistate.connect(proxy.url, tenant=tenant) as lossy:
        await lossy.customer("nobody").position()
        proxy.lose_next_reply_to = function
        done = await lossy.erase(ana.id, **WHO)
        assert proxy.lost == 1
    assert nothing_is_left(raw, tenant, word)
    both = await omni.erasures()
    assert len(both) == 2
    assert done.merged == planned.merged == 1
    assert {kind: sum(one.counts.get(kind, 0) for one in both) for kind in planned.counts} == planned.counts


async def calls_of_an_erasure(omni: Client) -> list[str]:
    """The functions that it calls, in order."""
    word, calls = Canaries(), []
    ana = await plant(omni, word)
    await plant_merged(omni, word, ana)
    flow = erase_customer(omni.keyspace, ana.id, **WHO)
    try:
        command: Any = flow.send(None)
        while True:
            calls.append(command.function)
            command = flow.send(await omni.services.link.execute(command))
    except StopIteration:
        return calls


async def killed(omni: Client, flow: Any, function: str, turn: int) -> bool:
    """Goes on to a function's turn, whose first call is made, and nobody reads its reply. False: it was over before that.

    A server answers a walk over its keys in more pages, or fewer, when it has just made its table larger or smaller.
    """
    command, before, turns = flow.send(None), "", 0
    while True:
        turns += command.function == function != before
        before, reply = command.function, await omni.services.link.execute(command)
        if turns == turn:
            flow.close()
            return True
        try:
            command = flow.send(reply)
        except StopIteration:
            return False


@pytest.mark.parametrize("who_goes_on", ["caller", "sweeper"])
async def test_one_that_was_killed_is_finished(
    omni: Client, raw: Redis, mortal_valkey: SteppedServer, tenant: str, who_goes_on: str
) -> None:
    """Killed after the first of each run of calls of one kind; the server is killed too, now and then."""
    mortal_valkey.set_clock(timedelta())
    calls, reached = await calls_of_an_erasure(omni), set()
    runs = [name for name, _ in itertools.groupby(calls)]
    for number, function in enumerate(runs):
        turn = runs[: number + 1].count(function)
        word, before = Canaries(), len(await omni.erasures())
        ana = await plant(omni, word)
        await plant_merged(omni, word, ana)
        flow = erase_customer(omni.keyspace, ana.id, **WHO)
        if await killed(omni, flow, function, turn):
            reached.add(b"_" + function.encode())
        if number % 8 == 3:
            mortal_valkey.crash()
        with pytest.raises(CustomerErased):
            await ana.state(Cart).patch(note="x")
        if who_goes_on == "caller":
            await ana.erase(actor="another", reason="goes on")
        else:
            mortal_valkey.step_clock(timedelta(seconds=61))
            await Sweeper(omni.services, omni.keyspace).sweep()
        assert nothing_is_left(raw, tenant, word), (function, turn)
        listed = await omni.erasures()
        assert len(listed) == before + 2
        assert {one.actor for one in listed} == {WHO["actor"]}
    assert reached == set(FUNCTIONS)
    mortal_valkey.set_clock(timedelta())


async def test_two_who_erase_at_once_do_it_once(omni: Client, raw: Redis, tenant: str) -> None:
    for _ in range(5):
        word, before = Canaries(), {one.digest for one in await omni.erasures()}
        ana = await plant(omni, word)
        await plant_merged(omni, word, ana)
        planned = await ana.erase(**WHO, dry_run=True)
        done = await asyncio.gather(*(ana.erase(**WHO) for _ in range(3)))
        assert len({one.digest for one in done}) == 1
        new = [one for one in await omni.erasures() if one.digest not in before]
        assert len(new) == 2
        assert {kind: sum(one.counts.get(kind, 0) for one in new) for kind in planned.counts} == planned.counts
        assert nothing_is_left(raw, tenant, word)


async def test_writers_who_go_on_meanwhile_leave_nothing(omni: Client, raw: Redis, tenant: str) -> None:
    word = Canaries()
    ana = await plant(omni, word)
    talk = await ana.start_conversation("web")

    async def write(number: int) -> None:
        turn = 0
        with pytest.raises(CustomerErased):
            while True:
                turn += 1
                await ana.state(Cart).put("items", word(f"written-{number}"), 1)
                await talk.say(omnistate.CUSTOMER, word(f"said-{number}"))
                await ana.link("web", word(f"linked-{number}-{turn}"))
                other = await ana.start_conversation("web")
                await other.hand_off("agents", reason=word(f"waits-{number}"))
                await ana.start_session("web")

    writers = [asyncio.ensure_future(write(number)) for number in range(8)]
    while (await talk.status()).messages < 20:
        await asyncio.sleep(0)
    await ana.erase(**WHO)
    await asyncio.gather(*writers)
    assert nothing_is_left(raw, tenant, word)


async def test_nothing_is_left_in_the_append_only_file_once_it_is_rewritten(
    omni: Client, raw: Redis, tenant: str, mortal_valkey: Server
) -> None:
    word = Canaries()

    def on_disk() -> set[str]:
        directory = Path(raw.config_get("dir")["dir"]) / "appendonlydir"  # type: ignore[index]
        files = [file.read_bytes() for file in directory.iterdir()]
        return {place for place, one in word.words.items() if any(one.encode() in text for text in files)}

    for setting in ("aof-use-rdb-preamble", "rdbcompression"):  # so that words stay words
        raw.config_set(setting, "no")
    ana = await plant(omni, word)
    await plant_merged(omni, word, ana)
    assert on_disk() == set(word.words)
    await ana.erase(**WHO)
    assert on_disk() == set(word.words)  # a server forgets on its disk only when it writes its file anew
    raw.bgrewriteaof()
    async with asyncio.timeout(30):
        while on_disk():
            await asyncio.sleep(0.02)
    mortal_valkey.crash()
    assert nothing_is_left(raw, tenant, word)
    with pytest.raises(CustomerErased):
        await ana.state(Cart).patch(note="x")
