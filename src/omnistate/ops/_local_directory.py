"""The directory of servers on this machine: what is in it, who holds it, and on which ports its servers listen."""

from __future__ import annotations

import os
import random
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Literal

import msgspec

from omnistate.errors import DataDirectoryTooNew, DataDirectoryUnusable, PortInUse
from omnistate.store import LOCK_FILE, check_writable, hold, make_private, private, say_who_holds

HOST = "127.0.0.1"
FORMAT = 1
FURTHER_PORTS = {"cluster": 10_000, "sentinel": 20_000}  # the cluster bus and the sentinels: so far above the servers
_LAYOUT_FILE = "topology.json"
# Below the ports that systems give to outgoing connections: one of those could sit where a server is to come back.
_FREE_FROM, _FREE_TO = 10_000, 12_700


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Which servers there are. Written in the directory, so that it comes back as what it was."""

    kind: Literal["cluster", "sentinel"]
    shards: int = 1
    replicas: int
    sentinels: int = 0
    first_port: int = 0
    formed: bool = False
    format: int = FORMAT

    def __str__(self) -> str:
        replicas = f"{self.replicas} replica{'' if self.replicas == 1 else 's'}"
        if self.kind == "cluster":
            return f"a cluster of {self.shards} shards with {replicas} each"
        return f"a primary with {replicas} and {self.sentinels} sentinels"

    @property
    def servers(self) -> int:
        return self.shards * (1 + self.replicas)

    def ports(self) -> list[int]:
        """All ports that are needed."""
        first, further = self.first_port, self.first_port + FURTHER_PORTS[self.kind]
        above = self.servers if self.kind == "cluster" else self.sentinels
        return [*range(first, first + self.servers), *range(further, further + above)]

    def is_like(self, other: Layout) -> bool:
        """Whether it has as many servers of each kind, on whatever ports."""
        return self._counts() == other._counts()

    def _counts(self) -> tuple[str, int, int, int]:
        return self.kind, self.shards, self.replicas, self.sentinels


class LocalDirectory:
    """A directory that this process holds, with a subdirectory for each server."""

    def __init__(self, path: Path, lock: int, layout: Layout, *, is_new: bool, temporary: bool) -> None:
        self.path, self.lock, self.layout = path, lock, layout
        self._is_new, self._temporary = is_new, temporary

    @classmethod
    def acquire(cls, path: Path | None, wanted: Layout) -> LocalDirectory:
        """Takes the directory; None makes a temporary one. Raises `PortInUse` and the `DataDirectory...` errors."""
        where = Path(tempfile.mkdtemp(prefix="omnistate-")) if path is None else path.expanduser().absolute()
        is_new = not where.exists()
        make_private(where, marker=_LAYOUT_FILE, whose="a local cluster's")
        check_writable(where)
        lock = hold(where, end_orphan=lambda _: None)
        try:
            directory = cls(where, lock, _read(where) or wanted, is_new=is_new, temporary=path is None)
        except BaseException:
            os.close(lock)
            raise
        try:
            directory._settle(wanted)
        except BaseException:
            directory.release()
            raise
        return directory

    def of(self, name: str) -> Path:
        """The subdirectory of one server."""
        path = self.path / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def mark_formed(self, url: str) -> None:
        """From now on the servers are started again as they are; others are told where they can be reached."""
        self.layout = msgspec.structs.replace(self.layout, formed=True)
        self._write()
        say_who_holds(self.lock, url)

    def release(self) -> None:
        """Gives it up. Removes what is not to be kept: a temporary one, and what was never complete."""
        if self._temporary:
            shutil.rmtree(self.path, ignore_errors=True)
        elif not self.layout.formed:
            self._clear()
            (self.path / LOCK_FILE).unlink(missing_ok=True)
            if self._is_new:
                self.path.rmdir()
        os.close(self.lock)

    def _settle(self, wanted: Layout) -> None:
        found = self.layout
        if found.formed and not found.is_like(wanted):
            raise DataDirectoryUnusable(
                f"{self.path} holds {found}, not {wanted}: ask for that, or choose another data_dir"
            )
        if found.formed and wanted.first_port not in (0, found.first_port):
            raise DataDirectoryUnusable(
                f"{self.path} holds {found} on ports from {found.first_port}: ask for that port, or choose another data_dir"
            )
        if not found.formed:
            self._clear()
            self.layout = wanted if wanted.first_port else _on_free_ports(wanted)
            self._write()
        for port in self.layout.ports():
            if not _is_free(port):
                raise PortInUse(f"port {port} is in use, one of {_ranges(self.layout)}: choose another --port")

    def _write(self) -> None:
        beside = self.path / (_LAYOUT_FILE + ".new")
        with open(beside, "wb", opener=private) as file:
            file.write(msgspec.json.encode(self.layout))
        beside.replace(self.path / _LAYOUT_FILE)

    def _clear(self) -> None:
        (self.path / _LAYOUT_FILE).unlink(missing_ok=True)
        for part in [*self.path.glob("server-*"), *self.path.glob("sentinel-*")]:
            shutil.rmtree(part)


def recorded_port(path: Path) -> int | None:
    """The first port of what is kept in this directory; None when nothing is."""
    try:
        layout = _read(path.expanduser().absolute())
    except (DataDirectoryUnusable, DataDirectoryTooNew):
        return None  # starting there says it
    return layout.first_port if layout is not None and layout.formed else None


def _read(path: Path) -> Layout | None:
    try:
        layout = msgspec.json.decode((path / _LAYOUT_FILE).read_bytes(), type=Layout)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise DataDirectoryUnusable(f"{path / _LAYOUT_FILE} cannot be read: choose another data_dir") from error
    if layout.format > FORMAT:
        raise DataDirectoryTooNew(f"{path} has format {layout.format}: upgrade omnistate, or choose another data_dir")
    return layout


def _on_free_ports(layout: Layout) -> Layout:
    for first in random.sample(range(_FREE_FROM, _FREE_TO), 50):
        placed = msgspec.structs.replace(layout, first_port=first)
        if all(_is_free(port) for port in placed.ports()):
            return placed
    raise PortInUse(f"there is no room for {layout} between ports {_FREE_FROM} and {_FREE_TO}: name a port")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _ranges(layout: Layout) -> str:
    ports = layout.ports()
    below, above = ports[: layout.servers], ports[layout.servers :]
    return f"{below[0]}-{below[-1]} and {above[0]}-{above[-1]} that are needed"
