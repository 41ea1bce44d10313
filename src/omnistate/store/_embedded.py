"""The embedded server: a valkey-server of our own on a unix socket, started, watched and ended by this process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import timedelta
from pathlib import Path

from omnistate.errors import ServerFailed
from omnistate.store._binary import find_binary
from omnistate.store._datadir import DataDir, default_data_dir
from omnistate.store._process import Profile, ServerProcess, common_settings, quoted
from omnistate.store._url import Endpoint

_SOON = 5.0  # a server that dies within this many seconds of its start died "soon";
_TRIES = 5  # after so many of them in a row it is given up


class EmbeddedServer:
    """Holds the data directory and keeps a server running on it. A server that dies is started again."""

    def __init__(self, directory: DataDir, binary: Path, profile: Profile, timeout: timedelta) -> None:
        self._directory, self._binary, self._profile, self._timeout = directory, binary, profile, timeout
        self._process: ServerProcess | None = None
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
        server = cls(directory, binary, profile, timeout)
        try:
            await server._launch().wait_until_ready(timeout)
        except BaseException:
            await server.close()
            raise
        server._keeper = asyncio.create_task(server._keep())
        return server

    @property
    def url(self) -> str:
        return self._directory.url

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
        if self._process is not None:
            await self._process.end()
        self._directory.release()

    def _launch(self) -> ServerProcess:
        self.socket.unlink(missing_ok=True)
        self._process = ServerProcess(
            [self._binary, "-"],
            self._settings(),
            directory=self.data_dir,
            endpoint=Endpoint(path=str(self.socket)),
            lock=self._directory.lock,
        )
        return self._process

    def _settings(self) -> list[str]:
        """Given on standard input: arguments can be read by every user of the machine."""
        return [
            "port 0",
            f"unixsocket {quoted(self.socket)}",
            "unixsocketperm 700",
            *common_settings(self._profile, directory=self.data_dir),
        ]

    async def _keep(self) -> None:
        """Starts the server again whenever it ends. Gives up when it keeps dying: a full disk does not heal by trying."""
        assert self._process is not None
        process, tries = self._process, 0
        while True:
            started = time.monotonic()
            await process.wait_until_ended()
            tries = tries + 1 if time.monotonic() - started < _SOON else 1
            if tries > _TRIES:
                self._failed = ServerFailed(
                    f"the embedded server ended {tries} times in a row (last with {process.poll()}). Its log says:\n"
                    + process.last_words()
                )
                return
            if tries > 1:
                await asyncio.sleep(min(0.05 * 2**tries, 2.0))
            try:
                process = self._launch()
            except OSError as error:
                self._failed = ServerFailed(f"the embedded server ended, and cannot be started again: {error}")
                return
            with contextlib.suppress(ServerFailed):
                await process.wait_until_ready(self._timeout)
