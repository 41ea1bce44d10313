"""Real servers for the tests: one embedded server and one Debian redis-server for a run, a namespace for each test."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from redis import Redis

import omnistate
from machine import DURABLE, Server, SteppedServer, TlsServer, raw_client, redis_8_binary, redis_binary, running
from omnistate.ops import LocalCluster, LocalSentinel, LocalSettings
from omnistate.store._binary import find_binary


@pytest.fixture(scope="session")
def valkey() -> Iterator[Server]:
    server = Server(find_binary())
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis() -> Iterator[Server]:
    server = Server(redis_binary())
    yield server
    server.stop()


@pytest.fixture(scope="session")
def mortal_valkey() -> Iterator[SteppedServer]:
    """One that loses nothing when it is killed, and whose clock can be stepped."""
    server = SteppedServer(find_binary(), *DURABLE)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def mortal_redis() -> Iterator[Server]:
    """One that loses nothing when it is killed."""
    server = Server(redis_binary(), *DURABLE)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def tls() -> Iterator[TlsServer]:
    server = TlsServer()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_8() -> Iterator[Server]:
    server = Server(redis_8_binary())
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[LocalCluster]:
    settings = LocalSettings(binary=Path(redis_binary()), durability="none")
    yield from running(LocalCluster(node_timeout=timedelta(seconds=1.5), settings=settings))


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """Three shards with a replica each."""
    yield from running(
        LocalCluster(node_timeout=timedelta(seconds=1.5), settings=LocalSettings(durability="none")),
    )


@pytest.fixture(scope="session")
def sentinel() -> Iterator[LocalSentinel]:
    """A primary with a replica and three sentinels."""
    yield from running(LocalSentinel(settings=LocalSettings(durability="none")))


def pytest_addoption(parser: pytest.Parser) -> None:
    kinds = "valkey, redis, redis_8, tls, cluster, redis_cluster, sentinel"
    parser.addoption("--servers", help=f"what to run on, of: {kinds}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "url" in metafunc.fixturenames and not hasattr(metafunc.module, "url"):  # else the module has its own servers
        is_sync = "sync" in Path(metafunc.module.__file__).parts  # what differs there is the client
        servers = metafunc.config.getoption("servers") or ("valkey" if is_sync else "valkey,redis_cluster")
        metafunc.parametrize("url", servers.split(","), indirect=True)


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """The URL of each kind of server in turn."""
    return str(request.getfixturevalue(request.param).url)


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
    client = raw_client(url)
    yield client
    client.close()


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Tells a line at the end of the run: a pause, what was lost."""
    return lambda line: request.node.user_properties.append(("measured", line))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        one for word in ("passed", "failed") for one in terminalreporter.stats.get(word, []) if one.when == "call"
    ]
    lines = [line for report in reports for what, line in report.user_properties if what == "measured"]
    if lines:
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A private directory with a short path."""
    path = Path(tempfile.mkdtemp(prefix="omni-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
