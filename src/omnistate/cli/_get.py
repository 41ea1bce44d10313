"""`omnistate get`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from omnistate.cli._common import connect, load_app, run, state_of


def get(
    customer: str,
    state: str,
    *,
    app: str,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    url: str | None = None,
    data_dir: Path | None = None,
    tenant: str = "default",
) -> None:
    """Read a customer's state.

    Parameters
    ----------
    customer
        The customer's id.
    state
        The state's name, for example Cart.
    app
        Where it is declared, as module:app.
    as_json
        Print one JSON object with value, version and position.
    url
        The server; by default OMNISTATE_URL, else the embedded one.
    data_dir
        The embedded server's directory.
    tenant
        The tenant.
    """
    kind = state_of(load_app(app), state)

    async def work() -> None:
        async with connect(url, data_dir, tenant) as omni:
            snapshot = await omni.customer(customer).state(kind).read()
        value = json.loads(msgspec.json.encode(snapshot.value))
        if as_json:
            position = {"epoch": snapshot.position.epoch, "offset": snapshot.position.offset}
            print(json.dumps({"value": value, "version": snapshot.version, "position": position}))
        else:
            print(json.dumps(value, indent=2, ensure_ascii=False))

    run(work())
