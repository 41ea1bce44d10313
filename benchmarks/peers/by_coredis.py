"""coredis, with a pool as large as the number of callers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import coredis
from coredis.connection import TCPLocation
from coredis.exceptions import WatchError
from coredis.patterns.cache import AbstractCache
from coredis.tokens import PureToken

from harness import Store
from peers.work import DAY, LOG_ENTRIES, Document, Peer, decode, encode, keys, read


def client(store: Store, connections: int, cache: AbstractCache | None = None) -> coredis.Redis | coredis.RedisCluster:
    if store.is_cluster:
        nodes = [TCPLocation("127.0.0.1", port) for port in store.ports]
        return coredis.RedisCluster(
            startup_nodes=nodes, max_connections=connections, max_connections_per_node=True, cache=cache
        )
    return coredis.Redis(port=store.ports[0], max_connections=connections, cache=cache)


@contextlib.asynccontextmanager
async def opened(store: Store, callers: int) -> AsyncIterator[Peer]:
    async with client(store, callers + 2) as connected:
        yield ByHand(connected, is_cluster=store.is_cluster)


class ByHand:
    def __init__(self, connected: Any, *, is_cluster: bool) -> None:
        self._client, self._is_cluster = connected, is_cluster

    async def mutate(self, customer: str, operation_id: str, sku: str) -> None:
        its = keys(customer, operation_id)
        async with self._client.pipeline(transaction=True) as pipe:
            pipe.hincrby(its.cart, sku, 1)
            pipe.hincrby(its.cart, "version", 1)
            pipe.expire(its.cart, 7 * DAY)
            self._log(pipe, its.log, {"sku": sku, "by": 1})
            pipe.set(its.operation, 1, ex=DAY)
            self._publish(pipe, its.events, sku)

    async def update(self, customer: str, change: Callable[[Document], object]) -> int:
        its, retries = keys(customer), 0
        while True:
            try:
                async with self._client.pipeline(transaction=True) as pipe, pipe.watch(its.document):
                    value = read(await self._client.get(its.document))  # after WATCH, by whichever connection
                    change(value)
                    pipe.set(its.document, encode(value), ex=7 * DAY)
                    self._log(pipe, its.log, {"doc": "cart"})
                    self._publish(pipe, its.events, "changed")
                return retries
            except WatchError:
                retries += 1

    async def get(self, customer: str) -> Document:
        return decode(await self._client.get(keys(customer).document))

    async def put(self, customer: str, value: Document) -> None:
        await self._client.set(keys(customer).document, encode(value))

    def _log(self, pipe: Any, key: str, entry: dict[str, str | int]) -> None:
        pipe.xadd(
            key,
            field_values=entry,
            trim_strategy=PureToken.MAXLEN,
            threshold=LOG_ENTRIES,
            trim_operator=PureToken.APPROXIMATELY,
        )

    def _publish(self, pipe: Any, topic: str, message: str) -> None:
        (pipe.spublish if self._is_cluster else pipe.publish)(topic, message)
