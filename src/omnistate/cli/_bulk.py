"""What `export`, `import` and `migrate` share: a progress bar, and how a report is told."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from omnistate.cli._common import UsageError
from omnistate.ops import Report


@contextlib.contextmanager
def progress_bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr where that is a terminal; otherwise a line every ten percent."""
    from rich import progress as bars  # noqa: PLC0415 - only long jobs need it
    from rich.console import Console  # noqa: PLC0415

    console = Console(stderr=True)
    if not console.is_terminal:
        said = -1

        def say(done: int, total: int) -> None:
            nonlocal said
            tenth = 10 * done // total if total else 10
            if tenth > said:
                said = tenth
                print(f"{what}: {done:,} of {total:,} {unit}", file=sys.stderr)

        yield say
        return
    count = bars.DownloadColumn() if unit == "bytes" else bars.MofNCompleteColumn()
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        count,
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=max(done, total))


def tell(report: Report, *, done: str, as_json: bool) -> int:
    """Prints the report; returns the exit code, 1 when something failed."""
    if as_json:
        counts = {"changed": report.changed, "kept": report.kept, "failures": report.failures}
        counts |= {"erased": report.erased} if report.erased else {}
        print(json.dumps({"customers": report.customers} | counts | {"failed": [list(one) for one in report.failed]}))
        return 1 if report.failures else 0
    for customer_id, name, reason in report.failed[:20]:
        print(f"{customer_id}: {name}: {reason}", file=sys.stderr)
    if report.failures > 20:
        print(f"... and {report.failures - 20:,} more; --json lists up to {Report.MOST_FAILURES:,}", file=sys.stderr)
    print(f"{report.customers:,} customers")
    for name in sorted(report.changed.keys() | report.kept.keys()):
        kept = f", {report.kept[name]:,} kept as they were" if name in report.kept else ""
        print(f"{name}: {report.changed.get(name, 0):,} {done}{kept}")
    if report.erased:
        print(f"{report.erased:,} left out: erased here")
    if report.failures:
        print(f"{report.failures:,} failed and were left as they are")
    return 1 if report.failures else 0


def beside(file: Path) -> Path:
    """Where a job on a file writes down how far it came."""
    return file.with_name(file.name + ".progress")


def check_free(file: Path) -> None:
    """Raises `UsageError` for a file that is there and was not left by a job that can go on."""
    if file.exists() and not beside(file).exists():
        raise UsageError(f"{file} is there already: choose another name, or remove it")
