"""The same work written by hand on other clients: what a careful team would write. One module for each client."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from importlib import import_module

from harness import Store
from peers.work import Open, Peer, add, decode, document, encode, pack


def _from(module: str) -> Open:
    """Imports the client when it is used: each takes a second, and a process of P2 uses one."""

    def opened(store: Store, callers: int) -> AbstractAsyncContextManager[Peer]:
        return import_module(f"peers.{module}").opened(store, callers)

    return opened


PEERS: dict[str, Open] = {
    "redis-py": _from("by_redis_py"),
    "coredis": _from("by_coredis"),
    "valkey-glide": _from("by_glide"),
}

__all__ = ["PEERS", "Open", "Peer", "add", "decode", "document", "encode", "pack"]
