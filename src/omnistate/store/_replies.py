"""What the server's error replies mean, and which of them are worth another try."""

from __future__ import annotations

from omnistate.errors import (
    AuthenticationFailed,
    CustomerErased,
    LibraryMissing,
    OmnistateError,
    OutOfMemory,
    PermissionRefused,
    StoreError,
    StoreUnavailable,
    WritesDisabled,
)
from omnistate.store._keys import decode_id

# Refused before anything was applied, by a state of the server that passes: try again until the deadline.
_PASSING = (
    "LOADING",
    "BUSY",
    "READONLY",
    "NOREPLICAS",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "TRYAGAIN",
    "ERR max number of clients reached",
)
_MEANINGS: tuple[tuple[str, type[StoreError], str], ...] = (
    ("WRONGPASS", AuthenticationFailed, "the server refused this user and password: correct them in the URL"),
    ("NOAUTH", AuthenticationFailed, "the server wants a password: put it in the URL, redis://:password@host:port"),
    ("ERR AUTH", AuthenticationFailed, "the server has no password set, but the URL has one: remove it from the URL"),
    ("NOPERM", PermissionRefused, "the server's access list refuses a command that omnistate needs: see ACL LOG"),
    (
        "ERR ACL failure",
        PermissionRefused,
        "the server's access list refuses a command that omnistate needs: see ACL LOG",
    ),
    ("ERR unknown command", LibraryMissing, "the server has no functions: use Redis >= 7.0 or Valkey >= 7.2"),
    ("OOM", OutOfMemory, "the server is at its memory limit: raise maxmemory or delete data; nothing was changed"),
    (
        "MISCONF",
        WritesDisabled,
        "the server cannot persist writes: free disk space, or run BGREWRITEAOF after an I/O error",
    ),
    ("CROSSSLOT", StoreError, "the keys of one call are in several slots: please report this as a bug"),
    ("MOVED", StoreError, "the server is a node of a cluster: connect by redis+cluster://host:port,host:port"),
    ("ERR This instance has cluster support disabled", StoreError, "the server is no cluster: connect by redis://"),
)


def is_passing(message: str) -> bool:
    """Whether the server refused for a reason that passes by itself."""
    return message.startswith(_PASSING)


def is_function_missing(message: str) -> bool:
    return message.startswith("ERR Function not found")


def to_error(message: str) -> OmnistateError:
    """Our error for an error reply. The server's text is kept short: it may repeat what was sent."""
    if message.startswith("ERASED "):  # our functions' own
        return CustomerErased(decode_id(message.removeprefix("ERASED ").partition(".")[2].split(" ")[0]))
    for prefix, kind, meaning in _MEANINGS:
        if message.startswith(prefix):
            return kind(meaning)
    if is_passing(message):
        return StoreUnavailable(f"the server is not ready: {message[:80]}")
    return StoreError(f"the server refused the call: {message[:160]}")
