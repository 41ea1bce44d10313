"""The HTTP API over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from served import Served

from shop import Cart


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.http) as client:
        yield client


def auth(served: Served, user: str = "ana", **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {served.token(user, **claims)}"}


async def test_an_action_is_called_and_answered(http: httpx.AsyncClient, served: Served) -> None:
    answer = await http.post("/v1/customers/ana/actions/Cart.add", json={"sku": "cup"}, headers=auth(served))
    assert answer.status_code == 200
    assert (answer.json()["result"], answer.json()["version"]) == (1, 1)
    assert (await served.omni.customer("ana").state(Cart).get()).items == {"cup": 1}


async def test_an_idempotency_key_makes_a_retry_harmless(http: httpx.AsyncClient, served: Served) -> None:
    headers = auth(served) | {"Idempotency-Key": "k-1"}
    for repeated in (False, True, True):
        answer = await http.post("/v1/customers/me/actions/Cart.add", json={"sku": "cup"}, headers=headers)
        assert answer.json()["repeated"] is repeated
    other = await http.post("/v1/customers/me/actions/Cart.add", json={"sku": "pot"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (400, "operation_id_reused")
    assert (await served.omni.customer("ana").state(Cart).get()).items == {"cup": 1}


async def test_a_state_is_read_with_its_position(http: httpx.AsyncClient, served: Served) -> None:
    await served.omni.customer("ana").state(Cart).update(Cart.add, "cup")
    answer = await http.get("/v1/customers/me/states/Cart", headers=auth(served))
    assert answer.json()["value"] == {"items": {"cup": 1}, "note": "", "visits": 0}
    assert answer.json()["position"]["offset"] == 1
    assert answer.headers["ETag"] == '"1"'


@pytest.mark.parametrize(
    ("method", "path", "body", "claims", "status", "code"),
    [
        ("GET", "/v1/customers/ben/states/Cart", None, {}, 403, "denied"),
        ("GET", "/v1/customers/me/states/Nothing", None, {}, 400, "invalid_input"),
        ("GET", "/v1/customers/me/states/Secrets", None, {}, 403, "denied"),
        ("POST", "/v1/customers/me/actions/Cart.grant", b'{"note":"x"}', {}, 403, "denied"),
        ("POST", "/v1/customers/me/actions/Cart.nothing", b"{}", {}, 400, "invalid_input"),
        ("POST", "/v1/customers/me/actions/Cart.add", b'{"sku":7}', {}, 400, "invalid_value"),
        ("POST", "/v1/customers/me/actions/Cart.add", b'{"sku":"x","y":1}', {}, 400, "invalid_value"),
        ("POST", "/v1/customers/me/actions/Cart.add", b"{", {}, 400, "invalid_value"),
        ("POST", "/v1/customers/me/actions/Cart.add", b"\xff", {}, 400, "invalid_value"),
        ("POST", "/v1/customers/me/actions/Cart.add", b'{"sku":' + b"[" * 70 + b"]" * 70 + b"}", {}, 400, "value_too_deep"),
        ("POST", "/v1/customers/me/actions/Cart.add", b'"' + b"x" * 300_000 + b'"', {}, 413, "value_too_large"),
        ("POST", "/v1/call/queue.claim", b'{"queue":"agents"}', {}, 403, "denied"),
        ("GET", "/v1/nothing", None, {}, 404, "not_found"),
        ("GET", "/v1/call/queue.claim", None, {}, 405, "method_not_allowed"),
        ("POST", "/v1/call/no.such", b"{}", {}, 400, "invalid_input"),
        ("POST", "/v1/call/conversation.say", b'{"conversation":"ben.abc","text":"x"}', {}, 403, "denied"),
        ("POST", "/v1/call/conversation.say", b'{"conversation":"ana.abc","text":"x"}', {}, 404, "conversation_not_found"),
        ("POST", "/v1/call/conversation.say", b'{"conversation":"nonsense","text":"x"}', {}, 400, "invalid_id"),
    ],
)  # fmt: skip
async def test_what_is_refused(
    http: httpx.AsyncClient,
    served: Served,
    method: str,
    path: str,
    body: bytes | None,
    claims: dict[str, Any],
    status: int,
    code: str,
) -> None:
    answer = await http.request(method, path, content=body, headers=auth(served, **claims))
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["detail"]


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer x"}, {"Authorization": "Basic x"}, {"Authorization": "Bearer dev:web:ana"}])  # fmt: skip
async def test_without_a_good_token_nothing_is_told(http: httpx.AsyncClient, header: dict[str, str]) -> None:
    for path in ("/v1/customers/ana/states/Cart", "/v1/customers/nobody/states/Nothing"):
        answer = await http.get(path, headers=header)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


async def test_an_expired_token_is_told_as_such(http: httpx.AsyncClient, served: Served) -> None:
    answer = await http.get("/v1/customers/me/states/Cart", headers=auth(served, lifetime=-60))
    assert (answer.status_code, answer.json()["code"]) == (401, "token_expired")


async def test_an_error_of_the_application_is_not_told_with_its_text(http: httpx.AsyncClient, served: Served) -> None:
    app = served.gateway.app

    def fail(self: Cart, sku: str, quantity: int = 1) -> None:
        raise RuntimeError("the password is hunter2")

    original, app.actions["Cart.add"].function = app.actions["Cart.add"].function, fail
    try:
        answer = await http.post("/v1/customers/me/actions/Cart.add", json={"sku": "cup"}, headers=auth(served))
    finally:
        app.actions["Cart.add"].function = original
    assert answer.status_code == 500
    assert "hunter2" not in answer.text


async def test_documents_and_health(http: httpx.AsyncClient) -> None:
    assert (await http.get("/openapi.json")).json()["openapi"] == "3.1.0"
    page = await http.get("/docs")
    assert "Cart.add" in page.text
    assert "<script" not in page.text
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    assert (await http.get("/readyz")).json() == {"status": "ready"}
    assert (await http.get("/connection/websocket")).status_code == 404


async def test_not_ready_when_the_store_does_not_answer(http: httpx.AsyncClient, served: Served) -> None:
    served.gateway.draining = True
    answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "draining")
    served.gateway.draining = False
