"""`make bench`: every benchmark, as tables here, in results/results.md and in docs/performance.md, with all rounds in
results/results.json.
The tables of what codecs and collections cost go into their pages.

Run some of them by name: `python benchmarks/run.py p1 p3`, or on one topology: `python benchmarks/run.py p1:cluster`; then
nothing is written. `--list` shows the names. ROUNDS=9 asks for more rounds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness import ROUNDS, SERVER_CORE, versions

STANDALONE, CLUSTER = "standalone", "cluster"
BOTH = (STANDALONE, CLUSTER)
BENCHMARKS = {
    "p1_write": BOTH,
    "p2_hot_document": BOTH,
    "p3_one_caller": BOTH,
    "p4_near_cache": BOTH,
    "p7_visible": (STANDALONE,),
    "p8_growth": BOTH,
    "sync_api": (STANDALONE,),
    "web_sessions": (STANDALONE,),
    "shape_costs": (STANDALONE,),
    "codec_costs": (STANDALONE,),
    "sweep_load": (STANDALONE,),
}
TITLES = {
    STANDALONE: "On one server",
    CLUSTER: "On a cluster of three primaries, which share the one core",
}
RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- written by make bench -->\n", "<!-- until here -->\n"


def spell(result: dict[str, Any]) -> list[str]:
    """A row: what was measured, the value, its goal, and whether it is reached."""
    value, goal, unit = result["value"], result["goal"], result["unit"]
    digits = 0 if value >= 100 or value == int(value) else 1 if value >= 10 else 2
    row = [result["id"], result["what"], f"{value:,.{digits}f} {unit}".strip()]
    if not goal:
        return [*row, "", ""]
    sign, limit = goal.split()
    met = value >= float(limit) if sign == ">=" else value <= float(limit)
    return [*row, f"{goal} {unit}".strip(), "yes" if met else "no"]


def chosen(names: list[str]) -> Iterator[tuple[str, str]]:
    """Benchmarks and the topologies that they run on."""
    for topology in BOTH:
        for benchmark, its in BENCHMARKS.items():
            asked = [name.partition(":") for name in names]
            if topology in its and (
                not names or any(benchmark.startswith(name) and wanted in ("", topology) for name, _, wanted in asked)
            ):
                yield benchmark, topology


def measure(names: list[str], console: Console) -> tuple[dict[str, Any], dict[str, list[list[str]]]]:
    """Everything that was found, and the rows of each topology."""
    cores = os.sched_getaffinity(0)
    found: dict[str, Any] = {"versions": versions(), "rounds": ROUNDS, "cores": len(cores)}
    rows: dict[str, list[list[str]]] = {topology: [] for topology in BOTH}
    for benchmark, topology in chosen(names):
        module = import_module(benchmark)
        os.sched_setaffinity(0, cores)
        began = time.monotonic()
        with console.status(f"{benchmark}, {topology} ..."):
            result = module.main(topology) if BENCHMARKS[benchmark] == BOTH else module.main()
        result["seconds"] = round(time.monotonic() - began)
        rows[topology] += map(spell, result["results"])
        found[benchmark if topology == STANDALONE else f"{benchmark}, {topology}"] = result
    os.sched_setaffinity(0, cores)
    return found, rows


def main(names: list[str]) -> None:
    if names == ["--list"]:
        print("\n".join(f"{name:16} {', '.join(topologies)}" for name, topologies in BENCHMARKS.items()))
        return
    if not list(chosen(names)):
        sys.exit(f"no benchmark is called {' or '.join(names)}: python benchmarks/run.py --list")
    console = Console()
    found, rows = measure(names, console)
    for topology, its in rows.items():
        table = Table("", "measured", "result", "goal", "met", title=f"{TITLES[topology]}, medians of {ROUNDS} rounds")
        for row in its:
            table.add_row(*row)
        if its:
            console.print(table)
    if not names:
        write_all(found, rows)
        console.print("written: benchmarks/results/results.md, results.json, and the tables in docs")


def write_all(found: dict[str, Any], rows: dict[str, list[list[str]]]) -> None:
    tables = {
        page: its for one in found.values() if isinstance(one, dict) for page, its in one.pop("tables", {}).items()
    }
    markdown = []
    for topology, its in rows.items():
        markdown += [f"**{TITLES[topology]}**", "", "| | measured | result | goal | met |", "|---|---|---|---|---|"]
        markdown += [f"| {' | '.join(row)} |" for row in its] + [""]
    said = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    markdown.append(
        f"Medians of {ROUNDS} interleaved rounds on {found['cores']} cores; the servers have core {SERVER_CORE}. {said}."
    )
    RESULTS.mkdir(exist_ok=True)
    text = "\n".join(markdown) + "\n"
    (RESULTS / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "results.md").write_text(text)
    write(DOCS / "performance.md", text)
    for page, lines in tables.items():
        write(DOCS / f"{page}.md", "\n".join(lines) + "\n")


def write(page: Path, text: str) -> None:
    """Puts a table where the page has its place."""
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(before + BEGIN + text + END + rest.partition(END)[2])


if __name__ == "__main__":
    main(sys.argv[1:])
