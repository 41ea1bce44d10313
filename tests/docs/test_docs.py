"""What the README and the docs tell a user to type, typed: their files are written, their commands run, their output
compared."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

import omnistate
from everything import everything
from machine import free_block, free_port, missing, primaries
from shop import Cart

ROOT = Path(__file__).parent.parent.parent
SDK = ROOT / "tests" / "gateway" / "sdk" / "node_modules"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


class Reader:
    """A newcomer in an empty directory who types what a page says."""

    def __init__(self, home: Path) -> None:
        self.home, self.port, self.block = home, free_port(), free_block()
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {"PATH": path, "HOME": str(home), "COLUMNS": "80", "NODE_PATH": str(SDK)}
        if "PYTHONPATH" in os.environ:  # another checkout's code is what is tested
            self.environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
        self.running: list[subprocess.Popen[bytes]] = []

    def follow(self, page: Path) -> int:
        """Returns how many commands there were."""
        commands = 0
        typed = re.sub(r"\b700(\d)\b", lambda port: str(self.block + int(port[1])), page.read_text())
        for language, text in BLOCK.findall(typed.replace("8000", str(self.port))):
            named = re.match(r"(?:#|//) (\w+\.\w+)\n", text)
            if named:
                (self.home / named[1]).write_text(text)
            elif language == "console":
                for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
                    commands += 1
                    self.type(command, expected)
        return commands

    def type(self, command: str, expected: str) -> None:
        if command.endswith(" &"):
            self.start(command.removesuffix(" &"))
            return
        done = subprocess.run(
            command, shell=True, cwd=self.home, env=self.environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"$ {command}\n{done.stderr}"
        pattern = re.escape(expected.strip()).replace(re.escape("..."), ".*")
        assert re.fullmatch(pattern, done.stdout.strip()), f"$ {command}\n{done.stdout}"

    def start(self, command: str) -> None:
        with (self.home / "log").open("wb") as log:
            process = subprocess.Popen(
                "exec " + command, shell=True, cwd=self.home, env=self.environment, stdout=log, stderr=log
            )
        self.running.append(process)
        deadline = time.monotonic() + 20
        while not self.is_up(command):
            assert process.poll() is None, (self.home / "log").read_text()
            assert time.monotonic() < deadline, "it does not listen"
            time.sleep(0.05)

    def is_up(self, command: str) -> bool:
        """A cluster says so; a server listens."""
        if command.startswith("omnistate cluster"):
            return "Ctrl-C ends" in (self.home / "log").read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def leave(self) -> None:
        for process in self.running:
            process.send_signal(signal.SIGINT)
            process.wait(20)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    one = Reader(tmp_path)
    yield one
    one.leave()


def test_the_readme(reader: Reader) -> None:
    assert reader.follow(ROOT / "README.md") == 1


def test_the_guide(reader: Reader) -> None:
    if shutil.which("node") is None or not (SDK / "centrifuge").is_dir():
        missing("node with the JavaScript SDK", "apt-get install nodejs npm && (cd tests/gateway/sdk && npm ci)")
    if shutil.which("curl") is None:
        missing("curl", "apt-get install curl")
    assert reader.follow(ROOT / "docs" / "guide.md") == 9


TOPICS = {
    "identities": 1,
    "collections": 2,
    "transactions": 3,
    "time": 3,
    "codecs": 3,
    "evolution": 2,
    "history": 2,
    "queries": 1,
    "bulk": 7,
    "sync": 1,
    "erasure": 8,
    "topologies": 2,
    "web": 6,
}  # pages about one thing, and how many commands each has


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic(reader: Reader, topic: str) -> None:
    if topic == "codecs":  # what protoc makes of the page's cart.proto; protoc itself is not asked for
        (reader.home / "cart_pb2.py").write_text((ROOT / "tests" / "messages.py").read_text())
    assert reader.follow(ROOT / "docs" / f"{topic}.md") == TOPICS[topic]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_that_the_docs_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)`", page.read_text())) <= targets, page.name


def test_figures_in_the_docs_are_those_of_the_results() -> None:
    results = (ROOT / "benchmarks" / "results" / "results.md").read_text()
    assert results in (ROOT / "docs" / "performance.md").read_text()
    readme = " ".join((ROOT / "README.md").read_text().split())
    hot = re.search(r"64 callers / WATCH, redis-py \| (\d+) x", results)
    operation = re.search(r"MULTI\+PUBLISH, redis-py \| ([\d.]+) x", results)
    assert hot is not None
    assert operation is not None
    assert f"{hot[1]} times the updates of WATCH" in readme
    assert f"is {float(operation[1]):.0f} times MULTI" in readme
    cached = re.search(r"frozen / GET and decode, redis-py \| (\d+) x", results)
    assert cached is not None
    assert f"from the near cache {cached[1]} times GET" in readme


def test_the_access_list_of_the_reference_has_every_command() -> None:
    page = (ROOT / "docs" / "reference" / "store.md").read_text()
    source = "".join(file.read_text() for file in (ROOT / "src").rglob("functions.lua"))
    called = re.findall(r"redis_p?call\((.*?)[,)]|command = (.*)", source)
    commands = {name.lower() for pair in called for name in re.findall(r"'([A-Z]+)'", "".join(pair))}
    assert len(commands) > 50
    assert commands <= set(re.findall(r" \+([a-z]+)", page))


async def test_the_access_list_of_the_reference_is_enough(url: str, raw: Redis, tenant: str) -> None:
    page = (ROOT / "docs" / "reference" / "store.md").read_text()
    [rules] = re.findall(r"^ACL SETUSER (.*)$", page, re.MULTILINE)
    servers = primaries(raw)
    for server in servers:
        server.execute_command("ACL", "SETUSER", *rules.split())
        server.function_flush()
    async with omnistate.connect(url.replace("//", "//omnistate:secret@"), tenant=tenant) as omni:
        await everything(omni, "acl")
        async with contextlib.aclosing(omni.customer("ana").state(Cart).watch()) as changes:
            await anext(changes)
            await omni.customer("ana").state(Cart).update(Cart.add, "cup")
            assert (await anext(changes)).value.items == {"cup": 1}
    for server in servers:
        assert server.execute_command("ACL", "LOG") == []
        server.execute_command("ACL", "DELUSER", "omnistate")
