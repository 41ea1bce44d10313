"""`make bench-bulk`: import, migrate and export of 1,000,000 customers with the command line, each killed once on its way.

A customer has an identity, a cart of three lines and a list of three. Times are sums over both runs of a killed job; memory
is the process's peak, beside that of the same job with 10,000 customers. At the end the exported file is compared with
what it must hold. Writes results/bulk.md and the table in docs/bulk.md. CUSTOMERS=50000 asks for fewer, and writes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from harness import CLIENT_CORE, pin, server, versions
from run import DOCS, RESULTS, write

MANY, FEW = int(os.environ.get("CUSTOMERS", "1000000")), 10_000
APP = """
import omnistate


class Cart(omnistate.State{options}):
    {lines}: dict[str, int] = {{}}
    note: str = ""
    viewed = omnistate.List(str, limit=10)
{migration}

app = omnistate.App(Cart)
"""
MIGRATION = """
    @omnistate.migrate(1, 2)
    def rename(fields):
        fields["lines"] = fields.pop("items", {})
"""


def lines_of(count: int, field: str) -> Iterator[dict[str, Any]]:
    for number in range(count):
        cart = {field: {"cup": number, "pot": 1, "grinder": 2}, "note": f"order {number}"}
        yield {
            "customer": f"customer-{number}",
            "identities": [{"channel": "web", "address": f"visitor-{number}"}],
            "states": {"Cart": {"value": cart}},
            "collections": {"Cart.viewed": {"kind": "list", "values": ["cup", "pot", f"product-{number}"]}},
        }


def told(lines: Iterator[dict[str, Any]]) -> tuple[int, int]:
    """How many lines there are, and a sum of their digests that does not depend on their order."""
    count = total = 0
    for line in lines:
        said = hashlib.blake2b(json.dumps(line, sort_keys=True).encode(), digest_size=8).digest()
        count, total = count + 1, total + int.from_bytes(said) & (1 << 64) - 1
    return count, total


class Job:
    """Command lines of `omnistate` on one server, with what they took."""

    def __init__(self, home: Path, url: str) -> None:
        self.home, self.url = home, url

    def run(self, words: list[str], *, kill_when: Any = None) -> tuple[float, float]:
        """Seconds and MiB. With `kill_when`, SIGKILL as soon as it is true, and then the same again."""
        seconds, memory = self._once(words, kill_when)
        if kill_when is not None:
            more, again = self._once(words, None)
            seconds, memory = seconds + more, max(memory, again)
        return seconds, memory

    def _once(self, words: list[str], kill_when: Any) -> tuple[float, float]:
        command = [sys.executable, "-m", "omnistate", *words, "--url", self.url]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(self.home)])}
        began = time.monotonic()
        with open(self.home / "said", "wb") as said:
            process = subprocess.Popen(command, cwd=self.home, env=environment, stdout=said, stderr=said)
        pin(process.pid, CLIENT_CORE)
        while kill_when is not None and not kill_when():
            if process.poll() is not None:
                raise RuntimeError(f"{words} ended before it could be killed: {(self.home / 'said').read_text()}")
            time.sleep(0.02)
        if kill_when is not None:
            process.send_signal(signal.SIGKILL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != (0 if kill_when is None else -signal.SIGKILL):
            raise RuntimeError((self.home / "said").read_text())
        return time.monotonic() - began, usage.ru_maxrss / 1024

    def reached(self, file: str, what: str, least: float) -> Any:
        """Whether the job's journal says that it came so far."""

        def look() -> bool:
            try:
                return bool(json.loads((self.home / file).read_bytes())["state"][what] >= least)
            except (FileNotFoundError, KeyError):
                return False

        return look


def measure(count: int, *, killed: bool) -> dict[str, tuple[float, float]]:
    with tempfile.TemporaryDirectory(prefix="omnistate-bulk-") as directory, server() as port:
        home = Path(directory)
        (home / "before.py").write_text(APP.format(options="", lines="items", migration=""))
        (home / "after.py").write_text(APP.format(options=", version=2", lines="lines", migration=MIGRATION))
        with open(home / "in.ndjson", "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines_of(count, "items"))
        job, found = Job(home, f"redis://127.0.0.1:{port}"), {}
        half = (home / "in.ndjson").stat().st_size / 2
        when = job.reached("in.ndjson.progress", "bytes", half) if killed else None
        found["import"] = job.run(["import", "in.ndjson", "--app", "before:app"], kill_when=when)
        found["migrate --dry-run"] = job.run(["migrate", "--app", "after:app", "--dry-run"])
        when = job.reached("journal", "partition", 128) if killed else None
        found["migrate"] = job.run(["migrate", "--app", "after:app", "--journal", "journal"], kill_when=when)
        when = job.reached("out.ndjson.progress", "partition", 128) if killed else None
        found["export"] = job.run(["export", "out.ndjson", "--app", "after:app"], kill_when=when)
        with open(home / "out.ndjson") as file:
            if told(json.loads(line) for line in file) != told(lines_of(count, "lines")):
                raise RuntimeError("what was exported is not what was imported")
        return found


def main() -> None:
    console = Console()
    with console.status(f"{FEW:,} customers ..."):
        few = measure(FEW, killed=False)
    with console.status(f"{MANY:,} customers ..."):
        many = measure(MANY, killed=True)
    lines = [
        f"| {MANY:,} customers | time | customers a second | memory | with {FEW:,} customers |",
        "|---|---|---|---|---|",
    ]
    for what, (seconds, memory) in many.items():
        lines.append(
            f"| {what} | {seconds:.0f} s | {MANY / seconds:,.0f} | {memory:.0f} MiB | {few[what][1]:.0f} MiB |"
        )
    said = ", ".join(f"{name} {version}" for name, version in versions().items() if name in ("python", "server"))
    lines += ["", f"{said}; one core for the server, one for the job. All but the dry run were killed by SIGKILL half way",
              "and run again; nothing was missing and nothing was there twice."]  # fmt: skip
    text = "\n".join(lines) + "\n"
    console.print(text)
    if "CUSTOMERS" not in os.environ:
        (RESULTS / "bulk.md").write_text(text)
        write(DOCS / "bulk.md", text)


if __name__ == "__main__":
    main()
