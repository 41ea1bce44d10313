"""The real JavaScript SDK, in Node: the same story as in a browser."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from served import until

from machine import missing
from shop import Cart

SDK = Path(__file__).parent / "sdk"


@pytest.fixture(autouse=True)
def sdk() -> None:
    if shutil.which("node") is None:
        missing("node", "apt-get install nodejs npm")
    if not (SDK / "node_modules" / "centrifuge").is_dir():
        missing("the JavaScript SDK", "cd tests/gateway/sdk && npm ci")


class Node:
    """A Node process that runs story.mjs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[dict[str, Any]] = []

    async def read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.said.append(json.loads(line))

    def tell(self, command: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")

    def all(self, key: str) -> list[Any]:
        return [said[key] for said in self.said if key in said]


@asynccontextmanager
async def story(*arguments: str) -> AsyncIterator[Node]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("node", str(SDK / "story.mjs"), *arguments, stdin=pipe, stdout=pipe)
    node = Node(process)
    reader = asyncio.create_task(node.read())
    try:
        yield node
    finally:
        node.tell({"end": True})
        await asyncio.wait_for(process.wait(), 5)
        await reader


async def test_connects_receives_and_calls(served: Any) -> None:
    async with story(served.ws, served.token("ana"), "customer:ana") as node:
        await until(lambda: node.all("subscribed") and node.all("early"))
        assert node.all("early") == [1]
        node.tell({"rpc": "Cart.add", "data": {"sku": "cup", "quantity": 2}})
        await until(lambda: node.all("result") and 2 in node.all("offset"))
        assert node.all("result")[0]["result"] == 2
        assert node.all("data")[-1]["put"] == {"items": {"cup": 2}}
        node.tell({"rpc": "Cart.add", "data": {"nonsense": 1}})
        node.tell({"rpc": "no.such.method", "data": {}})
        await until(lambda: len(node.all("error")) == 2)
        assert node.all("error") == [400, 104]


async def test_cut_off_comes_back_and_misses_nothing(served: Any) -> None:
    cart = served.omni.customer("ana").state(Cart)
    async with story(served.ws, served.token("ana"), "customer:ana") as node:
        await until(lambda: node.all("subscribed") and node.all("early"))
        first = node.all("early")[0]
        for round_ in range(4):
            served.cut_all()
            for _ in range(25):
                await cart.increment("visits")
            await until(lambda wanted=first + 25 * (round_ + 1): wanted in node.all("offset"))
        seen = node.all("offset")
        assert seen == list(range(seen[0], first + 101))
        assert all(node.all("recovered")[1:])


async def test_state_and_position_read_over_http_join_the_stream_without_a_gap(served: Any) -> None:
    import httpx

    cart = served.omni.customer("ana").state(Cart)
    await cart.update(Cart.add, "cup")
    token = served.token("ana")
    async with httpx.AsyncClient() as http:
        answer = await http.get(
            f"{served.http}/v1/customers/me/states/Cart", headers={"Authorization": f"Bearer {token}"}
        )
    assert answer.json()["value"]["items"] == {"cup": 1}
    await cart.update(Cart.add, "pot")  # after the read, before the subscription
    async with story(served.ws, token, "customer:ana", json.dumps(answer.json()["position"])) as node:
        await until(lambda: 2 in node.all("offset"))
        assert node.all("offset")[0] == 2


async def test_a_bad_token_is_terminal(served: Any) -> None:
    async with story(served.ws, "nonsense", "customer:ana") as node:
        await until(lambda: node.all("disconnected"))
        assert node.all("disconnected") == [3500]


async def test_another_customers_topic_is_refused(served: Any) -> None:
    async with story(served.ws, served.token("mallory"), "customer:ana") as node:
        await until(lambda: node.all("unsubscribed"))
        assert node.all("unsubscribed") == [103]
