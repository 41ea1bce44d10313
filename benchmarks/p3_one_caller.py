"""P3: one caller, one update at a time: p50 against a bare FCALL on the same connection, and against WATCH."""

from __future__ import annotations

import contextlib
import json
import sys
from itertools import count
from typing import Any

import omnistate
import peers
from cart import Cart, a_cart
from harness import ROUNDS, Store, median, opened, run, throughput
from p1_write import caught, spelled

SECONDS = 1.5
OPERATION = "bare-{:012}"


async def measure(store: Store) -> dict[str, Any]:
    found: dict[str, list[float]] = {}
    async with contextlib.AsyncExitStack() as stack:
        omni = await stack.enter_async_context(omnistate.connect(store.url))
        cart = omni.customer("ana").state(Cart)
        await cart.set(a_cart())
        link: Any = cart._services.link
        increment = await caught(cart.increment("items", "cup", operation_id=OPERATION.format(0)), link)
        packed, numbers = peers.pack(*spelled(increment)), count()
        first = OPERATION.format(0).encode()
        assert first in packed

        async def bare(_: int) -> None:
            """The server's work and the socket, nothing of ours: what one call costs at least."""
            operation = OPERATION.format(next(numbers)).encode()  # as long as the one that it replaces
            await link.node_of(increment.keys[0]).connection.send(packed.replace(first, operation))

        cases = {
            "operation": lambda _: cart.increment("items", "cup"),
            "update": lambda _: cart.update(Cart.add, "cup"),
            "bare FCALL": bare,
        }
        for name, one in peers.PEERS.items():
            peer = await stack.enter_async_context(one(store, 1))
            await peer.put("ana", peers.document(a_cart()))
            cases[f"WATCH, {name}"] = lambda _, peer=peer: peer.update("ana", peers.add)
        for _ in range(ROUNDS):
            for name, call in cases.items():
                _, times = await throughput(call, callers=1, seconds=SECONDS)
                found.setdefault(name, []).append(median(times))
    p50 = {name: median(values) for name, values in found.items()}
    return {
        "p50 us": {name: round(value * 1000, 1) for name, value in p50.items()},
        "rounds": {name: [round(value * 1000, 1) for value in values] for name, values in found.items()},
        "results": rows(store, p50),
    }


def rows(store: Store, p50: dict[str, float]) -> list[dict[str, Any]]:
    cases = [("update", "bare FCALL", "<= 1.3"), ("operation", "bare FCALL", "<= 1.3")]
    cases += [("update", f"WATCH, {name}", "<= 0.5" if name == "redis-py" else "") for name in peers.PEERS]
    return [
        {
            "id": store.id("P3"),
            "what": f"one {ours}, p50 / {theirs}",
            "value": p50[ours] / p50[theirs],
            "goal": goal,
            "unit": "x",
        }
        for ours, theirs, goal in cases
    ]


def main(topology: str = "standalone") -> dict[str, Any]:
    with opened(topology) as store:
        found: dict[str, Any] = run(measure(store))
        return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:]), indent=1))
