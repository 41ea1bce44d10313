"""Server processes: started with their settings on standard input, ended in order, gone when this process is gone."""

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
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import hiredis

from omnistate.errors import ServerFailed
from omnistate.store._command import pack
from omnistate.store._connection import open_connection
from omnistate.store._hold import private
from omnistate.store._replies import to_error
from omnistate.store._url import Endpoint

Profile = Literal["balanced", "safe"]
_PATIENCE = 2.0  # seconds for the reply to a command
_GRACE = 5.0  # seconds between SIGTERM and SIGKILL
_PR_SET_PDEATHSIG = 1
# A function makes many short strings, and Lua gives them back many at a time. The C library's allocator keeps 7 of a size at
# hand; with 512 and without its second, shared lists a write is a sixth cheaper. A server with another allocator ignores this.
ALLOCATOR = "glibc.malloc.tcache_count=512:glibc.malloc.mxfast=0"


class ServerProcess:
    """A server in its directory, where it also writes `server.log`. It runs as soon as this is made.

    On Linux it dies with the thread that made it, even when this process is killed: make it in one that lasts.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        settings: Sequence[str],
        *,
        directory: Path,
        endpoint: Endpoint,
        lock: int,
    ) -> None:
        self.name, self.endpoint, self._directory = Path(command[0]).name, endpoint, directory
        with open(directory / "server.log", "wb", opener=private) as log:
            self._process = subprocess.Popen(  # noqa: S603 - the program is the one that the user or find_binary chose
                [str(word) for word in command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env={"GLIBC_TUNABLES": ALLOCATOR, **os.environ},
                umask=0o077,
                pass_fds=[lock],
                start_new_session=True,  # Ctrl-C in a terminal is for us; we end the server in order
                preexec_fn=_die_with_parent(),  # noqa: PLW1509 - one system call, prepared before the fork
            )
        atexit.register(self._process.kill)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as told:
            told.write("".join(f"{line}\n" for line in settings).encode())

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """How it ended; None while it runs."""
        code = self._process.poll()
        if code is not None:
            atexit.unregister(self._process.kill)
        return code

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; one that has ended gets none."""
        if self.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Ends it at once; it is gone when this returns."""
        self.signal(signal.SIGKILL)
        self._process.wait()

    def last_words(self) -> str:
        """The end of its log."""
        text = (self._directory / "server.log").read_text(errors="replace")
        return "\n".join(line[:200] for line in text.splitlines()[-8:]) or "(nothing)"

    async def ask(self, *words: str | bytes | int) -> Any:
        """The reply to one command, on a connection of its own. Raises `OSError`, and `StoreError` for an error reply."""
        connection = await open_connection(self.endpoint, stall=_PATIENCE)
        try:
            reply = await connection.send(pack(*words))
        finally:
            connection.close()
        if isinstance(reply, hiredis.ReplyError):
            raise to_error(str(reply))
        return reply

    async def wait_until_ready(self, within: timedelta) -> None:
        """Returns when it is up and has loaded its data. Raises `ServerFailed`."""
        deadline = time.monotonic() + within.total_seconds()
        while not await _answers(self.endpoint):
            if self.poll() is not None:
                raise ServerFailed(f"{self.name} ended with {self.poll()}. Its log says:\n{self.last_words()}")
            if time.monotonic() > deadline:
                seconds = f"{within.total_seconds():g} s"
                raise ServerFailed(f"{self.name} did not answer in {seconds}. Its log says:\n{self.last_words()}")
            await asyncio.sleep(0.004)

    async def wait_until_ended(self) -> None:
        """Returns when the process is gone: woken by the kernel where it can, else by looking."""
        if self.poll() is not None:
            return
        try:
            descriptor = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            while self.poll() is None:  # noqa: ASYNC110 - there is nothing to be woken by
                await asyncio.sleep(0.05)
            return
        loop = asyncio.get_running_loop()
        gone = loop.create_future()
        loop.add_reader(descriptor, lambda: None if gone.done() else gone.set_result(None))
        try:
            await gone
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        self._process.wait()

    async def end(self) -> None:
        """Lets it write everything to disk and end; one that does not is killed."""
        self.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.wait_until_ended(), _GRACE)
        except TimeoutError:
            self.kill()
        atexit.unregister(self._process.kill)


def common_settings(profile: Profile, *, directory: Path, processes: int = 1) -> list[str]:
    """What every server that we start is told, one of so many on this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 // processes
    return [
        f"dir {quoted(directory)}",
        "daemonize no",
        'save ""',
        "appendonly yes",
        f"appendfsync {'always' if profile == 'safe' else 'everysec'}",
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


def quoted(path: Path) -> str:
    """A path as settings spell it."""
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


async def _answers(endpoint: Endpoint) -> bool:
    """Whether the server is up and has loaded its data."""
    try:
        if endpoint.path:
            reader, writer = await asyncio.open_unix_connection(endpoint.path)
        else:
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        async with asyncio.timeout(1):
            return (await reader.readline()).startswith(b"+PONG")
    except OSError:  # TimeoutError is one
        return False
    finally:
        writer.close()
