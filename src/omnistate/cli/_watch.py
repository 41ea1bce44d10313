"""`omnistate watch`"""

from __future__ import annotations

import json
import sys

from omnistate import Position
from omnistate.cli._common import EMBEDDED, Json, Store, described, load_app, plain, run, state_of


def watch(
    customer: str,
    state: str,
    /,
    *,
    app: str,
    after: str | None = None,
    count: int | None = None,
    as_json: Json = False,
    store: Store = EMBEDDED,
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
    """
    declared = load_app(app)
    kind = state_of(declared, state)
    position = None if after is None else Position.parse(after)

    async def work() -> None:
        left = count
        async with store.connect(keyring=declared.keyring) as omni:
            print(f"watching {state} of {customer} on {omni.url}; Ctrl-C ends", file=sys.stderr)
            async for change in omni.customer(customer).state(kind).watch(after=position):
                text = f"{change.position}  {json.dumps(plain(change.value), ensure_ascii=False)}"
                print(described(change) if as_json else text, flush=True)
                left = None if left is None else left - 1
                if left == 0:
                    return

    run(work())
