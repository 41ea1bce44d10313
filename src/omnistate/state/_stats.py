"""What a client counts."""

from __future__ import annotations

import msgspec


class NearCacheStats(msgspec.Struct, frozen=True):
    """What a client's near cache has done since the client was opened, and what it holds.

    `misses` were reads that went to the server; `bypassed` are those of them that had to, because the customer's log was not
    followed: not yet, or the connection was in doubt. Documents leave by `invalidations` (they were changed elsewhere),
    `flushes` (doubt), `expirations` and `evictions` (room). `staleness_p50` and `staleness_p99` are how many milliseconds
    after the change the last 1,024 invalidations came, by the server's clock and this machine's.
    """

    hits: int = 0
    misses: int = 0
    bypassed: int = 0
    invalidations: int = 0
    flushes: int = 0
    expirations: int = 0
    evictions: int = 0
    documents: int = 0
    customers: int = 0
    bytes: int = 0
    staleness_p50: float = 0.0
    staleness_p99: float = 0.0

    @property
    def hit_rate(self) -> float:
        """The share of reads that were answered from memory, 0 to 1."""
        reads = self.hits + self.misses
        return self.hits / reads if reads else 0.0


class UpdateStats(msgspec.Struct, frozen=True):
    """What became of `update`: how many calls, in how many writes they were stored, and how often another process was first.

    Each of `conflicts` cost a round trip and ran the functions again.
    """

    calls: int = 0
    writes: int = 0
    conflicts: int = 0

    @property
    def conflict_rate(self) -> float:
        """Lost races for each write that was tried, 0 to 1."""
        tried = self.writes + self.conflicts
        return self.conflicts / tried if tried else 0.0


class Stats(msgspec.Struct, frozen=True):
    """What a client has counted since it was opened: see the parts."""

    near_cache: NearCacheStats = NearCacheStats()
    updates: UpdateStats = UpdateStats()
