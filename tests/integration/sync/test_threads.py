"""One client in many threads: nothing is lost or mixed up, errors stay with their callers, nothing grows."""

from __future__ import annotations

import contextvars
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis import Redis

import omnistate.sync as omnistate
from machine import primaries
from omnistate.sync import Client
from omnistate.sync._pool import MOST_WIRES
from shop import Cart

THREADS = 24
CALLER: contextvars.ContextVar[int] = contextvars.ContextVar("caller")
SEEN: omnistate.List[int] = omnistate.List(int, name="seen_by_threads")


def together(work: Callable[[int], Any], threads: int = THREADS) -> list[Any]:
    """What so many threads return; the first error is raised."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, range(threads)))


def wires(omni: Client) -> int:
    assert omni._engine is not None
    return sum(len(pool._wires) for pool in omni._engine.link._pools.values())


def test_threads_that_update_one_document_lose_nothing(omni: Client, raw: Redis) -> None:
    cart = omni.customer("ana").state(Cart)
    before = calls(raw)

    def work(number: int) -> list[int]:
        return [cart.update(Cart.add, "cup").result for _ in range(40)]

    results = [one for some in together(work) for one in some]
    assert cart.get().items == {"cup": THREADS * 40}
    assert sorted(results) == list(range(1, THREADS * 40 + 1))  # each has its own
    assert calls(raw) - before < THREADS * 40  # writes were shared


def calls(raw: Redis) -> int:
    return sum(
        int(server.info("commandstats").get("cmdstat_fcall", {"calls": 0})["calls"]) for server in primaries(raw)
    )


def connections(raw: Redis) -> int:
    return sum(len(server.client_list()) for server in primaries(raw))


def test_threads_on_different_documents_get_their_own(omni: Client) -> None:
    def work(number: int) -> None:
        chance = random.Random(number)
        for _ in range(60):
            other = chance.randrange(8)
            cart = omni.customer(f"customer-{other}").state(Cart)
            written = cart.update(Cart.add, f"sku-{other}")
            assert set(written.value.items) == set(cart.get().items) == {f"sku-{other}"}

    together(work)
    total = sum(sum(omni.customer(f"customer-{number}").state(Cart).get().items.values()) for number in range(8))
    assert total == THREADS * 60


def test_threads_that_share_a_write_keep_their_own_error_and_context(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)

    def change(value: Cart, number: int) -> int:
        assert CALLER.get() == number
        if number % 3 == 0:
            raise LookupError(number)
        return value.add(f"sku-{number}")

    def work(number: int) -> object:
        CALLER.set(number)
        try:
            return cart.update(change, number).operation_id
        except LookupError as error:
            return error.args[0]

    for _ in range(10):
        found = together(work)
        assert [one for one in found if isinstance(one, int)] == list(range(0, THREADS, 3))
        assert len({one for one in found if isinstance(one, str)}) == THREADS - len(range(0, THREADS, 3))
    assert cart.get().items == {f"sku-{number}": 10 for number in range(THREADS) if number % 3}


def test_more_threads_than_connections_are_served(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    together(lambda number: [cart.increment("items", "cup") for _ in range(5)], threads=3 * MOST_WIRES)
    assert cart.get().items == {"cup": 15 * MOST_WIRES}
    assert wires(omni) <= MOST_WIRES


def test_connections_and_threads_do_not_grow(omni: Client, connect: Any, raw: Redis) -> None:
    cart, threads = omni.customer("ana").state(Cart), threading.active_count()
    for _ in range(200):
        cart.update(Cart.add, "cup")
    assert wires(omni) == 1
    before = connections(raw)
    for _ in range(10):
        with connect() as other:
            other.customer("ana").state(Cart).get()
        with pytest.raises(omnistate.NotConnected):
            other.customer("ana")
    assert threading.active_count() == threads
    deadline = time.monotonic() + 5
    while connections(raw) > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_client_is_closed_while_others_call(connect: Any, raw: Redis) -> None:
    began = threading.Barrier(THREADS + 1)

    with connect() as omni:
        cart = omni.customer("ana").state(Cart)

        def work(number: int) -> tuple[int, Exception]:
            done = 0
            began.wait()
            while True:
                try:
                    cart.update(Cart.add, "cup") if number % 2 else cart.increment("items", "cup")
                except omnistate.OmnistateError as error:
                    return done, error
                done += 1

        def watch() -> Exception:
            try:
                for _ in cart.watch():
                    pass
            except omnistate.OmnistateError as error:
                return error
            raise AssertionError

        with ThreadPoolExecutor(THREADS + 1) as pool:
            watching = pool.submit(watch)
            workers = [pool.submit(work, number) for number in range(THREADS)]
            began.wait()
            time.sleep(0.1)
            omni.close()
            found = [one.result(5) for one in workers]
            assert isinstance(watching.result(5), omnistate.NotConnected)
    kinds = omnistate.NotConnected | omnistate.AmbiguousWrite | omnistate.StoreUnavailable
    assert all(isinstance(error, kinds) for _, error in found), {repr(error) for _, error in found}
    with connect() as again:
        held = again.customer("ana").state(Cart).get().items["cup"]
    acknowledged = sum(done for done, _ in found)
    assert acknowledged <= held <= acknowledged + sum(isinstance(error, omnistate.AmbiguousWrite) for _, error in found)


def test_a_watcher_in_another_thread_sees_every_change(omni: Client) -> None:
    numbers = omni.customer("ana").collection(SEEN)
    watching, seen = threading.Event(), list[list[int]]()

    def watch() -> None:
        for change in numbers.watch():
            seen.append(change.value)
            watching.set()
            if len(change.value) == 100:
                return

    thread = threading.Thread(target=watch)
    thread.start()
    assert watching.wait(5)
    for number in range(100):
        numbers.append(number)
    thread.join(5)
    assert not thread.is_alive()
    assert seen[-1] == list(range(100))
    assert all(one == list(range(len(one))) for one in seen)


def test_a_worker_is_woken_by_a_put(omni: Client) -> None:
    queue = omni.customer("ana").collection(omnistate.WorkQueue(str, name="for_threads"))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(queue.wait)
        time.sleep(0.05)
        queue.put("x")
        item = waiting.result(5)
        assert item is not None
        assert item.value == "x"


def test_an_outcome_has_its_value_after_the_block(omni: Client) -> None:
    ana = omni.customer("ana")
    with ana.transaction() as tx:
        total = tx.state(Cart).increment("items", "cup", by=3)
        length = tx.collection(SEEN).append(1, 2)
        with pytest.raises(omnistate.InvalidInput):
            total.value  # noqa: B018
    assert (total.value, length.value) == (3, 2)  # type: ignore[attr-defined]


def test_many_are_read_in_few_round_trips(omni: Client, raw: Redis) -> None:
    names = [f"customer-{number}" for number in range(128)]
    for _ in omni.update_many(Cart, lambda cart: cart.add("cup"), names):
        pass
    before = reads(raw)
    found = dict(omni.get_many(Cart, names))
    assert reads(raw) - before < 64
    assert all(one.value.items == {"cup": 1} for one in found.values() if isinstance(one, omnistate.Snapshot))
    assert len(found) == 128


def reads(raw: Redis) -> int:
    """How often the servers have read from a socket."""
    return sum(int(server.info("stats")["total_reads_processed"]) for server in primaries(raw))
