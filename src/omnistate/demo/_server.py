"""The demo's own pages, served by the gateway beside its API."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

import omnistate
from omnistate.demo._shop import app
from omnistate.gateway import THIS_MACHINE, Gateway, Tokens, bind, serving

AGENT = "maria"
_TYPES = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
_LIFETIME = 12 * 3600
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


class DemoBackend:
    """What a shop's own backend does: it knows its visitors, and gives each channel a token."""

    def __init__(self, omni: omnistate.Client, tokens: Tokens) -> None:
        self._omni, self._tokens = omni, tokens

    async def start(self, visitor: str) -> dict[str, object]:
        """One person on three channels, and an agent."""
        customer = await self._omni.identify("web", visitor)
        for channel in ("mobile", "whatsapp"):
            await customer.link(channel, f"{channel}-of-{visitor}")
        tokens = {
            channel: self._tokens.issue(customer.id, channel=channel, lifetime=_LIFETIME)
            for channel in ("web", "mobile", "whatsapp")
        }
        agent = self._tokens.issue(AGENT, role="agent", channel="agent desk", lifetime=_LIFETIME)
        return {"customer": customer.id, "agent": AGENT, "tokens": tokens | {"agent desk": agent}}

    def routes(self) -> list[Route]:
        return [
            Route("/", self._page),
            Route("/demo/start", self._start, methods=["POST"]),
            Route("/demo/{name}", self._static),
        ]

    async def _page(self, _: Request) -> Response:
        return HTMLResponse(_read("index.html"), headers=_HEADERS)

    async def _start(self, request: Request) -> Response:
        visitor = request.query_params.get("visitor") or f"visitor-{secrets.token_hex(4)}"
        body = msgspec.json.encode(await self.start(visitor) | {"visitor": visitor})
        return Response(body, media_type="application/json")

    async def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in ("demo.js", "demo.css", "centrifuge.js", "icon.svg"):
            return Response("there is no such file\n", 404)
        return Response(_read(name), media_type=_TYPES[name.rpartition(".")[2]], headers=_HEADERS)


def _read(name: str) -> str:
    return (files("omnistate.demo") / "static" / name).read_text(encoding="utf-8")


@contextlib.asynccontextmanager
async def demo(port: int, *, url: str | None = None) -> AsyncIterator[tuple[Gateway, DemoBackend, int]]:
    """The demo on a port of this machine, over an embedded server whose data is removed at the end."""
    listener = bind("127.0.0.1", port)
    with tempfile.TemporaryDirectory(prefix="omnistate-demo-") as directory:
        where = {"url": url} if url else {"data_dir": Path(directory)}
        async with omnistate.connect(**where) as omni:
            tokens = Tokens(secrets.token_bytes(32))
            backend = DemoBackend(omni, tokens)
            async with serving(omni, app, tokens, listener, hosts=THIS_MACHINE, routes=backend.routes()) as gateway:
                yield gateway, backend, listener.getsockname()[1]
