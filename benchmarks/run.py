"""`make bench`: every benchmark, as a table here, in results/results.md and in docs/performance.md, with all rounds in
results/results.json.
The tables of what codecs and collections cost go into their pages.

Run some of them by name: `python benchmarks/run.py p1 p3`; then nothing is written. ROUNDS=9 asks for more rounds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness import ROUNDS, SERVER_CORE, versions

BENCHMARKS = (
    "p1_write",
    "p2_hot_document",
    "p3_one_caller",
    "p7_visible",
    "p8_growth",
    "sync_api",
    "shape_costs",
    "codec_costs",
    "sweep_load",
)
RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- written by make bench -->\n", "<!-- until here -->\n"


def spell(result: dict[str, Any]) -> tuple[str, str]:
    """The value, and whether it is at its goal."""
    value, goal = result["value"], result["goal"]
    digits = 0 if value >= 100 or value == int(value) else 1 if value >= 10 else 2
    said = f"{value:,.{digits}f} {result['unit']}".strip()
    if not goal:
        return said, ""
    sign, limit = goal.split()
    met = value >= float(limit) if sign == ">=" else value <= float(limit)
    return said, "yes" if met else "no"


def main(names: list[str]) -> None:
    cores = os.sched_getaffinity(0)
    console = Console()
    table = Table("", "measured", "result", "goal", "met", title=f"medians of {ROUNDS} interleaved rounds")
    found: dict[str, Any] = {"versions": versions(), "rounds": ROUNDS, "cores": len(cores)}
    tables: dict[str, list[str]] = {}
    markdown = ["| | measured | result | goal | met |", "|---|---|---|---|---|"]
    for benchmark in BENCHMARKS:
        if names and not any(benchmark.startswith(name) for name in names):
            continue
        os.sched_setaffinity(0, cores)
        began = time.monotonic()
        with console.status(f"{benchmark} ..."):
            found[benchmark] = import_module(benchmark).main()
        tables.update(found[benchmark].pop("tables", {}))
        found[benchmark]["seconds"] = round(time.monotonic() - began)
        for result in found[benchmark]["results"]:
            value, met = spell(result)
            goal = f"{result['goal']} {result['unit']}".strip() if result["goal"] else ""
            table.add_row(result["id"], result["what"], value, goal, met)
            markdown.append(f"| {result['id']} | {result['what']} | {value} | {goal} | {met} |")
    os.sched_setaffinity(0, cores)
    console.print(table)
    if names:
        return
    said = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    markdown += [
        "",
        f"Medians of {ROUNDS} interleaved rounds on {len(cores)} cores; the server has core {SERVER_CORE}. {said}.",
    ]
    RESULTS.mkdir(exist_ok=True)
    text = "\n".join(markdown) + "\n"
    (RESULTS / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "results.md").write_text(text)
    write(DOCS / "performance.md", text)
    for page, lines in tables.items():
        write(DOCS / f"{page}.md", "\n".join(lines) + "\n")
    console.print("written: benchmarks/results/results.md, results.json, and the tables in docs")


def write(page: Path, text: str) -> None:
    """Puts a table where the page has its place."""
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(before + BEGIN + text + END + rest.partition(END)[2])


if __name__ == "__main__":
    main(sys.argv[1:])
