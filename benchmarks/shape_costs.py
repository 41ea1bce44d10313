"""What an operation on a collection costs the server, beside the bare Redis command, at 100 and at 10,000 entries.

Server time by `INFO commandstats`: of FCALL, which is the whole function, and of the command. Each operation is versioned,
logged, published and remembered under its operation id; the bare command is none of these.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from redis import Redis

import omnistate
from harness import ROUNDS, median, run, server
from omnistate import Client

SIZES = (100, 10_000)
CALLS = 1500
AT_ONCE = 50
Ours = Callable[[int], Awaitable[object]]
Bare = tuple[str, Callable[[int], tuple[object, ...]]]

MOST = 30_000
ROWS = omnistate.List(str, name="rows", limit=MOST)
MAP = omnistate.Map(str, int, name="map", limit=MOST)
SET = omnistate.Set(str, name="set", limit=MOST)
BOARD = omnistate.SortedSet(str, name="board", limit=MOST)
COUNT = omnistate.Counter(name="count")
SEEN = omnistate.UniqueCounter(str, name="seen")
JOBS = omnistate.WorkQueue(str, name="jobs", limit=MOST)


async def fill(omni: Client, raw: Redis, size: int) -> dict[str, tuple[Ours, Bare]]:
    """Every operation on collections of this size, and its bare command on the same data."""
    ana = omni.customer(f"ana-{size}")
    rows, map_, set_, board = (ana.collection(one) for one in (ROWS, MAP, SET, BOARD))
    count, seen, jobs = ana.collection(COUNT), ana.collection(SEEN), ana.collection(JOBS)
    names = [f"member-{number:06}" for number in range(size)]
    for at in range(0, size, 1000):
        some = names[at : at + 1000]
        await rows.append(*some)
        await map_.update(dict.fromkeys(some, 1))
        await set_.add(*some)
        await board.update({name: float(index) for index, name in enumerate(some)})
        await seen.add(*some)
        await jobs.put(*some)
        raw.rpush("list", *some)
        raw.hset("hash", mapping=dict.fromkeys(some, 1))
        raw.sadd("set", *some)
        raw.zadd("zset", {name: index for index, name in enumerate(some)})
        raw.pfadd("hll", *some)
        raw.rpush("queue", *some)
    await count.add()

    def name(index: int) -> str:
        return names[index * 7919 % size]

    return {
        "List.append": (lambda i: rows.append(name(i)), ("RPUSH", lambda i: ("list", name(i)))),
        "List.popleft": (lambda _: rows.popleft(), ("LPOP", lambda _: ("list",))),
        "List.get(-1)": (lambda _: rows.get(-1), ("LINDEX", lambda _: ("list", -1))),
        "List.slice(0, 10)": (lambda _: rows.slice(0, 10), ("LRANGE", lambda _: ("list", 0, 9))),
        "Map.put": (lambda i: map_.put(name(i), i), ("HSET", lambda i: ("hash", name(i), i))),
        "Map.get": (lambda i: map_.get(name(i)), ("HGET", lambda i: ("hash", name(i)))),
        "Map.increment": (lambda i: map_.increment(name(i)), ("HINCRBY", lambda i: ("hash", name(i), 1))),
        "Map.size": (lambda _: map_.size(), ("HLEN", lambda _: ("hash",))),
        "Set.add": (lambda i: set_.add(f"new-{i}"), ("SADD", lambda i: ("set", f"new-{i}"))),
        "Set.contains": (lambda i: set_.contains(name(i)), ("SISMEMBER", lambda i: ("set", name(i)))),
        "Set.discard": (lambda i: set_.discard(f"new-{i}"), ("SREM", lambda i: ("set", f"new-{i}"))),
        "SortedSet.put": (lambda i: board.put(name(i), i), ("ZADD", lambda i: ("zset", i, name(i)))),
        "SortedSet.increment": (lambda i: board.increment(name(i)), ("ZINCRBY", lambda i: ("zset", 1, name(i)))),
        "SortedSet.rank": (lambda i: board.rank(name(i)), ("ZREVRANK", lambda i: ("zset", name(i)))),
        "SortedSet.top(10)": (lambda _: board.top(10), ("ZREVRANGE", lambda _: ("zset", 0, 9, "WITHSCORES"))),
        "SortedSet.count": (lambda i: board.count(0, i), ("ZCOUNT", lambda i: ("zset", 0, i))),
        "Counter.add": (lambda _: count.add(), ("INCRBY", lambda _: ("counter", 1))),
        "Counter.get": (lambda _: count.get(), ("GET", lambda _: ("counter",))),
        "UniqueCounter.add": (lambda i: seen.add(f"v{i}"), ("PFADD", lambda i: ("hll", f"v{i}"))),
        "UniqueCounter.count": (lambda _: seen.count(), ("PFCOUNT", lambda _: ("hll",))),
        "WorkQueue.put": (lambda i: jobs.put(name(i)), ("RPUSH", lambda i: ("queue", name(i)))),
        "WorkQueue.claim": (lambda _: jobs.claim(), ("LMOVE", lambda _: ("queue", "taken", "LEFT", "RIGHT"))),
    }


def spent(raw: Redis, command: str) -> float:
    """Microseconds of a call."""
    found: Any = raw.info("commandstats").get(f"cmdstat_{command.lower()}")  # type: ignore[union-attr]
    return float(found["usec_per_call"])


async def measure(raw: Redis, ours: Ours, bare: Bare) -> tuple[float, float]:
    raw.config_resetstat()
    for first in range(0, CALLS, AT_ONCE):
        await asyncio.gather(*(ours(index) for index in range(first, first + AT_ONCE)))
    of_function = spent(raw, "fcall")
    raw.config_resetstat()
    command, arguments = bare
    with raw.pipeline(transaction=False) as pipeline:
        for index in range(CALLS):
            pipeline.execute_command(command, *arguments(index))
        pipeline.execute()
    return of_function, spent(raw, command)


async def all_rounds(port: int) -> dict[str, dict[int, tuple[float, float]]]:
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for size in SIZES:
        rounds: dict[str, list[tuple[float, float]]] = {}
        for number in range(max(ROUNDS // 2, 1)):
            raw = Redis(port=port)
            raw.flushall()
            async with omnistate.connect(f"redis://127.0.0.1:{port}", tenant=f"t{size}-{number}") as omni:
                for name, (ours, bare) in (await fill(omni, raw, size)).items():
                    rounds.setdefault(name, []).append(await measure(raw, ours, bare))
            raw.close()
        for name, pairs in rounds.items():
            found.setdefault(name, {})[size] = (median([a for a, _ in pairs]), median([b for _, b in pairs]))
    return found


def main() -> dict[str, Any]:
    with server() as port:
        found = run(all_rounds(port))
    small, large = SIZES
    lines = [
        f"| operation | at {small:,} | at {large:,} | the bare command | at {small:,} | at {large:,} |",
        "|---|---|---|---|---|---|",
    ]
    commands = {"List.append": "RPUSH", "List.popleft": "LPOP", "List.get(-1)": "LINDEX", "List.slice(0, 10)": "LRANGE",
                "Map.put": "HSET", "Map.get": "HGET", "Map.increment": "HINCRBY", "Map.size": "HLEN", "Set.add": "SADD",
                "Set.contains": "SISMEMBER", "Set.discard": "SREM", "SortedSet.put": "ZADD",
                "SortedSet.increment": "ZINCRBY", "SortedSet.rank": "ZREVRANK", "SortedSet.top(10)": "ZREVRANGE",
                "SortedSet.count": "ZCOUNT", "Counter.add": "INCRBY", "Counter.get": "GET", "UniqueCounter.add": "PFADD",
                "UniqueCounter.count": "PFCOUNT", "WorkQueue.put": "RPUSH", "WorkQueue.claim": "LMOVE"}  # fmt: skip
    for name, sizes in found.items():
        cells = [f"{sizes[size][side]:.1f}" for side in (0, 1) for size in SIZES]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {commands[name]} | {cells[2]} | {cells[3]} |")
    lines += ["", "Microseconds of server time for a call."]
    growth = max(sizes[large][0] / sizes[small][0] for sizes in found.values())
    worst = max(found, key=lambda name: found[name][large][0] / found[name][small][0])
    return {
        "results": [
            {"id": "C1", "what": f"an operation at {large:,} entries / at {small}, the worst ({worst})", "value": growth,
             "goal": "<= 2", "unit": "x"},
        ],
        "tables": {"collections": lines},
        "rounds": {name: {str(size): pair for size, pair in sizes.items()} for name, sizes in found.items()},
    }  # fmt: skip


if __name__ == "__main__":
    print("\n".join(main()["tables"]["collections"]))
