"""valkey-glide: one multiplexed client for everything but WATCH, which needs a client of its own for each caller."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import glide

from harness import Store
from peers.work import DAY, LOG_ENTRIES, Document, Peer, decode, encode, keys, read

WITHIN = 10_000  # milliseconds; by default a call fails after 250, and one that waits behind 64 others may take longer
LOG = glide.StreamAddOptions(trim=glide.TrimByMaxLen(exact=False, threshold=LOG_ENTRIES))


async def client(store: Store, cache: glide.ClientSideCache | None = None) -> Any:
    addresses = [glide.NodeAddress("127.0.0.1", port) for port in store.ports]
    if store.is_cluster:
        settings = glide.GlideClusterClientConfiguration(addresses, request_timeout=WITHIN, client_side_cache=cache)
        return await glide.GlideClusterClient.create(settings)
    return await glide.GlideClient.create(
        glide.GlideClientConfiguration(addresses, request_timeout=WITHIN, client_side_cache=cache)
    )


@contextlib.asynccontextmanager
async def opened(store: Store, callers: int) -> AsyncIterator[Peer]:
    shared, *own = await asyncio.gather(*(client(store) for _ in range(callers + 1)))
    try:
        yield ByHand(shared, own, is_cluster=store.is_cluster)
    finally:
        await asyncio.gather(*(each.close() for each in (shared, *own)))


class ByHand:
    def __init__(self, shared: Any, own: list[Any], *, is_cluster: bool) -> None:
        self._client, self._free, self._is_cluster = shared, own, is_cluster

    async def mutate(self, customer: str, operation_id: str, sku: str) -> None:
        its, batch = keys(customer, operation_id), self._batch()
        batch.hincrby(its.cart, sku, 1)
        batch.hincrby(its.cart, "version", 1)
        batch.expire(its.cart, 7 * DAY)
        batch.xadd(its.log, [("sku", sku), ("by", "1")], LOG)
        batch.set(its.operation, "1", expiry=glide.ExpirySet(glide.ExpiryType.SEC, DAY))
        self._publish(batch, its.events, sku)
        await self._client.exec(batch, raise_on_error=True)

    async def update(self, customer: str, change: Callable[[Document], object]) -> int:
        its, retries, own = keys(customer), 0, self._free.pop()
        try:
            while True:
                await own.watch([its.document])
                value = read(await own.get(its.document))
                change(value)
                batch = self._batch()
                batch.set(its.document, encode(value), expiry=glide.ExpirySet(glide.ExpiryType.SEC, 7 * DAY))
                batch.xadd(its.log, [("doc", "cart")], LOG)
                self._publish(batch, its.events, "changed")
                if await own.exec(batch, raise_on_error=True) is not None:
                    return retries
                retries += 1
        finally:
            self._free.append(own)

    async def get(self, customer: str) -> Document:
        return decode(await self._client.get(keys(customer).document))

    async def put(self, customer: str, value: Document) -> None:
        await self._client.set(keys(customer).document, encode(value))

    def _batch(self) -> Any:
        return glide.ClusterBatch(is_atomic=True) if self._is_cluster else glide.Batch(is_atomic=True)

    def _publish(self, batch: Any, topic: str, message: str) -> None:
        if self._is_cluster:
            batch.publish(message, topic, sharded=True)
        else:
            batch.publish(message, topic)
