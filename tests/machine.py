"""Server processes of the tests, and what a machine may lack: said clearly, and a failure in CI."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

CI = os.environ.get("CI") == "true"


def missing(what: str, how: str) -> None:
    """A tool of the machine is not there: a failure in CI, else a skip that says how to get it."""
    message = f"{what} is missing: {how}"
    if CI:
        pytest.fail(message)
    pytest.skip(message)


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
