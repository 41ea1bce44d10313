"""Where each microsecond of `update(fn)` goes: 1 KB, P1b's class. `python benchmarks/profile_update.py` prints the table.

Each stage is timed alone, on the values that it has in an update, as the best of several runs. The whole is the processor time
of this process for an update on a real server, with 64 callers and with one; what no stage has is the event loop, the
futures, the socket, and the steps between.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from contextvars import copy_context
from time import process_time
from typing import Any

import hiredis

import omnistate
from harness import ROUNDS, median, run, server, throughput
from omnistate.state import schema_of
from omnistate.state._commands import describe, write
from omnistate.state._known import Known, Seen
from omnistate.state._model import Written
from omnistate.state._update import Call
from omnistate.store import ACCEPTED, Position, library, new_operation_id
from p1_write import CALLERS, Cart, a_cart

CUSTOMERS, SECONDS, TIMES = 2_000, 1.0, 5_000
REPLY = b"$14\r\n18 5f3a0000000\r\n"


def stages(target: Any) -> dict[str, Callable[[], object]]:
    """The stages of an update that is stored at the first try, in their order, and one that does nothing."""
    schema, version = schema_of(Cart), Position("5f3a00000000", 17)
    before = schema.decode(schema.encode(a_cart()))
    encoded = schema.encode(before)
    value = schema.copier(before)
    value.add("cup")
    after = schema.encode(value)
    known = Known(schema, version, encoded, None, before)
    patch = known.patch(after, value)
    assert patch is not None
    command = write(target, patch, ids=[new_operation_id()], expect=version)
    function, keys = library().function(command.function), command.keys
    words = (b"FCALL", function, len(keys), *keys, *command.arguments)
    seen, reader, context = Seen(), hiredis.Reader(), copy_context()

    def bookkeeping() -> None:
        seen.take(target.document, schema)
        seen.put(target.document, Known(schema, version, after, None, value))

    def reply() -> object:
        reader.feed(REPLY)
        return reader.gets()

    return {
        "the call: its context and operation id": lambda: Call(lambda cart: cart.add("cup"), new_operation_id()),
        "a private copy for the function": lambda: schema.copier(before),
        "the function, in its context": lambda: context.run(Cart.add, value, "cup"),
        "encode": lambda: schema.encode(value),
        "check the types: decode": lambda: schema.validate(after),
        "compare, encode what changed": lambda: known.patch(after, value),
        "text of the event": lambda: describe(schema, patch, patch.sets),
        "the command, without that text": lambda: write(target, patch, ids=[""], expect=version),
        "pack": lambda: hiredis.pack_command(words),
        "read the reply": reply,
        "its meaning": lambda: command.parse(b"18 5f3a0000000"),
        "remember the document": bookkeeping,
        "what is returned": lambda: Written(schema, after, version, version, None, "", ACCEPTED),
        "": lambda: None,
    }


def time_of(stage: Callable[[], object]) -> float:
    """Microseconds, without the call of the lambda itself."""
    return min(timeit.repeat(stage, number=TIMES, repeat=7)) / TIMES * 1e6


async def measure(port: int) -> dict[str, Any]:
    whole: dict[str, list[float]] = {}
    async with omnistate.connect(f"redis://127.0.0.1:{port}") as omni:
        carts = [omni.customer(f"customer-{number}").state(Cart) for number in range(CUSTOMERS)]
        timed = stages(carts[0].target)
        empty = time_of(timed.pop(""))
        spent = {name: max(time_of(stage) - empty, 0.0) for name, stage in timed.items()}
        spent["the command, without that text"] -= spent["text of the event"]
        for cart in carts:
            await cart.set(a_cart())
        turn = iter(range(10**9))

        async def update(_: int) -> None:
            await carts[next(turn) % CUSTOMERS].update(Cart.add, "cup")

        await throughput(update, callers=CALLERS, seconds=SECONDS)  # each document is known now
        for _ in range(ROUNDS):
            for callers in (CALLERS, 1):
                began = process_time()
                _, times = await throughput(update, callers=callers, seconds=SECONDS)
                whole.setdefault(str(callers), []).append((process_time() - began) / len(times) * 1e6)
    found = {f"{name} callers": median(values) for name, values in whole.items()}
    return {"stages, us": spent, "processor time of an update, us": found}


def main() -> dict[str, Any]:
    with server() as port:
        found: dict[str, Any] = run(measure(port))
    spent, whole = found["stages, us"], found["processor time of an update, us"]
    rest = whole[f"{CALLERS} callers"] - sum(spent.values())
    rows = {**spent, "event loop, futures, socket, and between the stages": rest, f"all, {CALLERS} callers": whole[f"{CALLERS} callers"]}  # fmt: skip
    print("| stage | us |\n|---|---|")
    for name, microseconds in (rows | {"all, one caller at a time": whole["1 callers"]}).items():
        print(f"| {name} | {microseconds:.2f} |")
    return found


if __name__ == "__main__":
    main()
