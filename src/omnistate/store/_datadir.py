"""The embedded store's data directory: whose it is, what format it has, and who holds it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import stat
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from omnistate.errors import DataDirectoryInUse, DataDirectoryTooNew, DataDirectoryUnusable

FORMAT = 2  # 2: customers share the hash tags of 256 partitions
_FORMAT_FILE, _LOCK_FILE = "omnistate.json", "lock"
_LONGEST_SOCKET = 100  # bytes of a unix socket's path; systems allow 104 to 108
_ORPHAN_PATIENCE = 3.0  # seconds for the server of a killed process to be gone


def private(path: str, flags: int) -> int:
    """An opener whose files only their owner may read."""
    return os.open(path, flags, 0o600)


def default_data_dir() -> Path:
    """`OMNISTATE_DATA_DIR`, else a directory of this user."""
    if chosen := os.environ.get("OMNISTATE_DATA_DIR"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "omnistate" / "default"
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "omnistate" / "default"


@dataclass(frozen=True, slots=True)
class Holder:
    """What the lock file tells of the process that holds the directory."""

    pid: int
    socket: Path

    @property
    def url(self) -> str:
        return "unix://" + quote(str(self.socket))


class DataDir:
    """A directory that this process holds. The lock is inherited by the server, so it lasts as long as either lives."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path, self.lock = path, lock
        self.socket = _socket_path(path)

    @classmethod
    def acquire(cls, path: Path) -> DataDir:
        """Takes the directory, making it if it is not there. Raises the `DataDirectory...` errors; changes nothing then."""
        path = path.expanduser().absolute()
        _prepare(path)
        lock = os.open(path / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(path, lock)
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
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, json.dumps({"pid": os.getpid(), "socket": str(self.socket)}).encode(), 0)


def running_url(path: Path | None = None) -> str | None:
    """The URL of the server that runs on this directory now, for another process to connect to; None when none does."""
    path = (path or default_data_dir()).expanduser().absolute()
    try:
        lock = os.open(path / _LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = _holder(lock)
        return holder.url if holder is not None and holder.socket.exists() else None
    finally:
        os.close(lock)
    return None


def _prepare(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        entries = {entry.name for entry in path.iterdir()}
    except NotADirectoryError:
        raise DataDirectoryUnusable(f"{path} is not a directory: choose another data_dir") from None
    except FileExistsError:
        raise DataDirectoryUnusable(f"{path} is a file: choose another data_dir") from None
    except OSError as error:
        raise DataDirectoryUnusable(f"{path} cannot be used ({error.strerror}): choose another data_dir") from error
    _check_mode(path)
    if entries and _FORMAT_FILE not in entries and entries - {_LOCK_FILE}:
        raise DataDirectoryUnusable(f"{path} holds files that are not omnistate's: choose an empty or new directory")
    if _FORMAT_FILE in entries:
        _check_format(path)
    if not os.access(path, os.W_OK | os.X_OK):
        raise DataDirectoryUnusable(f"{path} is not writable for this user: chmod u+wx it, or choose another data_dir")


def _check_mode(path: Path) -> None:
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise DataDirectoryUnusable(f"{path} belongs to another user: choose another data_dir")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise DataDirectoryUnusable(f"{path} can be read by other users: chmod 700 {path}")


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


def _lock(path: Path, lock: int) -> None:
    """Waits for the server of a killed process to end; on systems where it does not by itself, tells it to."""
    deadline, told = time.monotonic() + _ORPHAN_PATIENCE, False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = _holder(lock)
        else:
            return
        if holder is None or _is_alive(holder.pid) or time.monotonic() > deadline:
            by = f"process {holder.pid}" if holder is not None else "another process"
            instead = f'connect("{holder.url}")' if holder is not None else "its URL"
            raise DataDirectoryInUse(
                f"{path} is in use by {by}: connect to it with {instead}, or choose another data_dir"
            )
        if not told and time.monotonic() > deadline - _ORPHAN_PATIENCE / 2:
            told = True
            _shut_down(holder.socket)
        time.sleep(0.01)


def _holder(lock: int) -> Holder | None:
    try:
        said = json.loads(os.pread(lock, 4096, 0))
        return Holder(int(said["pid"]), Path(said["socket"]))
    except (ValueError, KeyError, TypeError, OSError):
        return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


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
