"""Several servers on this machine that belong together: what a local cluster and a local Sentinel set-up share."""

from __future__ import annotations

import asyncio
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal, Self

import msgspec

from omnistate.errors import ServerBinaryMissing, StoreError
from omnistate.ops._local_directory import HOST, Layout, LocalDirectory
from omnistate.ops._local_node import Node
from omnistate.store import Profile, common_settings, find_binary

READY = timedelta(seconds=30)
_PAUSE = 0.03  # seconds between two looks


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    """Where and how the processes run."""

    directory: Path | None = None
    """Where the data are kept, for the same set-up to come back; None: a temporary directory, removed at the end."""
    binary: Path | None = None
    """The server program; by default the one that the embedded store takes."""
    first_port: int | None = None
    """The servers listen on this port and those after it. A cluster needs the ports 10,000 above too; sentinels are 20,000
    above. By default free ones, or those of the directory."""
    durability: Profile | Literal["none"] = "balanced"
    """As of `omnistate.connect`. With "none" a server that is killed comes back empty: for tests."""
    options: Sequence[str] = ()
    """Further lines of the servers' configuration, for example `maxmemory 10mb`: they have the last word."""


DEFAULTS = LocalSettings()


class LocalServers(ABC):
    """Use `LocalCluster` or `LocalSentinel`: `async with LocalCluster() as cluster`, or `start` and `stop`.

    The processes end with this one, whatever ends it. They belong to the thread that starts them: it must not end before.
    Nothing here belongs to an event loop, so one may start them and another go on.
    """

    nodes: tuple[Node, ...] = ()

    def __init__(self, layout: Layout, settings: LocalSettings) -> None:
        self._wanted = msgspec.structs.replace(layout, first_port=settings.first_port or 0)
        self._settings = settings
        self._held: LocalDirectory | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients find it."""

    @property
    def directory(self) -> Path:
        return self._directory.path

    @property
    def layout(self) -> Layout:
        """How many servers of which kind; it reads as a sentence's beginning."""
        return self._directory.layout

    async def start(self) -> None:
        """Returns when all servers serve and know of each other: some three seconds. Leaves nothing behind when it fails.

        Raises `ServerBinaryMissing`, `ServerFailed`, `PortInUse`, and the `DataDirectory...` errors.
        """
        binary = self._settings.binary or find_binary()
        if not os.access(binary, os.X_OK):
            raise ServerBinaryMissing(f"{binary} is not a program that may be run")
        self._held = LocalDirectory.acquire(self._settings.directory, self._wanted)
        try:
            self.nodes = self._make_nodes(binary)
            await self._bring_up()
            await self.wait_until_ready()
        except BaseException:
            await self.stop()
            raise
        self._held.mark_formed(self.url)

    async def stop(self) -> None:
        """Ends all servers, which write everything to disk, and gives the directory up. May be called again."""
        try:
            await asyncio.gather(*(node.end() for node in self.nodes))
        finally:
            held, self._held, self.nodes = self._held, None, ()
            if held is not None:
                held.release()

    async def heal(self) -> None:
        """Undoes `kill` and `pause`; returns when all is well again. Raises `ServerFailed`."""
        for node in self.nodes:
            node.resume()
            if not node.is_running:
                await node.restart()
        await self.wait_until_ready()

    async def wait_until_ready(self, within: timedelta = READY) -> None:
        """Returns when every server serves, is in step, and sees all others so. Raises `ServerFailed`, which says what is
        not.
        """
        await self._until(self.nodes, self._complaint, within)

    @abstractmethod
    def _make_nodes(self, binary: Path) -> tuple[Node, ...]:
        """All nodes, not started yet."""

    @abstractmethod
    async def _bring_up(self) -> None:
        """Starts them, and makes them one when they are new."""

    @abstractmethod
    async def _complaint(self, node: Node) -> str:
        """What is not yet well with a node, or nothing."""

    @property
    def _directory(self) -> LocalDirectory:
        assert self._held is not None, "it is started first"
        return self._held

    async def _launch(self, nodes: Iterable[Node]) -> None:
        nodes = tuple(nodes)
        for node in nodes:
            node.launch()
        for node in nodes:
            await node.wait_until_answering()

    def _server(self, binary: Path, port: int, settings: Sequence[str], arguments: Sequence[str] = ("-",)) -> Node:
        """A node that keeps data."""
        directory = self._directory.of(f"server-{port}")
        profile = self._settings.durability
        lines = [
            f"port {port}",
            f"bind {HOST}",
            *common_settings(
                "balanced" if profile == "none" else profile,
                directory=directory,
                processes=self._directory.layout.servers,
            ),
            *(["appendonly no"] if profile == "none" else []),
            "repl-diskless-sync-delay 0",  # a replica that has never synced cannot take over
            "shutdown-timeout 1",  # when all end at once, a primary need not wait for its replicas
            "min-replicas-to-write 0",
            "min-replicas-max-lag 2",
            *settings,
            *self._settings.options,
        ]
        return Node(port, directory, [binary, *arguments], lines, self._directory.lock)

    async def _until(
        self, nodes: Sequence[Node], complaint: Callable[[Node], Awaitable[str]], within: timedelta = READY
    ) -> None:
        """Returns when there is no complaint about any of these nodes."""
        deadline = time.monotonic() + within.total_seconds()
        while True:
            for node in nodes:
                if said := await _said(complaint, node):
                    break
            else:
                return
            if not node.is_running:
                raise node.failed("has ended")
            if time.monotonic() > deadline:
                raise node.failed(f"was not ready within {within.total_seconds():g} s: {said}")
            await asyncio.sleep(_PAUSE)


async def replication_complaint(node: Node, replicas: int) -> str:
    """What is not yet well between a server and its replicas or its primary."""
    info = await node.info("replication")
    if info["role"] == "slave":
        return "" if info["master_link_status"] == "up" else "it is not in step with its primary"
    attached = [value for name, value in info.items() if name.startswith("slave") and "state=" in value]
    in_step = sum("state=online" in value for value in attached)
    return "" if in_step == replicas else f"{in_step} of its {replicas} replicas are in step"


async def _said(complaint: Callable[[Node], Awaitable[str]], node: Node) -> str:
    try:
        return await complaint(node)
    except (OSError, StoreError) as error:
        return f"it does not answer ({error})"
