"""`omnistate migrate`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from omnistate.cli._bulk import progress_bar, tell
from omnistate.cli._common import EMBEDDED, Json, Store, load_app, run
from omnistate.ops import Bulk, Report, migrate_all


def migrate(
    *,
    app: str,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    rewrite_all: Annotated[bool, Parameter(name="--all", negative="")] = False,
    journal: Path | None = None,
    as_json: Json = False,
    store: Store = EMBEDDED,
) -> int:
    """Bring every document into the form that its class says now: version, codec, encryption key, indexes.

    Documents follow by themselves when they are written; this does it for all. Values and deadlines stay as they are. What
    cannot be read is left alone and reported, and the exit code is 1.

    Parameters
    ----------
    app
        Where the states are declared, as module:app.
    dry_run
        Try everything and write nothing.
    rewrite_all
        Rewrite documents of the right version and codec too, and what is encrypted in collections: after a change of the
        encryption key or of indexes.
    journal
        A file in which to write down how far it came: run again with it after an interruption, it goes on.
    as_json
        Print the report as one JSON object.
    """
    declared = load_app(app)

    async def work() -> Report:
        with progress_bar("dry run" if dry_run else "migrate", "customers") as progress:
            async with store.connect(keyring=declared.keyring) as omni:
                return await migrate_all(
                    Bulk(omni.services, omni.keyspace),
                    declared.states,
                    declared.collections,
                    dry_run=dry_run,
                    force=rewrite_all,
                    journal=journal,
                    progress=progress,
                )

    return tell(run(work()), done="would be rewritten" if dry_run else "rewritten", as_json=as_json)
