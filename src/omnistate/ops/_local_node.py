"""One server process of several on this machine."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from omnistate.errors import ServerFailed
from omnistate.ops._local_directory import HOST
from omnistate.store import Endpoint, ServerProcess

Role = Literal["primary", "replica", "sentinel"]
_ROLES: dict[bytes, Role] = {b"master": "primary", b"slave": "replica", b"sentinel": "sentinel"}
_START = timedelta(seconds=15)


@dataclass(eq=False)
class Node:
    """A server, known by its port, for as long as the set-up lives: its process may be killed and started again."""

    port: int
    directory: Path = field(repr=False)
    command: Sequence[str | Path] = field(repr=False)
    settings: Sequence[str] = field(repr=False)
    lock: int = field(repr=False)
    _process: ServerProcess | None = field(default=None, init=False, repr=False)

    def __str__(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        return f"redis://{self}"

    @property
    def pid(self) -> int:
        """The present process id: another one after `restart`."""
        return self._running.pid

    @property
    def is_running(self) -> bool:
        """Also of one that is paused."""
        return self._process is not None and self._process.poll() is None

    async def ask(self, *words: str | bytes | int) -> Any:
        """The reply to one command, on a connection of its own. Raises `OSError`, and `StoreError` for an error reply."""
        return await self._running.ask(*words)

    async def role(self) -> Role:
        """What it says that it is: a zombie says primary too. One round trip."""
        return _ROLES[(await self.ask("ROLE"))[0]]

    async def info(self, section: str) -> dict[str, str]:
        """A section of INFO."""
        lines = (await self.ask("INFO", section)).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def launch(self) -> None:
        """Starts the process; does not wait."""
        endpoint = Endpoint(host=HOST, port=self.port)
        self._process = ServerProcess(
            self.command, self.settings, directory=self.directory, endpoint=endpoint, lock=self.lock
        )

    async def wait_until_answering(self) -> None:
        """Returns when it is up and has loaded its data. Raises `ServerFailed`."""
        await self._running.wait_until_ready(_START)

    def kill(self) -> None:
        """SIGKILL: it ends at once and says goodbye to nobody."""
        self._running.kill()

    def pause(self) -> None:
        """SIGSTOP: it keeps its connections and says nothing, as behind a broken network."""
        self._running.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT: it goes on after `pause`, with what it believed then."""
        self._running.signal(signal.SIGCONT)

    async def restart(self) -> None:
        """Ends the process, unless it has ended, and starts it on the same data and port."""
        await self.end()
        self.launch()
        await self.wait_until_answering()

    async def end(self) -> None:
        """Ends the process in order; one that is paused goes on for that."""
        if self._process is not None:
            self.resume()
            await self._process.end()

    def failed(self, complaint: str) -> ServerFailed:
        """The error that says so, with the end of the log."""
        return ServerFailed(f"{self} {complaint}. Its log says:\n{self._running.last_words()}")

    @property
    def _running(self) -> ServerProcess:
        assert self._process is not None, "it is started first"
        return self._process
