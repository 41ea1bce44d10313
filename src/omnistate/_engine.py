"""What a client keeps running while it is open: the link to the store, the feed, the embedded server, the sweeper."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from omnistate.ops import Sweeper
from omnistate.state import Keyring, NearCache, Services
from omnistate.store import (
    ACCEPTED,
    Address,
    Durability,
    DurableLink,
    EmbeddedServer,
    Executor,
    Feed,
    Keyspace,
    Link,
    open_link,
    parse_url,
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What `connect` was told. Without an address the embedded server is used."""

    address: Address | None
    data_dir: Path | None
    profile: Literal["balanced", "safe"]
    durability: Durability
    timeout: float
    sweeps: bool
    keyspace: Keyspace
    keyring: Keyring | None
    near_cache_bytes: int


class Engine:
    """Made by `start`, ended by `close`."""

    def __init__(self, server: EmbeddedServer | None, link: Link, near_cache_bytes: int) -> None:
        self.server, self.link, self.feed = server, link, Feed(link)
        self.near = NearCache(link, self.feed, max_bytes=near_cache_bytes)
        self._sweeping: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, settings: Settings) -> Self:
        """One that is connected. Raises what `connect` says."""
        server, address = None, settings.address
        if address is None:
            server = await EmbeddedServer.start(settings.data_dir, profile=settings.profile)
            address = parse_url(server.url)
        check = (lambda: None) if server is None else server.raise_if_failed
        link = open_link(address, timeout=settings.timeout, check_server=check)
        try:
            await link.connect()
        except BaseException:
            await link.close()
            if server is not None:
                await server.close()
            raise
        engine = cls(server, link, settings.near_cache_bytes)
        if settings.sweeps:
            engine._sweep(settings)
        return engine

    @property
    def url(self) -> str:
        """Where the store is, without its password."""
        return str(self.link.address)

    def at(self, level: Durability) -> Executor:
        """The link for writes at this level."""
        return self.link if level == ACCEPTED else DurableLink(self.link, level)

    async def close(self) -> None:
        """Ends the connections, and the embedded server if there is one. Calls that are under way fail."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        await self.link.close()
        self.near.close()
        await self.feed.close()
        if self.server is not None:
            await self.server.close()

    def _sweep(self, settings: Settings) -> None:
        level = settings.durability
        services = Services(self.at(level), self.feed, settings.keyring, level, self.near)
        self._sweeping = asyncio.create_task(Sweeper(services, settings.keyspace).run())
