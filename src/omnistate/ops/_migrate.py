"""Bringing every document into the form that its class says now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnistate.errors import SchemaMismatch
from omnistate.ops._bulk import Bulk, Journal, Progress, Report, count, each, entries_of, silent
from omnistate.state import Origin, StateHandle, schema_of
from omnistate.store import PARTITIONS

_NO_ORIGIN = Origin()


async def migrate_all(
    bulk: Bulk,
    kinds: Mapping[str, type[Any]],
    *,
    dry_run: bool = False,
    force: bool = False,
    journal: Path | None = None,
    progress: Progress = silent,
) -> Report:
    """Brings every document of these classes into the form that its class says now: version, codec, key, indexes.

    What cannot be read is left as it is and reported. With `dry_run` everything is tried and nothing written.
    """
    report, total = Report(), await bulk.count()
    wanted = sorted((name, schema_of(kind).writes, schema_of(kind).packing.name) for name, kind in kinds.items())
    notes = Journal(journal, f"migrate {bulk.keyspace.partition(0)!r} {wanted} {force}")
    start = 0 if dry_run else notes.state.get("partition", 0)

    async def work(customer_id: str) -> None:
        for name, owner, header in await entries_of(bulk, bulk.keyspace.customer(customer_id)):
            kind = kinds.get(name)
            if kind is None:
                continue
            schema = schema_of(kind)
            codec, version = header.split(b" ")[5:7]
            if not force and version == b"%d" % schema.writes and codec == schema.packing.name.encode():
                continue
            handle = StateHandle(bulk.services, kind, bulk.keyspace.customer(customer_id), _NO_ORIGIN, owner)
            try:
                if await handle.rewrite(force=force, dry_run=dry_run):
                    count(report.changed, name)
            except SchemaMismatch as error:
                report.fail(customer_id, name, error)
        report.customers += 1

    for index in range(start, PARTITIONS):
        await each(await bulk.partition(index), work)
        progress(report.customers, total)
        if not dry_run:
            notes.write(partition=index + 1)
    if not dry_run:
        notes.done()
    return report
