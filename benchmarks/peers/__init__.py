"""The same work written by hand on other clients: what a careful team would write. One module for each client."""

from peers.by_coredis import opened as coredis
from peers.by_glide import opened as glide
from peers.by_redis_py import opened as redis_py
from peers.work import Open, Peer, add, decode, document, encode, pack

PEERS: dict[str, Open] = {"redis-py": redis_py, "coredis": coredis, "valkey-glide": glide}

__all__ = ["PEERS", "Open", "Peer", "add", "decode", "document", "encode", "pack"]
