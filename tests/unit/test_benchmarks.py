"""Every benchmark that `make bench` runs can be run: what it needs is where it looks for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_benchmark_has_a_main() -> None:
    said = "import run, importlib; [importlib.import_module(name).main for name in run.BENCHMARKS]"
    subprocess.run([sys.executable, "-c", said], cwd=BENCHMARKS, check=True, timeout=60)
