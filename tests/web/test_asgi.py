"""The session middleware for Starlette and FastAPI, on a real server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware as CookieSessions
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

import omnistate
from omnistate import Client, Customer
from omnistate.web import SessionMiddleware, current_customer, current_session, sign_in, sign_out
from shop import Cart


@asynccontextmanager
async def browser(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://shop.example") as client:
        yield client


class Gate:
    """Lets requests go on together, once so many have arrived."""

    def __init__(self, many: int) -> None:
        self.many, self.here, self.opened = many, 0, asyncio.Event()

    async def pass_through(self) -> None:
        self.here += 1
        if self.here >= self.many:
            self.opened.set()
        await self.opened.wait()


async def put(request: Request) -> JSONResponse:
    request.session.update(dict(request.query_params))
    if (gate := getattr(request.app.state, "gate", None)) is not None:
        await gate.pass_through()
    return JSONResponse(request.session)


async def nest(request: Request) -> JSONResponse:
    request.session.setdefault("lines", []).append(request.query_params["sku"])
    return JSONResponse(request.session)


async def show(request: Request) -> JSONResponse:
    return JSONResponse(request.session)


async def clear(request: Request) -> JSONResponse:
    request.session.clear()
    return JSONResponse({})


async def enter(request: Request) -> JSONResponse:
    await sign_in(request, request.app.state.omni.customer(request.query_params["as"]))
    return JSONResponse({"customer": (await current_customer(request)).id})


async def leave(request: Request) -> JSONResponse:
    await sign_out(request)
    return JSONResponse({})


async def add(request: Request) -> JSONResponse:
    cart = (await current_customer(request)).state(Cart)
    return JSONResponse((await cart.update(Cart.add, "cup")).value.items)


async def stream(request: Request) -> StreamingResponse:
    async def lines() -> AsyncIterator[bytes]:
        yield b"one\n"
        request.session["late"] = "yes"
        yield b"two\n"

    return StreamingResponse(lines())


async def odd(request: Request) -> JSONResponse:
    request.session["x"] = object()
    return JSONResponse({})


async def talk(websocket: WebSocket) -> None:
    await websocket.accept()
    websocket.session["heard"] = await websocket.receive_text()
    await websocket.send_json(websocket.session)
    await websocket.close()


async def erase(request: Request) -> JSONResponse:
    await (await current_customer(request)).erase(actor="ana", reason="asked for it")
    await sign_out(request)
    return JSONResponse({})


ROUTES = [Route(f"/{view.__name__}", view) for view in (put, nest, show, clear, enter, leave, add, stream, odd, erase)]


def app_of(omni: Client, **options: Any) -> Starlette:
    app = Starlette(
        routes=[*ROUTES, WebSocketRoute("/talk", talk)],
        middleware=[Middleware(SessionMiddleware, omni=omni, **options)],
    )
    app.state.omni = omni
    return app


async def test_a_session_is_kept_for_a_browser(omni: Client) -> None:
    async with browser(app_of(omni)) as ana, browser(app_of(omni)) as ben:
        answer = await ana.get("/put?colour=red")
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-session=")
        assert cookie.endswith("; Max-Age=7776000; Path=/; HttpOnly; SameSite=lax; Secure")
        assert (await ana.get("/put?size=9")).headers.get("set-cookie") is None
        assert (await ana.get("/show")).json() == {"colour": "red", "size": "9"}
        assert (await ben.get("/show")).json() == {}
        assert "set-cookie" not in (await ben.get("/show")).headers  # nothing was put into it


async def test_what_is_nested_and_what_is_removed_is_seen(omni: Client) -> None:
    async with browser(app_of(omni)) as ana:
        for sku in ("cup", "pot"):
            await ana.get(f"/nest?sku={sku}")
        assert (await ana.get("/show")).json() == {"lines": ["cup", "pot"]}
        await ana.get("/clear")
        assert (await ana.get("/show")).json() == {}


async def test_a_token_that_a_client_makes_up_is_never_adopted(omni: Client) -> None:
    async with browser(app_of(omni)) as ana:
        await ana.get("/put?colour=red")
        real = ana.cookies["__Host-session"]
    for token in ("x", "anon_1." + "a" * 43, real[:-1] + ("a" if real[-1] != "a" else "b"), ""):
        async with browser(app_of(omni)) as eve:
            eve.cookies.set("__Host-session", token, domain="shop.example")
            assert (await eve.get("/show")).json() == {}
            made = (await eve.get("/put?a=1")).headers["set-cookie"]
            assert not made.startswith(f"__Host-session={token};")


async def test_requests_that_change_different_keys_at_once_keep_all_of_them(omni: Client) -> None:
    app = app_of(omni)
    async with browser(app) as ana:
        await ana.get("/put?first=0")
        app.state.gate = Gate(8)
        await asyncio.gather(*(ana.get(f"/put?key{number}={number}") for number in range(8)))
        kept = (await ana.get("/show")).json()
    assert kept == {"first": "0"} | {f"key{number}": str(number) for number in range(8)}


async def test_starlettes_own_sessions_lose_them() -> None:
    """What the test above would see with them, so that it tests something."""
    app = Starlette(routes=ROUTES, middleware=[Middleware(CookieSessions, secret_key="x" * 32)])
    async with browser(app) as ana:
        await ana.get("/put?first=0")
        app.state.gate = Gate(8)
        await asyncio.gather(*(ana.get(f"/put?key{number}={number}") for number in range(8)))
        assert len((await ana.get("/show")).json()) == 2


async def test_of_two_requests_that_change_one_key_the_later_wins_and_it_is_told(
    omni: Client, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_of(omni)
    async with browser(app) as ana:
        await ana.get("/put?colour=red")
        app.state.gate = Gate(2)
        with caplog.at_level(logging.WARNING, "omnistate.web"):
            answers = await asyncio.gather(ana.get("/put?colour=blue"), ana.get("/put?colour=green"))
        assert [answer.status_code for answer in answers] == [200, 200]
        assert (await ana.get("/show")).json()["colour"] in ("blue", "green")
    assert [record.keys for record in caplog.records] == [["colour"]]  # type: ignore[attr-defined]


async def test_a_session_that_ends_during_a_request_is_not_brought_back_by_it(omni: Client) -> None:
    app = app_of(omni)
    async with browser(app) as ana:
        await ana.get("/put?colour=red")
        token = ana.cookies["__Host-session"]
        app.state.gate = Gate(2)
        request = asyncio.create_task(ana.get("/put?colour=blue"))
        while not app.state.gate.here:
            await asyncio.sleep(0.001)
        assert await omni.session(token).end()
        await app.state.gate.pass_through()
        assert (await request).status_code == 200
        assert (await ana.get("/show")).json() == {}
    with pytest.raises(omnistate.SessionExpired):
        await omni.session(token).touch()


async def test_or_is_refused(omni: Client) -> None:
    app = app_of(omni, overwrites="refuse")
    async with browser(app) as ana:
        await ana.get("/put?colour=red")
        app.state.gate = Gate(2)
        answers = await asyncio.gather(ana.get("/put?colour=blue"), ana.get("/put?colour=green"))
        assert sorted(answer.status_code for answer in answers) == [200, 409]
        refused = next(answer for answer in answers if answer.status_code == 409)
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["code"] == "conflict"
        won = next(answer for answer in answers if answer.status_code == 200)
        assert (await ana.get("/show")).json() == won.json()


async def test_signing_in_gives_a_new_token_and_brings_the_visitors_cart(omni: Client) -> None:
    await omni.customer("ana").state(Cart).update(Cart.add, "pot")
    async with browser(app_of(omni)) as ana:
        await ana.get("/put?colour=red")
        assert (await ana.get("/add")).json() == {"cup": 1}
        before = ana.cookies["__Host-session"]
        assert (await ana.get("/enter?as=ana")).json() == {"customer": "ana"}
        assert ana.cookies["__Host-session"] != before
        assert (await ana.get("/show")).json() == {"colour": "red"}
        assert (await ana.get("/add")).json() == {"pot": 1, "cup": 2}
    with pytest.raises(omnistate.OmnistateError):
        await omni.session(before).touch()


async def test_signing_out_ends_the_session_and_leaves_nothing(omni: Client) -> None:
    async with browser(app_of(omni)) as ana:
        await ana.get("/put?colour=red")
        await ana.get("/enter?as=ana")
        token = ana.cookies["__Host-session"]
        assert "Max-Age=0" in (await ana.get("/leave")).headers["set-cookie"]
        assert "__Host-session" not in ana.cookies
        assert (await ana.get("/show")).json() == {}
        assert (await ana.get("/add")).json() == {"cup": 1}  # of a new visitor
    with pytest.raises(omnistate.SessionExpired):
        await omni.session(token).touch()


async def test_who_was_erased_is_a_visitor_without_a_session(omni: Client) -> None:
    async with browser(app_of(omni)) as ana, browser(app_of(omni)) as phone:
        for one in (ana, phone):
            await one.get("/enter?as=ana")
            await one.get("/put?colour=red")
        answer = await ana.get("/erase")
        assert (answer.status_code, answer.json()) == (200, {})
        assert "Max-Age=0" in answer.headers["set-cookie"]
        for one in (ana, phone):
            assert (await one.get("/show")).json() == {}
            assert (await one.get("/add")).json() == {"cup": 1}  # of a new visitor
        with pytest.raises(omnistate.CustomerErased):
            await phone.get("/enter?as=ana")


async def test_what_a_streamed_response_changes_is_kept_too(omni: Client) -> None:
    async with browser(app_of(omni)) as ana:
        await ana.get("/put?colour=red")
        assert (await ana.get("/stream")).text == "one\ntwo\n"
        assert (await ana.get("/show")).json() == {"colour": "red", "late": "yes"}


async def test_a_web_socket_has_the_session_and_what_it_changes_is_kept(omni: Client) -> None:
    app = app_of(omni)
    async with browser(app) as ana:
        await ana.get("/put?colour=red")
        cookie = f"__Host-session={ana.cookies['__Host-session']}".encode()
        scope = {
            "type": "websocket",
            "path": "/talk",
            "headers": [(b"cookie", cookie)],
            "query_string": b"",
            "subprotocols": [],
        }
        arriving = iter([{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "hello"}])
        sent: list[Any] = []

        async def receive() -> Any:
            return next(arriving)

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)
        assert sent[1]["text"] == '{"colour":"red","heard":"hello"}'
        assert (await ana.get("/show")).json() == {"colour": "red", "heard": "hello"}


async def test_what_cannot_be_stored_is_said(omni: Client) -> None:
    async with browser(app_of(omni)) as ana:
        with pytest.raises(omnistate.InvalidValue, match=r"session\['x'\] cannot be stored as JSON"):
            await ana.get("/odd")


async def test_a_fastapi_dependency_gives_the_customer(omni: Client) -> None:
    app = FastAPI()
    app.add_middleware(SessionMiddleware, omni=omni, channel="shop", idle=timedelta(hours=1), secure=False)

    @app.get("/who")
    async def who(ana: Annotated[Customer, Depends(current_customer)], request: Request) -> list[str]:
        return [ana.id, (await current_session(request)).customer_id]

    async with browser(app) as ana:
        first, second = (await ana.get("/who")).json(), (await ana.get("/who")).json()
        assert first == second
        assert len(set(first)) == 1
        assert "session" in ana.cookies


async def test_without_the_middleware_it_is_said() -> None:
    async with browser(Starlette(routes=ROUTES)) as ana:
        with pytest.raises(omnistate.OmnistateError, match="add_middleware"):
            await ana.get("/add")


@pytest.mark.parametrize(
    "options", [{"same_site": "some"}, {"overwrites": "maybe"}, {"same_site": "none", "secure": False}]
)
def test_bad_options_are_refused(omni: Client, options: dict[str, Any]) -> None:
    with pytest.raises(omnistate.InvalidInput):
        SessionMiddleware(app_of(omni), omni, **options)
