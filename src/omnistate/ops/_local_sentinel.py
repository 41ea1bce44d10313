"""A primary, its replicas and their sentinels on this machine, for development and tests."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from omnistate.errors import InvalidInput, ServerFailed, StoreError
from omnistate.ops._local import DEFAULTS, LocalServers, LocalSettings, replication_complaint
from omnistate.ops._local_directory import HOST, Layout
from omnistate.ops._local_node import Node
from omnistate.store import private

SERVICE = "omnistate"
LEAST_SENTINELS = 3  # fewer cannot agree by majority that one of them is gone


class LocalSentinel(LocalServers):
    """When the primary is gone for `down_after`, the sentinels make a replica the primary."""

    def __init__(
        self,
        replicas: int = 1,
        sentinels: int = 3,
        *,
        down_after: timedelta = timedelta(seconds=1),
        settings: LocalSettings = DEFAULTS,
    ) -> None:
        if sentinels < LEAST_SENTINELS:
            raise InvalidInput(f"there must be {LEAST_SENTINELS} sentinels or more, not {sentinels}")
        if replicas < 1:
            raise InvalidInput("a primary needs a replica that can take over")
        super().__init__(Layout(kind="sentinel", replicas=replicas, sentinels=sentinels), settings)
        self._down_after = down_after

    @property
    def url(self) -> str:
        return "redis+sentinel://" + ",".join(str(node) for node in self.sentinels) + f"/{SERVICE}"

    @property
    def servers(self) -> tuple[Node, ...]:
        """Those that keep data."""
        return self.nodes[: self._wanted.servers]

    @property
    def sentinels(self) -> tuple[Node, ...]:
        return self.nodes[self._wanted.servers :]

    async def primary(self) -> Node:
        """The primary that the sentinels name. Raises `ServerFailed` when none answers."""
        for sentinel in self.sentinels:
            with contextlib.suppress(OSError, StoreError):
                return await self._named_by(sentinel)
        raise ServerFailed("no sentinel answers")

    async def replicas(self) -> tuple[Node, ...]:
        primary = await self.primary()
        return tuple(node for node in self.servers if node is not primary)

    async def failover(self) -> Node:
        """Has a replica take over, in order where the server can (Valkey >= 9: nothing is lost).

        Returns the new primary when all sentinels name it. The former one may go on as a primary for ten seconds more:
        `wait_until_ready` waits for that too.
        """
        before = await self.primary()
        try:
            await self.sentinels[0].ask("SENTINEL", "FAILOVER", SERVICE, "COORDINATED")
        except StoreError:
            await self.sentinels[0].ask("SENTINEL", "FAILOVER", SERVICE)

        async def complaint(node: Node) -> str:
            return "it names the former primary" if await self._named_by(node) is before else ""

        await self._until(self.sentinels, complaint)
        return await self.primary()

    def _make_nodes(self, binary: Path) -> tuple[Node, ...]:
        layout = self._directory.layout
        ports = layout.ports()
        servers = [self._make_server(binary, port, ports[0]) for port in ports[: layout.servers]]
        ids = {port: secrets.token_hex(20) for port in ports[layout.servers :]}
        sentinels = [self._make_sentinel(binary, port, ports[: layout.servers], ids) for port in ids]
        return *servers, *sentinels

    def _make_server(self, binary: Path, port: int, primary: int) -> Node:
        """Its file keeps what the sentinels make of it: primary or replica of whom."""
        node = self._server(binary, port, (), ("server.conf", "-"))
        _write_once(node.directory / "server.conf", [] if port == primary else [f"replicaof {HOST} {primary}"])
        return node

    def _make_sentinel(self, binary: Path, port: int, servers: Sequence[int], ids: dict[int, str]) -> Node:
        """It is told of all others: it would find them by itself, in some seconds. From then on its file is its own."""
        directory = self._directory.of(f"sentinel-{port}")
        lines = [
            f"port {port}",
            f"bind {HOST}",
            f"sentinel myid {ids[port]}",
            f"sentinel monitor {SERVICE} {HOST} {servers[0]} {len(ids) // 2 + 1}",
            *(f"sentinel known-replica {SERVICE} {HOST} {server}" for server in servers[1:]),
            *(f"sentinel known-sentinel {SERVICE} {HOST} {at} {id_}" for at, id_ in ids.items() if at != port),
        ]
        _write_once(directory / "sentinel.conf", lines)
        return Node(port, directory, [binary, "sentinel.conf", "--sentinel"], (), self._directory.lock)

    async def _bring_up(self) -> None:
        """The sentinels come last, so that they find what they are to find at their first look."""
        await self._launch(self.servers)
        await self._until(self.servers, self._server_complaint)
        await self._launch(self.sentinels)
        milliseconds = self._down_after // timedelta(milliseconds=1)
        for sentinel in self.sentinels:
            timing = ("down-after-milliseconds", milliseconds, "failover-timeout", 5 * milliseconds)
            await sentinel.ask("SENTINEL", "SET", SERVICE, *timing)

    async def _complaint(self, node: Node) -> str:
        return await (self._sentinel_complaint(node) if node in self.sentinels else self._server_complaint(node))

    async def _server_complaint(self, node: Node) -> str:
        return await replication_complaint(node, self._wanted.replicas)

    async def _sentinel_complaint(self, sentinel: Node) -> str:
        """It must see the true primary, all replicas in step with it, and all other sentinels."""
        primary = await self._named_by(sentinel)
        if await primary.role() != "primary":
            return f"it names {primary}, which is not the primary"
        master = _pairs(await sentinel.ask("SENTINEL", "MASTER", SERVICE))
        replicas = [_pairs(one) for one in await sentinel.ask("SENTINEL", "REPLICAS", SERVICE)]
        others = [_pairs(one) for one in await sentinel.ask("SENTINEL", "SENTINELS", SERVICE)]
        well = sum(_is_up(one) and one["master-link-status"] == "ok" for one in replicas)
        agreeing = sum(map(_is_up, others))
        if not _is_up(master):
            return f"it sees its primary as {master['flags']}"
        if well != self._wanted.replicas:
            return f"it sees {well} of {self._wanted.replicas} replicas in step"
        if agreeing != self._wanted.sentinels - 1:
            return f"it sees {agreeing} of {self._wanted.sentinels - 1} other sentinels"
        return ""

    async def _named_by(self, sentinel: Node) -> Node:
        _, port = await sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return next(node for node in self.servers if node.port == int(port))


def _is_up(seen: dict[str, str]) -> bool:
    return not {"s_down", "o_down", "disconnected", "failover_in_progress"} & set(seen["flags"].split(","))


def _pairs(flat: Sequence[bytes]) -> dict[str, str]:
    words = [word.decode() for word in flat]
    return dict(zip(words[::2], words[1::2], strict=True))


def _write_once(path: Path, lines: Sequence[str]) -> None:
    if not path.exists():
        with open(path, "w", opener=private) as file:
            file.write("".join(f"{line}\n" for line in lines))
