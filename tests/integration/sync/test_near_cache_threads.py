"""What is kept in this process, read by threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import omnistate.sync as omnistate
from omnistate.sync import Client

Connect = Callable[..., Client]


class Shelf(omnistate.State, near_cache=True):
    books: list[str] = []
    number: int = 0


@pytest.fixture
def other(connect: Connect) -> Iterator[Client]:
    with connect() as client:
        yield client


def keep(omni: Client, handle: omnistate.StateHandle[Shelf]) -> None:
    """Reads until the document comes from memory."""
    deadline = time.monotonic() + 10
    hits = omni.stats().near_cache.hits
    while omni.stats().near_cache.hits == hits:
        assert time.monotonic() < deadline
        handle.get()
        time.sleep(0.002)


def test_reads_come_from_memory_as_copies(omni: Client) -> None:
    shelf = omni.customer("ana").state(Shelf)
    shelf.set(Shelf(books=["one"]))
    keep(omni, shelf)
    misses = omni.stats().near_cache.misses
    shelf.get().books.append("mine")
    assert shelf.get().books == shelf.read().value.books == ["one"]
    assert omni.stats().near_cache.misses == misses
    assert shelf.get(fresh=True).books == ["one"]
    assert omni.stats().near_cache.misses == misses + 1


def test_threads_read_what_any_of_them_wrote(omni: Client, other: Client) -> None:
    shelf, theirs = omni.customer("ana").state(Shelf), other.customer("ana").state(Shelf)
    keep(omni, shelf)
    written, failed = 0, []
    lock = threading.Lock()

    def write() -> None:
        nonlocal written
        for _ in range(50):
            now = shelf.increment("number")
            with lock:
                written = max(written, now)

    def read() -> None:
        seen = 0
        for _ in range(2000):
            floor, now = written, shelf.get().number
            if now < floor or now < seen:
                failed.append((floor, seen, now))
            seen = now

    def write_elsewhere() -> None:
        for _ in range(50):
            theirs.increment("number")

    threads = [threading.Thread(target=work) for work in (write, write, write_elsewhere, read, read, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    deadline = time.monotonic() + 10
    while shelf.get().number != 150:
        assert time.monotonic() < deadline
    keep(omni, shelf)
    assert shelf.get().number == 150


def test_a_closed_client_reads_nothing_from_memory(connect: Connect) -> None:
    with connect() as omni:
        shelf = omni.customer("ana").state(Shelf)
        keep(omni, shelf)
    with pytest.raises(omnistate.NotConnected):
        shelf.get()
    with pytest.raises(omnistate.NotConnected):
        shelf.read()


def test_memory_is_not_read_in_an_event_loop(omni: Client) -> None:
    shelf = omni.customer("ana").state(Shelf)
    keep(omni, shelf)

    async def read() -> None:
        shelf.get()

    with pytest.raises(omnistate.CalledInEventLoop):
        asyncio.run(read())
