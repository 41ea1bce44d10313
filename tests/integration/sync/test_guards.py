"""Where the synchronous API refuses to be used, and that an interrupted call disturbs nobody."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

import omnistate as asynchronous
import omnistate.sync as omnistate
from machine import primaries
from omnistate.sync import Client
from shop import Cart


class Interrupted(BaseException):
    """What the signal raises."""


@pytest.fixture
def alarm() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


async def test_a_call_in_a_running_loop_is_refused_at_once(connect: Any, url: str, tenant: str) -> None:
    with pytest.raises(omnistate.CalledInEventLoop, match="import omnistate"), connect():
        pass
    omni = await asyncio.to_thread(connect().__enter__)
    cart = omni.customer("ana").state(Cart)
    for verb in (
        cart.get,
        lambda: cart.update(Cart.add, "cup"),
        lambda: next(cart.watch()),
        lambda: omni.identify("a", "b"),
    ):
        with pytest.raises(omnistate.CalledInEventLoop):
            verb()
    assert await asyncio.to_thread(cart.update, Cart.add, "cup")
    async with asynchronous.connect(url, tenant=tenant) as beside:
        assert (await beside.customer("ana").state(Cart).get()).items == {"cup": 1}
    await asyncio.to_thread(omni.close)


def script(text: str, url: str, tenant: str) -> str:
    """What a process of its own prints."""
    head = f"import os, sys, threading\nimport omnistate.sync as omnistate\nsys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
    head += f"from shop import Cart\nURL, TENANT = {url!r}, {tenant!r}\n"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", head + text], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_a_client_of_the_parent_is_refused_after_a_fork(url: str, tenant: str) -> None:
    said = script(
        """
with omnistate.connect(URL, tenant=TENANT) as omni:
    cart = omni.customer("ana").state(Cart)
    cart.update(Cart.add, "cup")
    if os.fork() == 0:
        for verb in (cart.get, lambda: cart.update(Cart.add, "cup"), lambda: next(cart.watch()), lambda: list(omni.customers())):
            try:
                verb()
            except omnistate.UsedAfterFork as error:
                assert "connect() in the child" in str(error)
            else:
                print("not refused")
        with omnistate.connect(URL, tenant=TENANT) as own:
            own.customer("ana").state(Cart).update(Cart.add, "cup")
        omni.close()
        print("child", flush=True)
        sys.exit()
    os.wait()
    for number in range(20):
        cart.update(Cart.add, "cup")
    print("parent", cart.get().items)
""",
        url,
        tenant,
    )
    assert said == "child\nparent {'cup': 22}\n"


def test_the_interpreter_ends_with_a_client_that_is_open(url: str, tenant: str, data_dir: Path) -> None:
    said = script(
        f"""
omni = omnistate.connect(URL, tenant=TENANT).__enter__()
own = omnistate.connect(data_dir={str(data_dir)!r}).__enter__()
own.customer("ana").state(Cart).update(Cart.add, "cup")
def watch():
    try:
        list(omni.customer("ana").events())
    except omnistate.NotConnected:
        pass
threading.Thread(target=watch, daemon=True).start()
print(own._engine._behind.server.pid, flush=True)
""",
        url,
        tenant,
    )
    with pytest.raises(ProcessLookupError):
        os.kill(int(said), 0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a socket that was being connected
def test_an_interrupted_call_leaves_no_reply_for_the_next(omni: Client, raw: Redis, alarm: None) -> None:
    carts = {number: omni.customer(f"customer-{number}").state(Cart) for number in range(5)}
    for number, cart in carts.items():
        cart.update(Cart.add, f"sku-{number}")
    chance, interrupted = random.Random(1), 0
    for _ in range(150):
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.00002, 0.003))
            end = time.monotonic() + 0.1  # what is raised inside a finalizer, Python drops
            while time.monotonic() < end:
                number = chance.randrange(5)
                assert set(carts[number].get().items) == {f"sku-{number}"}
                assert set(carts[number].update(Cart.add, f"sku-{number}").value.items) == {f"sku-{number}"}
        except Interrupted:
            interrupted += 1
    assert interrupted > 120
    threads = threading.active_count()
    for number, cart in carts.items():
        assert set(cart.get().items) == {f"sku-{number}"}
    assert threading.active_count() == threads
    assert omni._engine is not None
    assert all(len(pool._wires) <= 2 for pool in omni._engine.link._pools.values())


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Raises, as in a terminal; a run in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_a_call_that_waits(omni: Client, raw: Redis, ctrl_c: None) -> None:
    cart = omni.customer("ana").state(Cart)
    cart.update(Cart.add, "cup")
    for server in primaries(raw):
        server.execute_command("CLIENT", "PAUSE", 1500, "ALL")
    began = time.monotonic()
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        cart.get()
    assert time.monotonic() - began < 1
    assert cart.get().items == {"cup": 1}


def test_ctrl_c_ends_a_watch(omni: Client, ctrl_c: None) -> None:
    cart = omni.customer("ana").state(Cart)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        for _ in cart.watch():
            pass
    assert cart.update(Cart.add, "cup").version == 1
