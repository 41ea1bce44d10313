"""A log's entries for one reader that takes them at its own speed."""

from __future__ import annotations

import asyncio

from omnistate.errors import CustomerErased, PositionLost
from omnistate.store._keys import LogKeys
from omnistate.store._link import Executor
from omnistate.store._log import LONGEST_LOG, Entry, Page, is_last, open_log, read_log
from omnistate.store._position import Position


class Inbox:
    """Collects a log's entries for one reader. When the reader is slow it drops them, and reads them from the log later."""

    LIMIT = LONGEST_LOG

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._overflown = False
        self._is_over = False  # the customer was erased, and the reader was told
        self._arrived = asyncio.Event()

    def on_entry(self, epoch: str, entry: Entry) -> None:  # noqa: ARG002 - the feed tells a new epoch by on_lost
        if len(self._entries) >= self.LIMIT:
            self._overflown = True
            self._entries.clear()
        self._entries.append(entry)
        self._arrived.set()

    def on_lost(self) -> None:
        self._overflown = True
        self._arrived.set()

    def on_doubt(self) -> None:
        """What is late comes, in order."""

    async def take(self, link: Executor, log: LogKeys, position: Position, within: float | None = None) -> list[Entry]:
        """The entries after `position`, at least one, without gaps. Raises `PositionLost`, `CustomerErased`, `TimeoutError`."""
        if self._is_over:
            raise CustomerErased(log.id)
        loop = asyncio.get_running_loop()
        deadline = None if within is None else loop.time() + within
        while True:
            async with asyncio.timeout_at(deadline):
                await self._arrived.wait()
            self._arrived.clear()
            entries, self._entries = [entry for entry in self._entries if entry.offset > position.offset], []
            if self._overflown or (entries and entries[0].offset != position.offset + 1):
                self._overflown = False
                entries = (await self.missed(link, log, position)).entries
            if entries:
                self._is_over = is_last(entries[-1])
                return entries

    async def missed(self, link: Executor, log: LogKeys, position: Position) -> Page:
        """What is in the log after a position. Raises `PositionLost`; `CustomerErased` when there is no log for that reason."""
        try:
            return await link.execute(read_log(log, position, limit=LONGEST_LOG))
        except PositionLost as lost:
            if not lost.current.epoch:
                await link.execute(open_log(log))
            raise
