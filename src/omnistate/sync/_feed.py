"""A log's entries for one reader in any thread; the background thread's feed brings them."""

from __future__ import annotations

import threading
import time

from omnistate.errors import CustomerErased, PositionLost
from omnistate.store import LONGEST_LOG, Entry, Leave, LogKeys, Page, Position, is_last, open_log, read_log
from omnistate.store import Feed as AsyncFeed
from omnistate.sync._background import Background
from omnistate.sync._link import Executor


class Inbox:
    """Collects a log's entries for one reader. When the reader is slow it drops them, and reads them from the log later."""

    LIMIT = LONGEST_LOG

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._overflown = False
        self._is_over = False  # the customer was erased, and the reader was told
        self._arrived = threading.Condition()

    def on_entry(self, epoch: str, entry: Entry) -> None:  # noqa: ARG002 - the feed tells a new epoch by on_lost
        with self._arrived:
            if len(self._entries) >= self.LIMIT:
                self._overflown = True
                self._entries.clear()
            self._entries.append(entry)
            self._arrived.notify()

    def on_lost(self) -> None:
        with self._arrived:
            self._overflown = True
            self._arrived.notify()

    def on_doubt(self) -> None:
        """What is late comes, in order."""

    def take(self, link: Executor, log: LogKeys, position: Position, within: float | None = None) -> list[Entry]:
        """The entries after `position`, at least one, without gaps. Raises `PositionLost`, `CustomerErased`, `TimeoutError`."""
        if self._is_over:
            raise CustomerErased(log.id)
        deadline = None if within is None else time.monotonic() + within
        while True:
            with self._arrived:
                left = None if deadline is None else deadline - time.monotonic()
                if not self._arrived.wait_for(lambda: self._entries or self._overflown, left):
                    raise TimeoutError
                entries, self._entries = [entry for entry in self._entries if entry.offset > position.offset], []
                overflown, self._overflown = self._overflown, False
            if overflown or (entries and entries[0].offset != position.offset + 1):
                entries = self.missed(link, log, position).entries
            if entries:
                self._is_over = is_last(entries[-1])
                return entries

    def missed(self, link: Executor, log: LogKeys, position: Position) -> Page:
        """What is in the log after a position. Raises `PositionLost`; `CustomerErased` when there is no log for that reason."""
        try:
            return link.execute(read_log(log, position, limit=LONGEST_LOG))
        except PositionLost as lost:
            if not lost.current.epoch:
                link.execute(open_log(log))
            raise


class Feed:
    """The live logs of one process, for readers in any thread."""

    def __init__(self, behind: AsyncFeed, background: Background) -> None:
        self.behind, self._background = behind, background

    def join(self, keys: LogKeys, listener: Inbox) -> Leave:
        """Tells `listener` every entry written after this returns; returns how to stop. Two round trips when first."""
        leave = self._background.wait(self.behind.join(keys, listener))
        return lambda: self._background.call(leave)
