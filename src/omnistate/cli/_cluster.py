"""`omnistate cluster up`"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter, validators
from rich.console import Console
from rich.table import Table

from omnistate.cli._common import Terminated, UsageError, run
from omnistate.errors import InvalidInput
from omnistate.ops import LocalCluster, LocalSentinel, LocalSettings, Node, Role, recorded_port

cluster = cyclopts.App(name="cluster", help="A cluster on this machine, to develop and to test with.")
FIRST_PORT, MAX_PORT = 7000, 45_000  # the ports that are 10,000 or 20,000 above are needed too


@cluster.command
def up(
    *,
    shards: int | None = None,
    replicas: int = 1,
    sentinel: Annotated[bool, Parameter(negative="")] = False,
    port: Annotated[int | None, Parameter(validator=validators.Number(gte=1, lte=MAX_PORT))] = None,
    data_dir: Path | None = None,
    binary: Path | None = None,
) -> None:
    """Start a cluster on this machine, or with --sentinel a primary with replicas and three sentinels, until Ctrl-C.

    Parameters
    ----------
    shards
        Primaries of the cluster, 3 or more; by default 3.
    replicas
        Replicas of each primary.
    sentinel
        No cluster, but one primary, its replicas, and three sentinels that make a replica the primary when it is gone.
    port
        The first port; by default 7000. A cluster uses those 10,000 above too, the sentinels are 20,000 above.
    data_dir
        Where to keep the data; run again with it, the same cluster comes back. By default they are removed at the end.
    binary
        The server program, Valkey or Redis; by default the embedded store's.
    """
    first_port = port or (recorded_port(data_dir) if data_dir is not None else None) or FIRST_PORT
    settings = LocalSettings(directory=data_dir, binary=binary, first_port=first_port)
    try:
        made = _made(shards, replicas, sentinel=sentinel, settings=settings)
    except InvalidInput as error:
        raise UsageError(f"{error}; try: omnistate cluster up --shards 3 --replicas 1") from error

    async def work() -> None:
        started = time.monotonic()
        async with made:
            await _tell(made, seconds=time.monotonic() - started, kept=data_dir is not None)
            await asyncio.Event().wait()

    with contextlib.suppress(Terminated):  # the usual way to end it
        run(work())


def _made(
    shards: int | None, replicas: int, *, sentinel: bool, settings: LocalSettings
) -> LocalCluster | LocalSentinel:
    if not sentinel:
        return LocalCluster(3 if shards is None else shards, replicas, settings=settings)
    if shards is not None:
        raise InvalidInput("with --sentinel there is one primary, so --shards says nothing")
    return LocalSentinel(replicas, settings=settings)


async def _tell(made: LocalCluster | LocalSentinel, *, seconds: float, kept: bool) -> None:
    """Talk on standard error; where standard output is not a terminal, the URL alone goes there, for scripts."""
    table = Table(box=None, header_style="dim", padding=(0, 2))
    for column in ("server", "pid", "role", ""):
        table.add_column(column, justify="right" if column == "pid" else "left")
    rows = await (_of_cluster(made) if isinstance(made, LocalCluster) else _of_sentinel(made))
    for node, role, note in rows:
        table.add_row(str(node), str(node.pid), f"[bold]{role}[/]" if role == "primary" else role, f"[dim]{note}[/]")
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"\n  [bold]omnistate[/]  {made.layout}, ready in {seconds:.1f} s\n")
    console.print(table)
    console.print(f"\n  connect  export OMNISTATE_URL=[cyan]{made.url}[/]")
    console.print(f"  data     {made.directory} [dim]({'kept' if kept else 'removed when you leave'})[/]")
    console.print(f"  try      kill -9 {rows[0][0].pid} [dim](a primary is gone: see its replica take over)[/]")
    console.print("  [dim]Ctrl-C ends[/]\n")
    if not sys.stdout.isatty():
        print(made.url, flush=True)


Rows = list[tuple[Node, Role, str]]


async def _of_cluster(made: LocalCluster) -> Rows:
    rows: Rows = []
    for shard in await made.shards():
        slots = ", ".join(f"{part.start}-{part.stop - 1}" for part in shard.slots)
        rows.append((shard.primary, "primary", f"slots {slots}"))
        rows += [(node, "replica", f"of {shard.primary}") for node in shard.replicas]
    return rows


async def _of_sentinel(made: LocalSentinel) -> Rows:
    primary = await made.primary()
    return [
        (primary, "primary", ""),
        *((node, "replica", f"of {primary}") for node in await made.replicas()),
        *((node, "sentinel", "") for node in made.sentinels),
    ]
