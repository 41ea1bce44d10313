"""P3: one caller, one update at a time: p50 against a bare FCALL on the same connection, and against WATCH."""

from __future__ import annotations

import json
from typing import Any

import omnistate
import peers
from harness import ROUNDS, median, run, server, throughput
from omnistate.store import library
from p1_write import Cart, a_cart, caught

SECONDS = 1.5


async def measure(port: int) -> dict[str, Any]:
    found: dict[str, list[float]] = {}
    async with omnistate.connect(f"redis://127.0.0.1:{port}") as omni:
        cart = omni.customer("ana").state(Cart)
        await cart.set(a_cart())
        link: Any = cart._services.link
        increment = await caught(cart.increment("items", "cup", operation_id="again"), link)
        words = (b"FCALL", library().function(increment.function), len(increment.keys), *increment.keys)
        numbers = iter(range(10**9))
        r = peers.client(port, 1)
        await r.set("{ana}:doc", peers.encode({"items": a_cart().items, "note": "n" * 700, "visits": 0}))

        async def bare(_: int) -> None:
            """The server's work and the socket, nothing of ours: what one call costs at least."""
            arguments = list(increment.arguments)
            arguments[1] = f"op:bare.{next(numbers)}"
            await link._node.connection.send(peers.pack(*words, *arguments))

        cases = {
            "operation": lambda _: cart.increment("items", "cup"),
            "update": lambda _: cart.update(Cart.add, "cup"),
            "bare FCALL": bare,
            "WATCH, redis-py": lambda _: peers.update(r, "ana", peers.add),
        }
        for _ in range(ROUNDS):
            for name, call in cases.items():
                _, times = await throughput(call, callers=1, seconds=SECONDS)
                found.setdefault(name, []).append(median(times))
        await r.aclose()
    p50 = {name: median(values) for name, values in found.items()}
    return {
        "p50 us": {name: round(value * 1000, 1) for name, value in p50.items()},
        "rounds": {name: [round(value * 1000, 1) for value in values] for name, values in found.items()},
        "results": [
            {"id": "P3", "what": "one update, p50 / a bare FCALL", "value": p50["update"] / p50["bare FCALL"], "goal": "<= 1.3", "unit": "x"},
            {"id": "P3", "what": "one operation, p50 / a bare FCALL", "value": p50["operation"] / p50["bare FCALL"], "goal": "<= 1.3", "unit": "x"},
            {"id": "P3", "what": "one update, p50 / WATCH by redis-py", "value": p50["update"] / p50["WATCH, redis-py"], "goal": "<= 0.5", "unit": "x"},
        ],
    }  # fmt: skip


def main() -> dict[str, Any]:
    with server() as port:
        found: dict[str, Any] = run(measure(port))
        return found


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
