"""redis-py, asyncio, with hiredis and a pool as large as the number of callers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import redis.asyncio as redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import WatchError

from harness import Store
from peers.work import DAY, LOG_ENTRIES, Document, Peer, decode, encode, keys, read


def client(port: int, callers: int) -> redis.Redis:
    return redis.Redis(connection_pool=redis.ConnectionPool(host="127.0.0.1", port=port, max_connections=callers + 2))


@contextlib.asynccontextmanager
async def opened(store: Store, callers: int) -> AsyncIterator[Peer]:
    clients = {port: client(port, callers) for port in store.ports}
    if store.is_cluster:
        async with RedisCluster(host="127.0.0.1", port=store.ports[0]) as cluster:
            yield ByHand(lambda key: clients[cluster.get_node_from_key(key).port], publish="SPUBLISH")
    else:
        only = clients[store.ports[0]]
        yield ByHand(lambda _: only, publish="PUBLISH")
    for each in clients.values():
        await each.aclose()


class ByHand:
    """On a cluster with a client for each node, found by the slot: the pipeline of `RedisCluster` sends WATCH from a thread
    with an event loop of its own, and cannot be used twice.
    """

    def __init__(self, client_of: Callable[[str], redis.Redis], *, publish: str) -> None:
        self._client_of, self._publish = client_of, publish

    async def mutate(self, customer: str, operation_id: str, sku: str) -> None:
        its = keys(customer, operation_id)
        async with self._client_of(its.cart).pipeline(transaction=True) as pipe:
            pipe.hincrby(its.cart, sku, 1)
            pipe.hincrby(its.cart, "version", 1)
            pipe.expire(its.cart, 7 * DAY)
            pipe.xadd(its.log, {"sku": sku, "by": 1}, maxlen=LOG_ENTRIES, approximate=True)
            pipe.set(its.operation, 1, ex=DAY)
            pipe.execute_command(self._publish, its.events, sku)
            await pipe.execute()

    async def update(self, customer: str, change: Callable[[Document], object]) -> int:
        its, retries = keys(customer), 0
        async with self._client_of(its.document).pipeline(transaction=True) as pipe:
            while True:
                try:
                    await pipe.watch(its.document)
                    value = read(await pipe.get(its.document))
                    change(value)
                    pipe.multi()
                    pipe.set(its.document, encode(value), ex=7 * DAY)
                    pipe.xadd(its.log, {"doc": "cart"}, maxlen=LOG_ENTRIES, approximate=True)
                    pipe.execute_command(self._publish, its.events, "changed")
                    await pipe.execute()
                    return retries
                except WatchError:
                    retries += 1

    async def get(self, customer: str) -> Document:
        key = keys(customer).document
        return decode(await self._client_of(key).get(key))

    async def put(self, customer: str, value: Document) -> None:
        key = keys(customer).document
        await self._client_of(key).set(key, encode(value))
