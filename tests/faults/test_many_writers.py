"""64 writers of one document, in one process and in several; a server killed in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

import omnistate
from machine import raw_client
from omnistate.store import Keyspace
from shop import Cart

WRITER = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
import omnistate
from shop import Cart

async def main(url, tenant, writers, times):
    async with omnistate.connect(url, tenant=tenant) as omni:
        cart = omni.customer("ana").state(Cart)
        async def write():
            for _ in range(times):
                await cart.update(Cart.add, "cup")
        await asyncio.gather(*(write() for _ in range(writers)))

asyncio.run(main(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
"""
TESTS = str(Path(__file__).parent.parent)


def give_turn(raw: Redis, meta: bytes) -> None:
    """The next 50 ms are some other writer's."""
    seconds, microseconds = raw.time()  # type: ignore[misc]
    raw.hset(meta, "turn", f"doc:Cart somebody {seconds * 1000 + microseconds // 1000 + 50}")
    raw.hset(meta, "s", b"0" + raw.hget(meta, "s")[1:])  # type: ignore[index]


async def spawn(url: str, tenant: str, writers: int, times: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, TESTS, url, tenant, str(writers), str(times)
    )


async def test_64_writers_of_one_document_in_one_process(omni: omnistate.Client) -> None:
    cart = omni.customer("ana").state(Cart)

    async def write() -> None:
        for _ in range(1000):
            await cart.update(Cart.add, "cup")

    await asyncio.gather(*(write() for _ in range(64)))
    assert (await cart.get()).items == {"cup": 64_000}


async def test_64_writers_of_one_document_in_four_processes(omni: omnistate.Client, url: str, tenant: str) -> None:
    processes = [await spawn(url, tenant, 16, 1000) for _ in range(4)]
    assert [await process.wait() for process in processes] == [0, 0, 0, 0]
    assert (await omni.customer("ana").state(Cart).get()).items == {"cup": 64_000}


@pytest.mark.parametrize("way", ["set", "update", "transaction"])
async def test_a_write_waits_for_anothers_turn_and_is_not_refused_for_it(
    omni: omnistate.Client, url: str, tenant: str, way: str
) -> None:
    cart, meta = omni.customer("ana").state(Cart), Keyspace(tenant).customer("ana").meta
    await cart.update(Cart.add, "cup")
    seen = await cart.read()

    async def write() -> None:
        if way == "set":
            await cart.set(Cart(items={"pen": 1}), expect=seen)
        elif way == "update":
            await cart.update(lambda value: value.items.update(pen=1))
        else:
            async with omni.customer("ana").transaction() as tx:
                await tx.read(Cart)
                tx.state(Cart).set(Cart(items={"pen": 1}))

    with contextlib.closing(raw_client(url)) as raw:
        give_turn(raw, meta)
        writing, began = asyncio.create_task(write()), time.monotonic()
        while time.monotonic() - began < 0.15:  # somebody else has turn after turn: one lasts for 50 ms
            give_turn(raw, meta)
            await asyncio.sleep(0.005)
        assert not writing.done()
        async with asyncio.timeout(5):
            await writing
    assert (await cart.get()).items.get("pen") == 1


async def test_nothing_acknowledged_is_lost_when_the_server_is_killed(data_dir: Path, tenant: str) -> None:
    """The embedded server is killed five times under load: writers go on, the watcher sees every number once.

    It is `safe`: with `appendfsync everysec` a server whose disk is slow answers before it has written, for up to two seconds.
    """
    async with omnistate.connect(data_dir=data_dir, tenant=tenant, profile="safe") as omni:
        cart = omni.customer("ana").state(Cart)
        acknowledged: list[int] = []
        done = asyncio.Event()

        async def write() -> None:
            while not done.is_set():
                acknowledged.append(await cart.increment("visits"))

        async def watch() -> None:
            seen: int | None = None
            async for change in cart.watch():
                seen = change.value.visits if seen is None else seen + len(change.patches)
                if change.value.note == "end":
                    assert seen == change.value.visits + 1
                    return
                assert seen == change.value.visits  # each increment came once, and none is missing

        watcher = asyncio.create_task(watch())
        writers = [asyncio.create_task(write()) for _ in range(8)]
        server: Any = omni._engine.server
        for _ in range(5):
            target = len(acknowledged) + 300
            while len(acknowledged) < target:
                await asyncio.sleep(0.002)
            os.kill(server.pid, signal.SIGKILL)
        target = len(acknowledged) + 300
        while len(acknowledged) < target:
            await asyncio.sleep(0.002)
        done.set()
        await asyncio.gather(*writers)
        total = (await cart.get()).visits
        assert sorted(acknowledged) == list(range(1, total + 1))
        await cart.patch(note="end")
        await asyncio.wait_for(watcher, 10)


async def test_data_is_there_after_a_restart(data_dir: Path, tenant: str) -> None:
    async with omnistate.connect(data_dir=data_dir, tenant=tenant) as omni:
        await omni.customer("ana").state(Cart).update(Cart.add, "cup")
        position = await omni.customer("ana").position()
    async with omnistate.connect(data_dir=data_dir, tenant=tenant) as omni:
        assert (await omni.customer("ana").state(Cart).get()).items == {"cup": 1}
        assert await omni.customer("ana").position() == position
