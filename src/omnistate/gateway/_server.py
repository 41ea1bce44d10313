"""`serve`: one port for HTTP and WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Collection, Sequence

import uvicorn
from starlette.routing import BaseRoute

from omnistate import Client, PortInUse
from omnistate.app import App
from omnistate.gateway._auth import Tokens
from omnistate.gateway._bounded_http import BoundedHttp
from omnistate.gateway._connection import Limits
from omnistate.gateway._gateway import Gateway
from omnistate.gateway._http import http_app
from omnistate.gateway._websocket import drain, websocket_protocol

log = logging.getLogger("omnistate.gateway")
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises `PortInUse`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise PortInUse(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another port with --port"
        ) from error
    listener.setblocking(False)
    return listener


@contextlib.asynccontextmanager
async def serving(
    client: Client,
    app: App,
    tokens: Tokens,
    listener: socket.socket,
    *,
    origins: Collection[str] | None = None,
    hosts: Collection[str] | None = None,
    limits: Limits | None = None,
    routes: Sequence[BaseRoute] = (),
) -> AsyncIterator[Gateway]:
    """The gateway, serving on `listener` until the block ends; then its clients are sent away in order.

    With `hosts`, only requests whose Host names one of them are served: a page that gives its own name this machine's
    address is refused.
    """
    gateway = Gateway(client, app, tokens, origins=origins, hosts=hosts, limits=limits)
    config = uvicorn.Config(
        http_app(gateway, routes),
        http=BoundedHttp,
        ws=websocket_protocol(gateway),
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=30,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn tells it by this flag alone
        await asyncio.sleep(0.005)
    try:
        yield gateway
    finally:
        try:
            await drain(gateway, over=gateway.limits.drain_over if len(gateway.connections) > 100 else 0.2)
        finally:  # also when a second signal ends the waiting
            server.should_exit = True
            await task
            await gateway.operations.close()


class _Server(uvicorn.Server):
    """Signals are the command line's business."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield
