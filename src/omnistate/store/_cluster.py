"""The store on a cluster: which server has which slot, and how that is followed while it changes."""

from __future__ import annotations

import asyncio
import contextlib
import random
from binascii import crc_hqx
from dataclasses import dataclass
from typing import Any

from omnistate.errors import StoreError, StoreUnavailable
from omnistate.store._connection import Connection, open_connection
from omnistate.store._library import Library
from omnistate.store._link import Link
from omnistate.store._node import Node, log_in, say
from omnistate.store._url import Address, Endpoint

SLOTS = 16384
_LOOK_EVERY = 1.0  # seconds
_ANSWER_WITHIN = 0.5
_ASKED = 3  # servers that are asked at once: one that is cut off from the others does not know what they have decided


def slot_of(key: bytes) -> int:
    """The slot of a key, by its hash tag: all our keys have one."""
    start = key.index(b"{") + 1
    return crc_hqx(key[start : key.index(b"}", start)], 0) % SLOTS


@dataclass(frozen=True, slots=True)
class _Map:
    """What a server says of the cluster. The higher `epoch` has the later decision."""

    epoch: int
    ranges: list[tuple[int, int, Endpoint]]
    replicas: list[Endpoint]


class ClusterLink(Link):
    """One connection for each primary. Follows redirections, failovers and slots that move, while callers wait."""

    patience = 0.25
    wants_primaries = True

    def __init__(self, address: Address, library: Library, *, timeout: float) -> None:
        super().__init__(address, library, timeout=timeout)
        self._nodes: dict[Endpoint, Node] = {address.endpoints[0]: self._node}
        self._slots: list[Node] = [self._node] * SLOTS
        self._map: _Map | None = None  # what `_slots` are, None when a redirection has changed them
        self._epoch = 0
        self._primaries: set[Endpoint] = set()
        self._replicas: list[Endpoint] = []
        self._refreshing: asyncio.Task[bool] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._refusal: StoreError | None = None  # why the last server that was asked for the map did not tell

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout
        while not await self._refresh():
            if self._refusal is not None and not isinstance(self._refusal, StoreUnavailable):
                raise self._refusal
            if loop.time() >= deadline:
                raise self._unavailable("no server of the cluster answers")
            await asyncio.sleep(0.05)
        await asyncio.gather(*(self._persevere(node, deadline) for node in list(self._nodes.values())))
        self._watching = asyncio.create_task(self._watch())

    def node_of(self, key: bytes) -> Node:
        return self._slots[slot_of(key)]

    async def close(self) -> None:
        tasks = [task for task in (self._watching, self._refreshing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await super().close()
        for node in self._nodes.values():
            node.retire("the client is closed")

    async def _persevere(self, node: Node, deadline: float) -> None:
        """Connects to a primary; one that is down at the moment is no reason not to begin."""
        with contextlib.suppress(StoreUnavailable):
            await self._connect(node, deadline)

    def _redirect(self, message: str, node: Node) -> Node | None:
        word, _, rest = message.partition(" ")
        if word not in ("MOVED", "ASK"):
            return None
        slot, _, place = rest.partition(" ")
        host, _, port = place.rpartition(":")
        came_from = next((one for one, its in self._nodes.items() if its is node), self.address.endpoints[0])
        target = self._node_at(came_from.at(host or came_from.host, int(port)))
        if word == "MOVED":
            self._slots[int(slot)], self._map = target, None
            self._moved()
            self._begin_refresh()
        return target

    async def rediscover(self) -> None:
        if not await asyncio.shield(self._begin_refresh()):
            await asyncio.sleep(0.05)

    def _node_at(self, endpoint: Endpoint) -> Node:
        node = self._nodes.get(endpoint)
        if node is None:
            node = self._nodes[endpoint] = self._make_node(endpoint)
        return node

    # The map

    async def _watch(self) -> None:
        """What no error reply has told is found out: a failover while nobody writes, a primary that was replaced."""
        while True:
            await asyncio.sleep(_LOOK_EVERY * (0.5 + random.random() / 2))
            await asyncio.shield(self._begin_refresh())

    def _begin_refresh(self) -> asyncio.Task[bool]:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh())
        return self._refreshing

    async def _refresh(self) -> bool:
        """Asks some servers for the map, and goes by the latest. False when none answered."""
        asked = list({*self._nodes, *self._replicas, *self.address.endpoints})
        random.shuffle(asked)
        asked.sort(key=lambda one: self._open_connection_to(one) is None)
        for at in range(0, min(len(asked), 3 * _ASKED), _ASKED):
            answers = await asyncio.gather(*map(self._ask, asked[at : at + _ASKED]))
            maps = [answer for answer in answers if answer is not None]
            if maps:
                self._adopt(max(maps, key=lambda one: one.epoch))
                return True
        return False

    async def _ask(self, endpoint: Endpoint) -> _Map | None:
        connection = shared = self._open_connection_to(endpoint)
        try:
            async with asyncio.timeout(_ANSWER_WITHIN):
                if connection is None:
                    connection = await open_connection(endpoint, stall=_ANSWER_WITHIN)
                    await log_in(connection, endpoint)
                info, slots = await asyncio.gather(
                    say(connection, "CLUSTER", "INFO"), say(connection, "CLUSTER", "SLOTS")
                )
        except OSError:
            return None
        except StoreError as error:
            self._refusal = error
            return None
        finally:
            if connection is not None and connection is not shared:
                connection.close()
        return _parse(endpoint, info, slots)

    def _adopt(self, found: _Map) -> None:
        if found == self._map or found.epoch < self._epoch:  # of a server that is cut off
            return
        self._map, self._epoch, self._replicas = found, found.epoch, found.replicas
        primaries = {endpoint for _, _, endpoint in found.ranges}
        for first, last, endpoint in found.ranges:
            self._slots[first : last + 1] = [self._node_at(endpoint)] * (last + 1 - first)
        # One that has no slot yet is none of these: commands are sent there while slots move to it.
        for endpoint in (self._primaries | {*found.replicas, *self.address.endpoints}) - primaries:
            if endpoint in self._nodes:
                self._nodes.pop(endpoint).retire("the server is no primary of the cluster any more")
        self._primaries = primaries
        self._moved()

    def _open_connection_to(self, endpoint: Endpoint) -> Connection | None:
        node = self._nodes.get(endpoint)
        connection = node.connection if node is not None else None
        return connection if connection is not None and connection.is_open else None


def _parse(endpoint: Endpoint, info: bytes, slots: list[Any]) -> _Map:
    epoch = next(int(line[22:]) for line in info.split(b"\r\n") if line.startswith(b"cluster_current_epoch:"))

    def server(said: list[Any]) -> Endpoint:
        host = said[0].decode() if said[0] else ""
        return endpoint.at(endpoint.host if host in ("", "?") else host, said[1])

    ranges = [(first, last, server(primary)) for first, last, primary, *_ in slots]
    replicas = [server(one) for _, _, _, *others in slots for one in others]
    return _Map(epoch, ranges, replicas)
