"""`omnistate watch`"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from omnistate import Position
from omnistate.cli._common import connect, load_app, run, state_of


def watch(
    customer: str,
    state: str,
    *,
    app: str,
    after: str | None = None,
    count: int | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    url: str | None = None,
    data_dir: Path | None = None,
    tenant: str = "default",
) -> None:
    """Print a customer's state now and whenever it changes, until Ctrl-C.

    Parameters
    ----------
    customer
        The customer's id.
    state
        The state's name, for example Cart.
    app
        Where it is declared, as module:app.
    after
        Resume after this position, as epoch:offset.
    count
        End after so many lines.
    as_json
        Print one JSON object a line.
    url
        The server; by default OMNISTATE_URL, else the embedded one.
    data_dir
        The embedded server's directory.
    tenant
        The tenant.
    """
    kind = state_of(load_app(app), state)
    position = None if after is None else Position.parse(after)

    async def work() -> None:
        left = count
        async with connect(url, data_dir, tenant) as omni:
            print(f"watching {state} of {customer} on {omni.url}; Ctrl-C ends", file=sys.stderr)
            async for change in omni.customer(customer).state(kind).watch(after=position):
                value = json.loads(msgspec.json.encode(change.value))
                if as_json:
                    said = {"value": value, "version": change.version, "position": str(change.position)}
                    print(json.dumps(said), flush=True)
                else:
                    print(f"{change.position}  {json.dumps(value, ensure_ascii=False)}", flush=True)
                left = None if left is None else left - 1
                if left == 0:
                    return

    run(work())
