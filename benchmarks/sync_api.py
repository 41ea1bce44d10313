"""SY: the synchronous API, one thread and eight, against redis-py's synchronous client doing the same work."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import redis

import omnistate.sync as omnistate
import peers
from cart import Cart, a_cart
from harness import ROUNDS, median, server
from peers.work import DAY

THREADS, CUSTOMERS, SECONDS = 8, 1000, 1.5
Call = Callable[[], object]


def rate(call: Call, threads: int) -> float:
    """Calls a second of so many threads."""
    counts = [0] * threads
    end = time.perf_counter() + SECONDS

    def caller(number: int) -> None:
        while time.perf_counter() < end:
            call()
            counts[number] += 1

    began = time.perf_counter()
    callers = [threading.Thread(target=caller, args=(number,)) for number in range(threads)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    return sum(counts) / (time.perf_counter() - began)


def operation(r: redis.Redis, name: str, operation_id: str) -> None:
    """As `peers.mutate`."""
    cart = f"{{{name}}}:cart"
    with r.pipeline(transaction=True) as pipe:
        pipe.hincrby(cart, "cup", 1)
        pipe.hincrby(cart, "version", 1)
        pipe.expire(cart, 7 * DAY)
        pipe.xadd(f"{{{name}}}:log", {"sku": "cup", "by": 1}, maxlen=1000, approximate=True)
        pipe.set(f"{{{name}}}:op:{operation_id}", 1, ex=DAY)
        pipe.publish(f"{{{name}}}:events", "cup")
        pipe.execute()


def update(r: redis.Redis, name: str) -> None:
    """As `peers.update`."""
    key = f"{{{name}}}:doc"
    with r.pipeline(transaction=True) as pipe:
        while True:
            try:
                pipe.watch(key)
                value = peers.decode(pipe.get(key))
                peers.add(value)
                pipe.multi()
                pipe.set(key, peers.encode(value), ex=7 * DAY)
                pipe.xadd(f"{{{name}}}:log", {"doc": "cart"}, maxlen=1000, approximate=True)
                pipe.publish(f"{{{name}}}:events", "changed")
                pipe.execute()
            except redis.WatchError:
                continue
            return


def measure(port: int) -> dict[str, Any]:
    ids, chance = count(), random.Random(1)
    names = [f"customer-{number:012}" for number in range(CUSTOMERS)]
    pool = redis.ConnectionPool(host="127.0.0.1", port=port, max_connections=THREADS + 2)
    r = redis.Redis(connection_pool=pool)
    found: dict[str, list[float]] = {}
    with omnistate.connect(f"redis://127.0.0.1:{port}") as omni:
        carts = [omni.customer(name).state(Cart) for name in names]
        for name, cart in zip(names, carts, strict=True):
            cart.set(a_cart())
            r.set(f"{{{name}}}:doc", peers.encode({"items": a_cart().items, "note": "n" * 700, "visits": 0}))
        works: dict[str, tuple[Call, Call]] = {
            "operation / MULTI": (
                lambda: chance.choice(carts).increment("items", "cup"),
                lambda: operation(r, chance.choice(names), f"op-{next(ids)}"),
            ),
            "update(fn), 1 KB / WATCH": (
                lambda: chance.choice(carts).update(Cart.add, "cup"),
                lambda: update(r, chance.choice(names)),
            ),
            "get(), 1 KB / GET and decode": (
                lambda: chance.choice(carts).get(),
                lambda: peers.decode(r.get(f"{{{chance.choice(names)}}}:doc")),
            ),
        }
        for _ in range(ROUNDS):
            for threads in (1, THREADS):
                for what, (ours, theirs) in works.items():
                    for whose, call in (("", ours), (", redis-py", theirs)):
                        found.setdefault(f"{what}{whose}, {threads}", []).append(rate(call, threads))
    r.close()
    rates = {name: median(values) for name, values in found.items()}
    return {
        "per second": {name: round(value) for name, value in rates.items()},
        "rounds": {name: [round(value) for value in values] for name, values in found.items()},
        "results": [
            {
                "id": "SY",
                "what": f"sync, {threads} thread{'s' if threads > 1 else ''}: {what} by redis-py",
                "value": rates[f"{what}, {threads}"] / rates[f"{what}, redis-py, {threads}"],
                "goal": ">= 1",
                "unit": "x",
            }
            for threads in (1, THREADS)
            for what in works
        ],
    }


def main() -> dict[str, Any]:
    with server() as port:
        return measure(port)


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
