"""`omnistate serve`"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
from pathlib import Path
from typing import Annotated

import structlog
from cyclopts import Parameter

from omnistate.cli._common import EMBEDDED, Store, Terminated, UsageError, load_app, run
from omnistate.gateway import MIN_SECRET_BYTES, THIS_MACHINE, DevTokens, Tokens, bind, serving

_LOUD = """
  !!  DEVELOPMENT MODE: tokens are not checked. Whoever reaches this port may be any customer or agent.
  !!  Tokens look like  dev:web:visitor-1  (a customer)  or  dev:desk:maria:agent  (an agent).
"""


def serve(
    app: str,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_secret_file: Path | None = None,
    dev: Annotated[bool, Parameter(negative="")] = False,
    origin: Annotated[list[str] | None, Parameter(negative="")] = None,
    store: Store = EMBEDDED,
) -> None:
    """Serve an app: HTTP and WebSocket on one port.

    Parameters
    ----------
    app
        The app, as module:app.
    host
        The address to listen on.
    port
        The port to listen on.
    token_secret_file
        A file with the secret (32 bytes or more) that signs tokens (JWT, HS256); or set OMNISTATE_TOKEN_SECRET.
    dev
        Development mode: tokens are not checked. Only on this machine.
    origin
        An origin whose pages may connect, for example https://shop.example; may be repeated. By default the page's own.
    """
    declared = load_app(app)
    tokens = _tokens(token_secret_file, dev=dev, host=host)
    listener = bind(host, port)
    _log_to_stderr()

    async def work() -> None:
        async with (
            store.connect(sweep=True, keyring=declared.keyring, channels=declared.channels) as omni,
            serving(omni, declared, tokens, listener, origins=origin, hosts=THIS_MACHINE if dev else None) as gateway,
        ):
            here = f"http://{host}:{listener.getsockname()[1]}"
            if dev:
                print(_LOUD, file=sys.stderr)
            print(f"serving {declared.title} on {here}   API: {here}/docs   store: {omni.url}", file=sys.stderr)
            await gateway.until_closed()

    with contextlib.suppress(Terminated):  # the usual way to end a server
        run(work())


def _tokens(secret_file: Path | None, *, dev: bool, host: str) -> Tokens:
    if dev:
        if host not in THIS_MACHINE:
            raise UsageError(f"--dev checks no tokens, so it serves this machine only, not {host}: leave --host away")
        return DevTokens(secrets.token_bytes(MIN_SECRET_BYTES))
    if secret_file is not None:
        try:
            return Tokens(secret_file.read_bytes().removesuffix(b"\n").removesuffix(b"\r"))
        except OSError as error:
            raise UsageError(f"{secret_file} cannot be read: {error.strerror}") from error
    secret = os.environ.get("OMNISTATE_TOKEN_SECRET", "")
    if not secret:
        raise UsageError(
            "tokens need a secret: set OMNISTATE_TOKEN_SECRET or --token-secret-file; to try things out, use --dev"
        )
    return Tokens(secret.encode())


def _log_to_stderr() -> None:
    """Events with fields, a line each; colours on a terminal."""
    processors: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    renderer = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=processors,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    for name in ("omnistate", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.WARNING if name.startswith("uvicorn") else logging.INFO)
