"""`omnistate version`"""

from __future__ import annotations

import json
import platform
import subprocess
from typing import Annotated

from cyclopts import Parameter

import omnistate
from omnistate.errors import ServerBinaryMissing
from omnistate.store import find_binary, library


def version(*, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """Show the versions of omnistate, its server-side library, Python and the embedded server.

    Parameters
    ----------
    as_json
        Print JSON.
    """
    found = {
        "omnistate": omnistate.__version__,
        "library": library().name,
        "python": platform.python_version(),
        "server": _server(),
    }
    if as_json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name:<10} {value}" for name, value in found.items()))


def _server() -> str:
    try:
        said = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, timeout=5, check=False)  # noqa: S603
    except (ServerBinaryMissing, OSError, subprocess.TimeoutExpired):
        return "none"
    words = said.stdout.split()
    number = next((word.removeprefix("v=") for word in words if word.startswith("v=")), "?")
    return f"{words[0].lower() if words else 'unknown'} {number}"
