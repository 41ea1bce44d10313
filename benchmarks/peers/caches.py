"""The client caches that there are: GET from memory where the client can, and decode, as each keeps what the server sent."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import glide
import redis
from coredis.patterns.cache import LRUCache
from redis.cache import CacheConfig
from redis.connection import CacheProxyConnection

from harness import Store
from peers import by_coredis, by_glide
from peers.work import Document, decode, keys

ROOM = 10_000  # documents


class Cached(Protocol):
    async def get(self, customer: str) -> Document:
        """The document, decoded."""


class Blocking:
    """redis-py has a cache in its blocking client only."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def get(self, customer: str) -> Document:
        return decode(self._client.get(keys(customer).document))


@contextlib.asynccontextmanager
async def redis_py(store: Store) -> AsyncIterator[Cached]:
    # It takes no server that does not call itself Redis, 7.4 or later. Valkey tracks keys just as well, so nothing is checked.
    CacheProxyConnection.connect = lambda self: self._conn.connect()
    kind = redis.RedisCluster if store.is_cluster else redis.Redis
    client = kind(host="127.0.0.1", port=store.ports[0], protocol=3, cache_config=CacheConfig(max_size=ROOM))
    try:
        yield Blocking(client)
    finally:
        client.close()


@contextlib.asynccontextmanager
async def coredis(store: Store) -> AsyncIterator[Cached]:
    async with by_coredis.client(store, 4, LRUCache(max_keys=ROOM)) as connected:
        yield by_coredis.ByHand(connected, is_cluster=store.is_cluster)


@contextlib.asynccontextmanager
async def valkey_glide(store: Store) -> AsyncIterator[Cached]:
    cache = glide.ClientSideCache.create(max_cache_kb=65_536, entry_ttl_ms=0, server_assisted=True)
    connected = await by_glide.client(store, cache)
    try:
        yield by_glide.ByHand(connected, [], is_cluster=store.is_cluster)
    finally:
        await connected.close()


CACHES: dict[str, Callable[[Store], AbstractAsyncContextManager[Cached]]] = {
    "redis-py": redis_py,
    "coredis": coredis,
    "valkey-glide": valkey_glide,
}
