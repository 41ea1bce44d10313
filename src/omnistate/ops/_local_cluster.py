"""A cluster on this machine, for development and tests."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import timedelta
from itertools import combinations
from pathlib import Path

from omnistate.errors import InvalidInput, ServerFailed, StoreError
from omnistate.ops._local import DEFAULTS, LocalServers, LocalSettings, replication_complaint
from omnistate.ops._local_directory import HOST, Layout
from omnistate.ops._local_node import Node

SLOTS = 16_384
LEAST_SHARDS = 3  # fewer cannot agree by majority that one of them is gone


@dataclass(frozen=True, slots=True)
class Shard:
    """Who serves which slots now."""

    primary: Node
    replicas: tuple[Node, ...]
    slots: tuple[range, ...]


class LocalCluster(LocalServers):
    """Primaries, each with its replicas. When a primary is gone for `node_timeout`, a replica takes over."""

    def __init__(
        self,
        shards: int = 3,
        replicas: int = 1,
        *,
        node_timeout: timedelta = timedelta(seconds=2),
        settings: LocalSettings = DEFAULTS,
    ) -> None:
        if shards < LEAST_SHARDS:
            raise InvalidInput(
                f"a cluster has {LEAST_SHARDS} shards or more, not {shards}: fewer have no majority without one"
            )
        if replicas < 0:
            raise InvalidInput(f"a primary cannot have {replicas} replicas")
        super().__init__(Layout(kind="cluster", shards=shards, replicas=replicas), settings)
        self._node_timeout = node_timeout

    @property
    def url(self) -> str:
        """Names the nodes that were primaries first: a client learns the others from any."""
        return "redis+cluster://" + ",".join(str(node) for node in self.nodes[: self._wanted.shards])

    async def shards(self) -> tuple[Shard, ...]:
        """As a node that is up sees it, in the order of the slots. Raises `ServerFailed` when none answers."""
        view = await self._view()
        at = {node.port: node for node in self.nodes}
        nodes = {line.id: at[line.port] for line in view}
        return tuple(
            Shard(
                nodes[line.id],
                tuple(nodes[other.id] for other in view if other.primary == line.id),
                line.slots,
            )
            for line in sorted(view, key=lambda line: [slots.start for slots in line.slots])
            if line.slots
        )

    async def failover(self, replica: Node) -> None:
        """Makes a replica the primary of its shard, in order: nothing is lost. Returns when all nodes know."""
        await replica.ask("CLUSTER", "FAILOVER")

        async def complaint(node: Node) -> str:
            return "" if await node.role() == "primary" else "it has not taken over"

        await self._until([replica], complaint)
        await self.wait_until_ready()

    def _make_nodes(self, binary: Path) -> tuple[Node, ...]:
        settings = [
            "cluster-enabled yes",
            "cluster-config-file nodes.conf",
            f"cluster-node-timeout {self._node_timeout // timedelta(milliseconds=1)}",
            f"cluster-announce-ip {HOST}",
            "cluster-require-full-coverage no",  # what the other shards have stays available
        ]
        layout = self._directory.layout
        return tuple(self._server(binary, port, settings) for port in layout.ports()[: layout.servers])

    async def _bring_up(self) -> None:
        await self._launch(self.nodes)
        if not self._directory.layout.formed:
            await self._form()

    async def _form(self) -> None:
        """What `redis-cli --cluster create` does, without it. Everybody meets everybody, as gossip alone would take longer."""
        shards = self._wanted.shards
        primaries, replicas = self.nodes[:shards], self.nodes[shards:]
        for epoch, node in enumerate(self.nodes, 1):
            await node.ask("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for number, node in enumerate(primaries):
            await node.ask("CLUSTER", "ADDSLOTSRANGE", number * SLOTS // shards, (number + 1) * SLOTS // shards - 1)
        for one, other in combinations(self.nodes, 2):
            await one.ask("CLUSTER", "MEET", HOST, other.port)
        await self._until(self.nodes, self._stranger)
        for number, node in enumerate(replicas):
            primary = primaries[number % shards]
            await node.ask("CLUSTER", "REPLICATE", (await primary.ask("CLUSTER", "MYID")).decode())

    async def _stranger(self, node: Node) -> str:
        """A complaint, unless the node knows all others and reaches them."""
        view = await _view_of(node)
        known = sum(line.is_well for line in view)
        return "" if known == len(view) == len(self.nodes) else f"it knows {known} of {len(self.nodes)} nodes"

    async def _complaint(self, node: Node) -> str:
        if stranger := await self._stranger(node):
            return stranger
        info = dict(line.split(":") for line in (await node.ask("CLUSTER", "INFO")).decode().split())
        if info["cluster_state"] != "ok" or info["cluster_slots_ok"] != str(SLOTS):
            return f"the cluster is {info['cluster_state']}, {info['cluster_slots_ok']} of {SLOTS} slots are served"
        view = await _view_of(node)
        replicas = sum(bool(line.primary) for line in view)
        if replicas != len(self.nodes) - self._wanted.shards:
            return f"it knows {replicas} replicas"
        own = next(line.id for line in view if "myself" in line.flags)
        return await replication_complaint(node, sum(line.primary == own for line in view))

    async def _view(self) -> list[_Line]:
        """What the first node that is up says."""
        for node in self.nodes:
            with contextlib.suppress(OSError, StoreError):
                return await _view_of(node)
        raise ServerFailed("no node of the cluster answers")


@dataclass(frozen=True, slots=True)
class _Line:
    """What a node knows of one node."""

    id: str
    port: int
    flags: frozenset[str]
    primary: str
    connected: bool
    slots: tuple[range, ...]

    @classmethod
    def parse(cls, text: str) -> _Line:
        id_, address, flags, primary, _, _, _, link, *slots = text.split()
        owned = [slot.partition("-") for slot in slots if not slot.startswith("[")]  # [...] is on the move
        return cls(
            id_,
            int(address.partition("@")[0].rpartition(":")[2]),
            frozenset(flags.split(",")),
            primary.strip("-"),
            link == "connected",
            tuple(range(int(first), int(last or first) + 1) for first, _, last in owned),
        )

    @property
    def is_well(self) -> bool:
        return self.connected and not self.flags & {"fail", "fail?", "handshake", "noaddr"}


async def _view_of(node: Node) -> list[_Line]:
    return [_Line.parse(line) for line in (await node.ask("CLUSTER", "NODES")).decode().splitlines()]
