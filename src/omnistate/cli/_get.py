"""`omnistate get`"""

from __future__ import annotations

import json

from omnistate.cli._common import EMBEDDED, Json, Store, described, load_app, plain, run, state_of


def get(
    customer: str,
    state: str,
    /,
    *,
    app: str,
    as_json: Json = False,
    store: Store = EMBEDDED,
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
        Print one JSON object with value, version and position, as --expect and --after take them.
    """
    declared = load_app(app)
    kind = state_of(declared, state)

    async def work() -> None:
        async with store.connect(keyring=declared.keyring) as omni:
            snapshot = await omni.customer(customer).state(kind).read()
        print(described(snapshot) if as_json else json.dumps(plain(snapshot.value), indent=2, ensure_ascii=False))

    run(work())
