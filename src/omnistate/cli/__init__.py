"""The command line.

Exit codes: 0 done; 1 the work failed (an error of omnistate, or a demo step that was not seen); 2 the command line was
wrong; 130 interrupted; 143 terminated (for a server that is how it is done: 0). Data goes to standard output, everything
else to standard error.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from omnistate.errors import MissingExtra, OmnistateError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    try:
        from omnistate.cli._app import make_cli  # noqa: PLC0415 - it needs the server extra
        from omnistate.cli._common import Terminated  # noqa: PLC0415
    except ModuleNotFoundError as error:
        print(
            f"omnistate: {MissingExtra('the command line', extra='server')} ({error.name} is missing)", file=sys.stderr
        )
        return 2
    try:
        return make_cli()(arguments) or 0
    except OmnistateError as error:
        print(f"omnistate: {error}", file=sys.stderr)
        return 2 if error.code == "usage" else 1
    except Terminated:
        return 143
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    except BrokenPipeError:
        return 0
