"""`omnistate set`"""

from __future__ import annotations

import json
import sys

from omnistate import ANY, Position
from omnistate.cli._common import EMBEDDED, Json, Store, load_app, run, state_of
from omnistate.state import schema_of


def set_(
    customer: str,
    state: str,
    value: str,
    /,
    *,
    app: str,
    expect: str | None = None,
    as_json: Json = False,
    store: Store = EMBEDDED,
) -> None:
    """Replace a customer's state.

    Parameters
    ----------
    customer
        The customer's id.
    state
        The state's name, for example Cart.
    value
        The whole value as JSON, or - to read it from standard input.
    app
        Where it is declared, as module:app.
    expect
        The version that must still be there, as epoch:offset.
    as_json
        Print the new version as JSON.
    """
    declared = load_app(app)
    kind = state_of(declared, state)
    text = sys.stdin.buffer.read() if value == "-" else value.encode(errors="surrogatepass")
    parsed = schema_of(kind).parse(text)
    precondition = ANY if expect is None else Position.parse(expect)

    async def work() -> None:
        async with store.connect(keyring=declared.keyring) as omni:
            version = await omni.customer(customer).via("command line").state(kind).set(parsed, expect=precondition)
        print(json.dumps({"version": str(version)}) if as_json else version)

    run(work())
