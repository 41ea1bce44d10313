"""The same work written by hand on redis-py: what a careful team would write."""

from __future__ import annotations

from collections.abc import Callable

import hiredis
import msgspec
import redis.asyncio as redis
from redis.exceptions import WatchError

DAY = 86400
decode, encode = msgspec.json.decode, msgspec.json.encode


def pack(*words: str | bytes | int) -> bytes:
    return hiredis.pack_command(words)


def client(port: int, callers: int) -> redis.Redis:
    """A pool as large as the number of callers; hiredis is installed."""
    return redis.Redis(connection_pool=redis.ConnectionPool(host="127.0.0.1", port=port, max_connections=callers + 2))


def add(cart: dict) -> None:
    cart["items"]["cup"] = cart["items"].get("cup", 0) + 1


async def mutate(r: redis.Redis, customer: str, operation_id: str, sku: str) -> None:
    """An increment that is versioned, expires, is logged, published and remembered: MULTI/EXEC, one round trip."""
    async with r.pipeline(transaction=True) as pipe:
        pipe.hincrby(f"{{{customer}}}:cart", sku, 1)
        pipe.hincrby(f"{{{customer}}}:cart", "version", 1)
        pipe.expire(f"{{{customer}}}:cart", 7 * DAY)
        pipe.xadd(f"{{{customer}}}:log", {"sku": sku, "by": 1}, maxlen=1000, approximate=True)
        pipe.set(f"{{{customer}}}:op:{operation_id}", 1, ex=DAY)
        pipe.publish(f"{{{customer}}}:events", sku)
        await pipe.execute()


async def update(r: redis.Redis, customer: str, change: Callable[[dict], None]) -> int:
    """Read, change, write if nobody else did, and publish. Returns how often it had to try again."""
    key, retries = f"{{{customer}}}:doc", 0
    async with r.pipeline(transaction=True) as pipe:
        while True:
            try:
                await pipe.watch(key)
                held = await pipe.get(key)
                value = decode(held) if held else {"items": {}, "note": "", "visits": 0}
                change(value)
                pipe.multi()
                pipe.set(key, encode(value), ex=7 * DAY)
                pipe.xadd(f"{{{customer}}}:log", {"doc": "cart"}, maxlen=1000, approximate=True)
                pipe.publish(f"{{{customer}}}:events", "changed")
                await pipe.execute()
                return retries
            except WatchError:
                retries += 1
