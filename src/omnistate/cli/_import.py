"""`omnistate import`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from omnistate.cli._bulk import beside, progress_bar, tell
from omnistate.cli._common import EMBEDDED, Json, Store, UsageError, load_app, run
from omnistate.ops import Bulk, Report, import_all


def import_(
    file: Path,
    /,
    *,
    app: str,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    as_json: Json = False,
    store: Store = EMBEDDED,
) -> int:
    """Read what `omnistate export` wrote. What is there already is kept. Run again after it was interrupted, it goes on.

    Parameters
    ----------
    file
        The file to read.
    app
        Where the states are declared, as module:app.
    overwrite
        Replace what is there already.
    as_json
        Print the report as one JSON object.
    """
    declared = load_app(app)

    try:
        opened = open(file, "rb")  # noqa: SIM115 - closed below; a file that is not there is a wrong command line
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    with opened, progress_bar("import", "bytes") as progress:

        async def work() -> Report:
            async with store.connect(keyring=declared.keyring, channels=declared.channels) as omni:
                return await import_all(
                    Bulk(omni.services, omni.keyspace),
                    opened,
                    declared.states,
                    declared.collections,
                    overwrite=overwrite,
                    journal=beside(file),
                    progress=progress,
                )

        report = run(work())
    return tell(report, done="imported", as_json=as_json)
