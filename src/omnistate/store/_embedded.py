"""The embedded server: a valkey-server of our own on a unix socket, started, watched and ended by this process."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from omnistate.errors import ServerFailed
from omnistate.store._binary import find_binary
from omnistate.store._datadir import DataDir, default_data_dir, private

Profile = Literal["balanced", "safe"]
_SOON = 5.0  # a server that dies within this many seconds of its start died "soon";
_TRIES = 5  # after so many of them in a row it is given up
_GRACE = 5.0  # seconds between SIGTERM and SIGKILL
_PR_SET_PDEATHSIG = 1


class EmbeddedServer:
    """Holds the data directory and keeps a server running on it. A server that dies is started again."""

    def __init__(self, directory: DataDir, binary: Path, profile: Profile, timeout: float) -> None:
        self._directory, self._binary, self._profile, self._timeout = directory, binary, profile, timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._failed: ServerFailed | None = None
        self._closed = False

    @classmethod
    async def start(
        cls,
        data_dir: Path | None = None,
        *,
        profile: Profile = "balanced",
        timeout: timedelta = timedelta(seconds=10),
    ) -> EmbeddedServer:
        """A server that answers. Raises `ServerBinaryMissing`, `ServerFailed`, and the `DataDirectory...` errors."""
        binary = find_binary()
        directory = await asyncio.to_thread(DataDir.acquire, data_dir or default_data_dir())
        server = cls(directory, binary, profile, timeout.total_seconds())
        try:
            server._launch()
            await server._wait_until_ready()
        except BaseException:
            await server.close()
            raise
        server._keeper = asyncio.create_task(server._keep())
        return server

    @property
    def url(self) -> str:
        return "unix://" + quote(str(self._directory.socket))

    @property
    def data_dir(self) -> Path:
        return self._directory.path

    @property
    def socket(self) -> Path:
        return self._directory.socket

    @property
    def pid(self) -> int:
        """The present server's process id; it changes when the server had to be started again."""
        assert self._process is not None
        return self._process.pid

    def raise_if_failed(self) -> None:
        """Raises `ServerFailed` once the server has been given up."""
        if self._failed is not None:
            raise self._failed

    async def close(self) -> None:
        """Ends the server, which writes everything to disk first, and gives the directory up."""
        if self._closed:
            return
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        process = self._process
        if process is not None:
            atexit.unregister(process.kill)
            process.terminate()
            try:
                await asyncio.wait_for(_ended(process), _GRACE)
            except TimeoutError:
                process.kill()
                await _ended(process)
        self._directory.release()

    def _launch(self) -> None:
        """Starts the process. On Linux it dies with the thread that made it, even when this process is killed."""
        self.socket.unlink(missing_ok=True)
        with open(self.data_dir / "server.log", "wb", opener=private) as log:
            process = subprocess.Popen(  # noqa: S603 - the program is the one that find_binary chose
                [str(self._binary), "-"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.data_dir,
                umask=0o077,
                pass_fds=[self._directory.lock],
                start_new_session=True,  # Ctrl-C in a terminal is for us; we end the server in order
                preexec_fn=_die_with_parent(),  # noqa: PLW1509 - one system call, prepared before the fork
            )
        if self._process is not None:
            atexit.unregister(self._process.kill)
        self._process = process
        atexit.register(process.kill)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(self._configuration().encode())
            process.stdin.close()

    def _configuration(self) -> str:
        """Given on standard input: arguments can be read by every user of the machine."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        lines = [
            "port 0",
            f"unixsocket {_quoted(self.socket)}",
            "unixsocketperm 700",
            f"dir {_quoted(self.data_dir)}",
            "daemonize no",
            'save ""',
            "appendonly yes",
            f"appendfsync {'always' if self._profile == 'safe' else 'everysec'}",
            "aof-timestamp-enabled yes",
            "aof-load-truncated yes",
            f"maxmemory {memory}",
            "maxmemory-policy noeviction",
            "busy-reply-threshold 500",
            "client-output-buffer-limit normal 64mb 16mb 30",
            "client-output-buffer-limit pubsub 64mb 16mb 30",
            "slowlog-max-len 0",  # its entries would hold customers' data
            "timeout 0",
        ]
        return "\n".join(lines) + "\n"

    async def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._timeout
        while not await _answers(self.socket):
            assert self._process is not None
            if self._process.poll() is not None:
                raise ServerFailed(
                    f"{self._binary.name} ended with {self._process.returncode}. Its log says:\n{self._log()}"
                )
            if time.monotonic() > deadline:
                raise ServerFailed(
                    f"{self._binary.name} did not answer in {self._timeout:g} s. Its log says:\n{self._log()}"
                )
            await asyncio.sleep(0.004)

    def _log(self) -> str:
        text = (self.data_dir / "server.log").read_text(errors="replace")
        return "\n".join(line[:200] for line in text.splitlines()[-8:]) or "(nothing)"

    async def _keep(self) -> None:
        """Starts the server again whenever it ends. Gives up when it keeps dying: a full disk does not heal by trying."""
        tries = 0
        while True:
            started = time.monotonic()
            assert self._process is not None
            await _ended(self._process)
            tries = tries + 1 if time.monotonic() - started < _SOON else 1
            if tries > _TRIES:
                code = self._process.returncode
                self._failed = ServerFailed(
                    f"the embedded server ended {tries} times in a row (last with {code}). Its log says:\n{self._log()}"
                )
                return
            if tries > 1:
                await asyncio.sleep(min(0.05 * 2**tries, 2.0))
            try:
                self._launch()
            except OSError as error:
                self._failed = ServerFailed(f"the embedded server ended, and cannot be started again: {error}")
                return
            with contextlib.suppress(ServerFailed):
                await self._wait_until_ready()


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _die_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None  # the lock outlives us with the server; the next start ends it through its socket
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


async def _answers(path: Path) -> bool:
    """Whether the server is up and has loaded its data."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(path))
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        return (await reader.readline()).startswith(b"+PONG")
    except OSError:
        return False
    finally:
        writer.close()


async def _ended(process: subprocess.Popen[bytes]) -> None:
    """Returns when the process is gone: woken by the kernel where it can, else by looking."""
    loop = asyncio.get_running_loop()
    if process.poll() is not None:
        return
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        while process.poll() is None:  # noqa: ASYNC110 - there is nothing to be woken by
            await asyncio.sleep(0.05)
        return
    gone = loop.create_future()
    loop.add_reader(descriptor, lambda: None if gone.done() else gone.set_result(None))
    try:
        await gone
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    process.wait()
