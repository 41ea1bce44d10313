"""The sweeper: ends what has fallen due, so that everybody sees it end.

What has expired is never read or overwritten as if it were there, sweeper or not; the sweeper makes the event. Each of a
tenant's partitions has an agenda of its customers by when they are to be looked at. A sweeper takes some that are due, which
moves them a lease into the future, and then ends what is due of each in one call, which puts the customer at its next time.
So several sweepers share the work, one that dies is replaced after the lease, and nothing is ended twice: what has ended has
no header any more. No notification of the server is needed.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from omnistate.customer import resume_erasure
from omnistate.errors import CustomerErased, StoreError
from omnistate.ops._commands import expire, find_due, take_due
from omnistate.state import Services
from omnistate.store import PARTITIONS, Keyspace, decode_id, run

log = logging.getLogger("omnistate.sweeper")
_LEASE_MS = 30_000
_TAKE = 100  # customers of a partition at a time
_ASKED = 32  # partitions that are asked together what is due
_AT_ONCE = 4  # customers that are worked on: a sweep of many must not hold up those who write


class Sweeper:
    """Ends what has fallen due, of one tenant. Run as many as you like, where you like."""

    def __init__(self, services: Services, keyspace: Keyspace) -> None:
        self._services, self._keyspace = services, keyspace

    async def sweep(self) -> int:
        """Ends what is due now; returns the number of events. At least 256 small calls."""
        ended = 0
        for first in range(0, PARTITIONS, _ASKED):
            due = await asyncio.gather(*map(self._take, range(first, first + _ASKED)))
            for partition, names in enumerate(due, first):
                ended += await self._sweep(partition, names)
        return ended

    async def run(self, *, every: timedelta = timedelta(seconds=1)) -> None:
        """Sweeps until cancelled. While the store is away it waits."""
        while True:
            try:
                ended = await self.sweep()
            except StoreError as error:
                log.warning("sweeping is paused", extra={"error": str(error)})
                ended = 0
            if ended:
                log.debug("swept", extra={"ended": ended})
            await asyncio.sleep(every.total_seconds())

    async def _take(self, partition: int) -> list[str]:
        command = take_due(self._keyspace, partition, lease_ms=_LEASE_MS, most=_TAKE)
        return await self._services.link.execute(command)

    async def _sweep(self, partition: int, names: list[str]) -> int:
        ended = 0
        while names:
            for first in range(0, len(names), _AT_ONCE):
                ended += sum(await asyncio.gather(*map(self._end, names[first : first + _AT_ONCE])))
            names = await self._take(partition) if len(names) == _TAKE else []
        return ended

    async def _end(self, name: str) -> int:
        execute = self._services.link.execute
        if name.startswith("e."):  # an erasure whose process has died
            await run(resume_erasure(self._keyspace, decode_id(name.removeprefix("e."))), execute)
            return 0
        keys = self._keyspace.log(name)
        try:
            return await execute(expire(keys, await execute(find_due(keys))))
        except CustomerErased:  # since it was taken
            return 0
