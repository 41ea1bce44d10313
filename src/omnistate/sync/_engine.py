"""What a synchronous client keeps running while it is open: the engine of the asynchronous one, in a thread of its own."""

from __future__ import annotations

import atexit
from typing import Self

from omnistate._engine import Engine as AsyncEngine
from omnistate._engine import Settings
from omnistate.ops import Sweeper as AsyncSweeper
from omnistate.state import Services as AsyncServices
from omnistate.store import ACCEPTED, Durability, Keyspace
from omnistate.sync._background import Background
from omnistate.sync._feed import Feed
from omnistate.sync._link import DurableLink, Executor, Link
from omnistate.sync._near import NearCache
from omnistate.sync._state import Services


class Engine:
    """Made by `start`, ended by `close`, or when the interpreter ends."""

    def __init__(self, behind: AsyncEngine, background: Background) -> None:
        self._behind, self._background = behind, background
        self.link, self.feed = Link(behind.link, background), Feed(behind.feed, background)
        self.near = NearCache(behind.near, background)
        atexit.register(self.close)

    @classmethod
    def start(cls, settings: Settings) -> Self:
        """One that is connected. Raises what `connect` says."""
        background = Background()
        try:
            return cls(background.wait(AsyncEngine.start(settings)), background)
        except BaseException:
            background.stop()
            raise

    @property
    def url(self) -> str:
        """Where the store is, without its password."""
        return self._behind.url

    def at(self, level: Durability) -> Executor:
        """The link for writes at this level."""
        return self.link if level == ACCEPTED else DurableLink(self.link, level)

    def close(self) -> None:
        """Ends the connections, and the embedded server if there is one. Calls that are under way fail."""
        atexit.unregister(self.close)
        self._background.stop(self._behind.close())


class Sweeper:
    """Ends what has fallen due, of one tenant."""

    def __init__(self, services: Services, keyspace: Keyspace) -> None:
        self._services, self._keyspace = services, keyspace

    def sweep(self) -> int:
        """Ends what is due now; returns the number of events. At least 256 small calls."""
        executor, background = self._services.link.behind, self._services.link.background
        behind = AsyncServices(executor, self._services.feed.behind, self._services.keyring)
        return background.wait(AsyncSweeper(behind, self._keyspace).sweep())
