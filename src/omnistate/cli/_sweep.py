"""`omnistate sweep`"""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

from cyclopts import Parameter

from omnistate.cli._common import EMBEDDED, Store, Terminated, run
from omnistate.ops import Sweeper


def sweep(*, once: Annotated[bool, Parameter(negative="")] = False, store: Store = EMBEDDED) -> None:
    """End what has expired, so that everybody sees it end. `omnistate serve` does this by itself.

    Parameters
    ----------
    once
        End what has expired by now and exit; otherwise look every second until interrupted.
    """

    async def work() -> None:
        async with store.connect(sweep=False) as omni:
            sweeper = Sweeper(omni.services, omni.keyspace)
            if once:
                print(f"ended {await sweeper.sweep():,}", file=sys.stderr)
                return
            print(f"sweeping {omni.url} every second", file=sys.stderr)
            await sweeper.run()

    with contextlib.suppress(Terminated):  # the usual way to end it
        run(work())
