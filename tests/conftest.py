"""Real servers for the tests: one embedded server and one Debian redis-server for a run, a namespace for each test."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from redis import Redis

import omnistate
from machine import missing
from omnistate.store._binary import find_binary


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server process of the tests, ended by its own pid."""

    def __init__(self, binary: Path | str, *options: str, directory: Path | None = None) -> None:
        self.binary, self.options = str(binary), options
        self.directory = directory or Path(tempfile.mkdtemp(prefix="omnistate-test-"))
        self.port = free_port()
        self.start()

    def start(self) -> None:
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory), "--save", ""]
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen([self.binary, *arguments, *self.options], stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                probe.sendall(b"PING\r\n")
                if probe.recv(64)[:1] in b"+-":
                    return
            time.sleep(0.005)
        raise RuntimeError((self.directory / "log").read_text())

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


@pytest.fixture(scope="session")
def valkey() -> Iterator[Server]:
    server = Server(find_binary())
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis() -> Iterator[Server]:
    binary = shutil.which("redis-server")
    if binary is None:
        missing("redis-server", "apt-get install redis-server")
    server = Server(str(binary))
    yield server
    server.stop()


@pytest.fixture(params=["valkey", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of each kind of server in turn."""
    server: Server = request.getfixturevalue(request.param)
    return server.url


Connect = Callable[..., omnistate.Client]


@pytest.fixture
def tenant() -> str:
    """A namespace of its own for each test."""
    return "t-" + secrets.token_hex(6)


@pytest.fixture
def connect(url: str, tenant: str) -> Connect:
    def make(**options: object) -> omnistate.Client:
        return omnistate.connect(**{"url": url, "tenant": tenant, "timeout": timedelta(seconds=5)} | options)  # type: ignore[arg-type]

    return make


@pytest.fixture
async def omni(connect: Connect) -> AsyncIterator[omnistate.Client]:
    async with connect() as client:
        yield client


@pytest.fixture
def raw(url: str) -> Iterator[Redis]:
    """Another client, to look at and to disturb what is stored."""
    client = Redis.from_url(url)
    yield client
    client.close()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A private directory with a short path."""
    path = Path(tempfile.mkdtemp(prefix="omni-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
