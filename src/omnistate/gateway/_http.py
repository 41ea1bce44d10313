"""The HTTP API: actions, states, conversations, the OpenAPI document, health."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from omnistate import (
    AmbiguousWrite,
    Conflict,
    ConversationNotFound,
    CustomerErased,
    CustomerMerged,
    Denied,
    IdentityTaken,
    InvalidInput,
    OmnistateError,
    OwnershipLost,
    PositionLost,
    SessionExpired,
    StoreError,
    StoreUnavailable,
    ValueTooLarge,
)
from omnistate.gateway._auth import Peer, TokenExpired
from omnistate.gateway._gateway import Gateway
from omnistate.gateway._openapi import openapi, page
from omnistate.gateway._websocket import host_allowed
from omnistate.state import MAX_BYTES, check_depth

log = logging.getLogger("omnistate.gateway")
_encode = msgspec.json.Encoder().encode

# Our errors as HTTP statuses: the first class that fits.
STATUSES: tuple[tuple[type[OmnistateError], int], ...] = (
    (TokenExpired, 401),
    (Denied, 403),
    (SessionExpired, 401),
    (ValueTooLarge, 413),
    (InvalidInput, 400),
    (OwnershipLost, 409),
    (Conflict, 409),
    (IdentityTaken, 409),
    (ConversationNotFound, 404),
    (CustomerErased, 410),
    (CustomerMerged, 410),
    (PositionLost, 410),
    (AmbiguousWrite, 504),
    (StoreUnavailable, 503),
    (StoreError, 503),
    (OmnistateError, 500),
)


class Unauthorized(Denied):
    """There is no token, or it is not valid: send `Authorization: Bearer <token>`."""

    code = "unauthorized"


def http_app(gateway: Gateway, routes: Sequence[BaseRoute] = ()) -> Starlette:
    """The gateway's HTTP side. `routes` are the application's own, asked last."""
    api = _Api(gateway)
    return Starlette(
        routes=[
            Route("/v1/customers/{customer}/states/{state}", api.read, methods=["GET"]),
            Route("/v1/customers/{customer}/actions/{action}", api.act, methods=["POST"]),
            Route("/v1/call/{method}", api.call, methods=["POST"]),
            Route("/openapi.json", api.openapi, methods=["GET"]),
            Route("/docs", api.docs, methods=["GET"]),
            Route("/healthz", api.health, methods=["GET"]),
            Route("/readyz", api.ready, methods=["GET"]),
            *routes,
        ],
        middleware=[Middleware(_Hosts, hosts=gateway.hosts)],
        exception_handlers={OmnistateError: _refuse, HTTPException: _not_served, Exception: _fail},
    )


class _Hosts:
    """Refuses requests for hosts that are not served here."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not host_allowed(Headers(scope=scope).getlist("host"), self._hosts):
            await _problem(403, "host_refused", "this host name is not served here")(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class _Api:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._openapi = openapi(gateway.app)

    async def read(self, request: Request) -> Response:
        peer = self._peer(request)
        body, version = await self._gateway.operations.read(
            peer, request.path_params["customer"], request.path_params["state"]
        )
        headers = {"ETag": f'"{version}"', "Cache-Control": "no-store"}
        return Response(body, media_type="application/json", headers=headers)

    async def act(self, request: Request) -> Response:
        peer = self._peer(request)
        body = await _body(request)
        answer = await self._gateway.operations.act(
            peer,
            request.path_params["customer"],
            request.path_params["action"],
            body,
            request.headers.get("Idempotency-Key"),
        )
        return Response(answer, media_type="application/json")

    async def call(self, request: Request) -> Response:
        peer = self._peer(request)
        method = request.path_params["method"]
        if method not in self._gateway.operations.methods:
            raise InvalidInput(f"there is no method {method[:64]!r}; see /docs")
        answer = await self._gateway.operations.call(peer, method, await _body(request))
        return Response(answer, media_type="application/json")

    async def openapi(self, _: Request) -> Response:
        return Response(_encode(self._openapi), media_type="application/json")

    async def docs(self, _: Request) -> Response:
        return HTMLResponse(page(self._openapi))

    async def health(self, _: Request) -> Response:
        """The process runs."""
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def ready(self, _: Request) -> Response:
        """The process can serve: the store answers within two seconds, and nobody asked it to leave."""
        if self._gateway.draining:
            return _problem(503, "draining", "this server is going away")
        try:
            async with asyncio.timeout(2):
                await self._gateway.client.customer("omnistate-readiness").identities()
        except (OmnistateError, TimeoutError) as error:
            code = error.code if isinstance(error, OmnistateError) else "store_unavailable"
            return _problem(503, code, "the store does not answer")
        return Response(b'{"status":"ready"}', media_type="application/json")

    def _peer(self, request: Request) -> Peer:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthorized("a token is needed: Authorization: Bearer <token>")
        try:
            return self._gateway.authenticate(token)
        except TokenExpired:
            raise
        except Denied as error:
            raise Unauthorized(str(error)) from error


async def _body(request: Request) -> bytes:
    """The body, counted while it streams. Raises before it is parsed when too large or too deep."""
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BYTES:
                raise ValueTooLarge("the request's body", size=len(body), limit=MAX_BYTES)
    except ClientDisconnect:
        raise InvalidInput("the client went away before the end of its request") from None
    check_depth("the request's body", body)
    return body


def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, OmnistateError)
    status = next(status for kind, status in STATUSES if isinstance(error, kind))
    if isinstance(error, Unauthorized):
        status = 401
    extra = {"operation_id": error.operation_id} if isinstance(error, AmbiguousWrite) else {}
    return _problem(status, error.code, str(error), **extra)


def _not_served(request: Request, error: Exception) -> Response:
    """No such path, or not this method of it."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return _problem(405, "method_not_allowed", f"{request.method} is not for this path; see /docs")
    return _problem(error.status_code, "not_found", "there is nothing at this path; see /docs")


def _fail(_: Request, error: Exception) -> Response:
    """Errors of the application's own code: told without their text, which may hold anything."""
    log.error("a request failed", exc_info=error)
    return _problem(500, "internal", "something went wrong here; it has been logged")


def _problem(status: int, code: str, detail: str, **extra: Any) -> Response:
    problem = {"type": "about:blank", "title": code.replace("_", " "), "status": status, "code": code, "detail": detail}
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {"Retry-After": "1"} if status == 503 else {}
    return Response(_encode(problem | extra), status, headers, media_type="application/problem+json")
