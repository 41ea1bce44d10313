"""A directory that one process holds, with the servers it started: its lock, and who has it."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omnistate.errors import DataDirectoryInUse, DataDirectoryUnusable

LOCK_FILE = "lock"
_ORPHAN_PATIENCE = 3.0  # seconds for the servers of a killed process to be gone


def private(path: str, flags: int) -> int:
    """An opener whose files only their owner may read."""
    return os.open(path, flags, 0o600)


@dataclass(frozen=True, slots=True)
class Holder:
    """What the lock file tells of the process that holds the directory."""

    pid: int
    url: str


def make_private(path: Path, *, marker: str, whose: str) -> bool:
    """Whether the directory, which is made if it is not there, has been used before: it holds `marker`, or else nothing.

    Raises `DataDirectoryUnusable`.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = {entry.name for entry in path.iterdir()}
    except NotADirectoryError:
        raise DataDirectoryUnusable(f"{path} is not a directory: choose another data_dir") from None
    except FileExistsError:
        raise DataDirectoryUnusable(f"{path} is a file: choose another data_dir") from None
    except OSError as error:
        raise DataDirectoryUnusable(f"{path} cannot be used ({error.strerror}): choose another data_dir") from error
    if names - {LOCK_FILE} and marker not in names:
        raise DataDirectoryUnusable(f"{path} holds files that are not {whose}: choose an empty or new directory")
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise DataDirectoryUnusable(f"{path} belongs to another user: choose another data_dir")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise DataDirectoryUnusable(f"{path} can be read by other users: chmod 700 {path}")
    return marker in names


def check_writable(path: Path) -> None:
    if not os.access(path, os.W_OK | os.X_OK):
        raise DataDirectoryUnusable(f"{path} is not writable for this user: chmod u+wx it, or choose another data_dir")


def hold(path: Path, *, end_orphan: Callable[[Holder], None]) -> int:
    """The descriptor of the directory's lock; it lasts as long as we or a server that inherited it. Raises
    `DataDirectoryInUse`.

    Waits for the servers of a killed process to end; where they do not by themselves, `end_orphan` tells them to.
    """
    lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(path, lock, end_orphan)
    except BaseException:
        os.close(lock)
        raise
    return lock


def say_who_holds(lock: int, url: str) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, json.dumps({"pid": os.getpid(), "url": url}).encode(), 0)


def holder_of(path: Path) -> Holder | None:
    """Who holds the directory now, as far as it says; None when nobody does."""
    try:
        lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return _holder(lock)
    finally:
        os.close(lock)
    return None


def _lock(path: Path, lock: int, end_orphan: Callable[[Holder], None]) -> None:
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
            end_orphan(holder)
        time.sleep(0.01)


def _holder(lock: int) -> Holder | None:
    try:
        said = json.loads(os.pread(lock, 65536, 0))
        return Holder(int(said["pid"]), str(said["url"]))
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
