"""The embedded store's data directory: whose it is, what format it has, and who holds it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import stat
import sys
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from omnistate.errors import DataDirectoryTooNew, DataDirectoryUnusable
from omnistate.store._hold import check_writable, hold, holder_of, make_private, private, say_who_holds

FORMAT = 2  # 2: customers share the hash tags of 256 partitions
_FORMAT_FILE = "omnistate.json"
_LONGEST_SOCKET = 100  # bytes of a unix socket's path; systems allow 104 to 108


def default_data_dir() -> Path:
    """`OMNISTATE_DATA_DIR`, else a directory of this user."""
    if chosen := os.environ.get("OMNISTATE_DATA_DIR"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "omnistate" / "default"
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "omnistate" / "default"


class DataDir:
    """A directory that this process holds. The lock is inherited by the server, so it lasts as long as either lives."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path, self.lock = path, lock
        self.socket = _socket_path(path)

    @property
    def url(self) -> str:
        return "unix://" + quote(str(self.socket))

    @classmethod
    def acquire(cls, path: Path) -> DataDir:
        """Takes the directory, making it if it is not there. Raises the `DataDirectory...` errors; changes nothing then."""
        path = path.expanduser().absolute()
        _prepare(path)
        lock = hold(path, end_orphan=lambda _: _shut_down(_socket_path(path)))
        try:
            directory = cls(path, lock)
            directory._say_who_holds_it()
        except BaseException:
            os.close(lock)
            raise
        for litter in (path / "appendonlydir").glob("temp-rewriteaof-*.aof"):
            litter.unlink(missing_ok=True)
        return directory

    def release(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.unlink(missing_ok=True)
        os.close(self.lock)

    def _say_who_holds_it(self) -> None:
        with open(self.path / _FORMAT_FILE, "w", opener=private) as file:
            file.write(json.dumps({"format": FORMAT}) + "\n")
        say_who_holds(self.lock, self.url)


def running_url(path: Path | None = None) -> str | None:
    """The URL of the server that runs on this directory now, for another process to connect to; None when none does."""
    holder = holder_of((path or default_data_dir()).expanduser().absolute())
    if holder is None or not Path(unquote(urlsplit(holder.url).path)).exists():
        return None
    return holder.url


def _prepare(path: Path) -> None:
    if make_private(path, marker=_FORMAT_FILE, whose="omnistate's"):
        _check_format(path)
    check_writable(path)


def _check_format(path: Path) -> None:
    try:
        found = json.loads((path / _FORMAT_FILE).read_text())["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataDirectoryUnusable(
            f"{path / _FORMAT_FILE} cannot be read: restore it, or choose another data_dir"
        ) from error
    if found > FORMAT:
        raise DataDirectoryTooNew(
            f"{path} has format {found}, this omnistate reads up to {FORMAT}: upgrade omnistate, or choose another "
            "data_dir. Nothing was touched"
        )
    if found < FORMAT:
        raise DataDirectoryUnusable(
            f"{path} was written by an earlier omnistate, whose keys were spelled otherwise: move it away and start with a "
            "new one. Nothing was touched"
        )


def _shut_down(path: Path) -> None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        connection.connect(str(path))
        connection.sendall(b"*1\r\n$8\r\nSHUTDOWN\r\n")
        connection.recv(64)


def _socket_path(path: Path) -> Path:
    inside = path / "valkey.sock"
    if len(os.fsencode(inside)) <= _LONGEST_SOCKET:
        return inside
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) if runtime and len(runtime) < 40 else Path("/tmp")  # noqa: S108 - checked below
    private = base / f"omnistate-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        private.mkdir(mode=0o700)
    status = private.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise DataDirectoryUnusable(
            f"{private} must be a private directory of this user: remove it, or shorten data_dir"
        )
    return private / (hashlib.sha256(os.fsencode(path)).hexdigest()[:24] + ".sock")
