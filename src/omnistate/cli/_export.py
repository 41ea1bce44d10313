"""`omnistate export`"""

from __future__ import annotations

import os
from pathlib import Path

from omnistate.cli._bulk import beside, check_free, progress_bar, tell
from omnistate.cli._common import EMBEDDED, Json, Store, load_app, run
from omnistate.ops import Bulk, Report, export_all


def export(file: Path, /, *, app: str, as_json: Json = False, store: Store = EMBEDDED) -> int:
    """Write every customer's identities, states and collections to a file: newline-delimited JSON, a line each.

    Sessions and conversations are not in it. Run again after it was interrupted, it goes on where it was. What is encrypted
    in the store is in clear in the file, which only you may read.

    Parameters
    ----------
    file
        The file to write.
    app
        Where the states are declared, as module:app.
    as_json
        Print the report as one JSON object.
    """
    declared = load_app(app)
    check_free(file)

    with (
        open(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as opened,
        progress_bar("export", "customers") as progress,
    ):

        async def work() -> Report:
            async with store.connect(keyring=declared.keyring) as omni:
                bulk = Bulk(omni.services, omni.keyspace)
                return await export_all(
                    bulk, opened, declared.states, declared.collections, journal=beside(file), progress=progress
                )

        report = run(work())
    return tell(report, done="exported", as_json=as_json)
