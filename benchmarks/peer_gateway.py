"""A live cart by hand, as a careful team writes it: Starlette, redis-py, one subscriber connection for all sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections import defaultdict
from collections.abc import AsyncIterator

import redis.asyncio as redis
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

r = redis.Redis(port=int(os.environ["REDIS_PORT"]), max_connections=100)
subscriber = r.pubsub()
followers: dict[str, set[WebSocket]] = defaultdict(set)


async def dispatch() -> None:
    while True:
        if not subscriber.subscribed:
            await asyncio.sleep(0.01)
            continue
        message = await subscriber.get_message(ignore_subscribe_messages=True, timeout=None)
        if message is not None:
            text = message["data"].decode()
            for socket in list(followers[message["channel"].decode()]):
                with contextlib.suppress(RuntimeError):
                    await socket.send_text(text)


async def live(socket: WebSocket) -> None:
    await socket.accept()
    topic = f"cart:{socket.path_params['user']}"
    if socket.query_params.get("follow"):
        followers[topic].add(socket)
        await subscriber.subscribe(topic)
        await socket.send_text("{}")
    try:
        while True:
            sku = json.loads(await socket.receive_text())["add"]
            async with r.pipeline(transaction=True) as pipe:
                pipe.hincrby(topic, sku, 1)
                pipe.hincrby(topic, "version", 1)
                pipe.publish(topic, json.dumps({"put": {"items": {sku: 1}}}))
                await pipe.execute()
            await socket.send_text('{"ok":true}')
    except WebSocketDisconnect:
        pass
    finally:
        followers[topic].discard(socket)


@contextlib.asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    task = asyncio.create_task(dispatch())
    yield
    task.cancel()


app = Starlette(routes=[WebSocketRoute("/ws/{user}", live)], lifespan=lifespan)
