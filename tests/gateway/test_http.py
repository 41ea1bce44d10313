"""The HTTP API over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from served import Served

import omnistate
from omnistate.gateway import bind, serving
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


async def call(http: httpx.AsyncClient, token: str, method: str, **data: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"}
    return await http.post(f"/v1/call/{method}", json=data, headers=headers)


async def test_an_agents_access_to_a_customer_does_not_renew_itself(http: httpx.AsyncClient, served: Served) -> None:
    ana, maria = served.token("ana"), served.token("maria", role="agent", lifetime=60)
    talk = (await call(http, ana, "conversation.start")).json()["conversation"]
    await call(http, ana, "conversation.say", conversation=talk, text="a human please")
    claimed: dict[str, Any] = {}
    async with asyncio.timeout(5):
        while not claimed.get("conversation"):  # the bot hands over a moment later
            claimed = (await call(http, maria, "queue.claim", queue="agents")).json()
    grant = claimed["token"]
    assert served.tokens.verify(grant).expires_at <= served.tokens.verify(maria).expires_at  # type: ignore[operator]
    await call(http, grant, "conversation.hand_off", conversation=talk, queue="mine")
    refused = await call(http, grant, "queue.claim", queue="mine")
    assert (refused.status_code, refused.json()["code"]) == (403, "denied")
    assert (await call(http, grant, "conversation.start")).status_code == 403


async def test_a_message_that_is_delivered_twice_is_answered_once(http: httpx.AsyncClient, served: Served) -> None:
    ana = served.token("ana")
    talk = (await call(http, ana, "conversation.start")).json()["conversation"]
    for _ in range(3):
        said = await call(http, ana, "conversation.say", conversation=talk, text="hello", message_id="wa-1")
        assert said.json() == {"index": 0}
    conversation = served.omni.conversation(talk)
    await until_answered(conversation)
    await call(http, ana, "conversation.say", conversation=talk, text="again", message_id="wa-2")
    await until_answered(conversation, 4)
    assert [one.text for one in await conversation.messages()] == ["hello", "you said hello", "again", "you said again"]
    for other in ({"text": "something else"}, {"text": "hello", "conversation": (await new_talk(http, ana))}):
        refused = await call(http, ana, "conversation.say", **({"conversation": talk, "message_id": "wa-1"} | other))
        assert (refused.status_code, refused.json()["code"]) == (400, "operation_id_reused")


async def new_talk(http: httpx.AsyncClient, token: str) -> str:
    return str((await call(http, token, "conversation.start")).json()["conversation"])


async def until_answered(conversation: omnistate.Conversation, messages: int = 2) -> None:
    async with asyncio.timeout(5):
        while (await conversation.status()).messages < messages:
            await asyncio.sleep(0.005)


async def test_a_client_cannot_take_an_operation_id_of_a_merge(http: httpx.AsyncClient, served: Served) -> None:
    headers = {"Authorization": f"Bearer {served.token('ana')}", "Idempotency-Key": "omnistate:merge:x:Cart"}
    refused = await http.post("/v1/customers/me/actions/Cart.add", json={"sku": "cup"}, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_id")


async def test_numbers_beyond_any_message_are_refused(http: httpx.AsyncClient, served: Served) -> None:
    ana = served.token("ana")
    talk = await new_talk(http, ana)
    for first in (2**63 - 1, -(2**63), 2**40):
        refused = await call(http, ana, "conversation.messages", conversation=talk, first=first)
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_input")


async def test_a_host_name_that_is_not_served_is_refused(served: Served) -> None:
    listener = bind("127.0.0.1", 0)
    base = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with (
        serving(served.omni, served.gateway.app, served.tokens, listener, hosts=("127.0.0.1", "localhost")),
        httpx.AsyncClient(base_url=base) as http,
    ):
        for host, status in (("evil.example", 403), ("localhost:1", 200), ("127.0.0.1", 200), ("[", 403)):
            assert (await http.get("/healthz", headers={"Host": host})).status_code == status, host
