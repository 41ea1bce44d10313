"""Bringing everything that is stored into the form that its declaration says now."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnistate.collection import Collection, Place, reseal_collection
from omnistate.errors import OmnistateError, StoreError
from omnistate.ops._bulk import Bulk
from omnistate.ops._job import Journal, Progress, Report, count, each, silent
from omnistate.state import Origin, StateHandle, schema_of
from omnistate.store import PARTITIONS, LogKeys

_NO_ORIGIN = Origin()
_Owner = tuple[str, str] | None


async def migrate_all(
    bulk: Bulk,
    kinds: Mapping[str, type[Any]],
    collections: Mapping[str, Collection[Any, Any]] | None = None,
    *,
    dry_run: bool = False,
    force: bool = False,
    journal: Path | None = None,
    progress: Progress = silent,
) -> Report:
    """Brings every document of these classes into the form that its class says now: version, codec, key, indexes.

    With `force` also documents that seem right, and encrypted values of these collections, the tenant's too. What cannot be
    read is left as it is and reported. With `dry_run` everything is tried and nothing written.
    """
    report, total = Report(), await bulk.count()
    wanted = sorted((name, schema_of(kind).writes, schema_of(kind).packing.name) for name, kind in kinds.items())
    notes = Journal(journal, f"migrate {bulk.keyspace.partition(0)!r} {wanted} {force}")
    start = 0 if dry_run else notes.state.get("partition", 0)
    work = _Migration(bulk, kinds, collections or {}, report, dry_run=dry_run, force=force)
    if start == 0:
        await asyncio.gather(*(work.collection(bulk.keyspace.shared(name), None, name) for name in collections or {}))
    for index in range(start, PARTITIONS):
        await each(await bulk.partition(index), work.customer)
        progress(report.customers, total)
        if not dry_run:
            notes.write(partition=index + 1)
    if not dry_run:
        notes.done()
    return report


class _Migration:
    def __init__(
        self,
        bulk: Bulk,
        kinds: Mapping[str, type[Any]],
        collections: Mapping[str, Collection[Any, Any]],
        report: Report,
        *,
        dry_run: bool,
        force: bool,
    ) -> None:
        self._bulk, self._kinds, self._collections, self._report = bulk, kinds, collections, report
        self._dry_run, self._force = dry_run, force

    async def customer(self, customer_id: str) -> None:
        log = self._bulk.keyspace.customer(customer_id)
        for name, owner, header in await self._bulk.entries(log):
            if name in self._kinds:
                await self._document(log, owner, name, header)
            elif name in self._collections:
                await self.collection(log, owner, name)
        self._report.customers += 1

    async def _document(self, log: LogKeys, owner: _Owner, name: str, header: bytes) -> None:
        schema = schema_of(self._kinds[name])
        codec, version = header.split(b" ")[5:7]
        if not self._force and version == b"%d" % schema.writes and codec == schema.packing.name.encode():
            return
        handle = StateHandle(self._bulk.services, self._kinds[name], log, _NO_ORIGIN, owner)
        try:
            if await handle.rewrite(force=self._force, dry_run=self._dry_run):
                count(self._report.changed, name)
        except StoreError:
            raise
        except OmnistateError as error:  # also one that has grown too large, or a customer who was merged meanwhile
            self._report.fail(log.id, name, error)

    async def collection(self, log: LogKeys, owner: _Owner, name: str) -> None:
        """Its values sealed with the current key, or not at all, as is declared."""
        declared = self._collections[name]
        if not self._force or not declared.can_be_encrypted:
            return
        try:
            place = Place(self._bulk.services, log, _NO_ORIGIN, owner)
            if await reseal_collection(declared, place, dry_run=self._dry_run):
                count(self._report.changed, name)
        except StoreError:
            raise
        except OmnistateError as error:
            self._report.fail(log.id, name, error)
