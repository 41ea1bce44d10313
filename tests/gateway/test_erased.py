"""What a subscriber of the gateway sees of an erasure."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from served import Served
from websockets.asyncio.client import ClientConnection, connect

from shop import Cart


async def hear(opened: ClientConnection) -> dict[str, Any]:
    while True:
        said: dict[str, Any] = json.loads(await asyncio.wait_for(opened.recv(), 5))
        if said:  # else a ping
            return said


async def test_subscribers_see_it_and_are_not_subscribed_any_more(served: Served) -> None:
    await served.omni.customer("ana").state(Cart).patch(note="x")
    async with connect(served.ws, compression=None) as opened:
        subscribe = {"subscribe": {"channel": "customer:ana"}}
        await opened.send(json.dumps({"id": 1, "connect": {"token": served.token("ana")}}))
        await opened.send(json.dumps({"id": 2} | subscribe))
        assert [(await hear(opened))["id"] for _ in range(2)] == [1, 2]
        await served.omni.erase("ana", actor="maria", reason="request 4711")
        event = (await hear(opened))["push"]
        assert event["pub"]["data"]["type"] == "customer.erased"
        ended = (await hear(opened))["push"]
        assert ended == {"channel": "customer:ana", "unsubscribe": {"code": 2000, "reason": "customer erased"}}
        await opened.send(json.dumps({"id": 3} | subscribe))
        assert (await hear(opened))["error"]["code"] == 410
        await opened.send(json.dumps({"id": 4, "rpc": {"method": "Cart.add", "data": {"sku": "cup"}}}))
        assert (await hear(opened))["error"]["code"] == 410
