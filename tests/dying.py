"""A client that is killed in the middle of what it does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import omnistate
from machine import SteppedServer
from omnistate import Client
from proxy import Proxy

Work = Callable[[Client], Awaitable[Any]]
Dies = Callable[[int | bytes, Work], Awaitable[bool]]


async def die_at(
    call: int | bytes, work: Work, *, proxy: Proxy, server: SteppedServer, tenant: str, **options: Any
) -> bool:
    """Does work and is killed with the server at a call, by its number or its function, which was applied; false: it was
    done before that."""
    async with omnistate.connect(proxy.url, tenant=tenant, **options) as doomed:
        await doomed.customer("nobody").position()  # it is connected
        task = asyncio.ensure_future(work(doomed))
        died = []

        def die() -> None:
            died.append(True)
            server.crash()
            task.cancel()

        proxy.on_loss = die
        if isinstance(call, int):
            proxy.lose_call = call
        else:
            proxy.lose_next_reply_to = call
        await asyncio.wait([task])
        proxy.lose_call, proxy.lose_next_reply_to, proxy.on_loss = 0, None, lambda: None
        assert died or task.exception() is None
        return bool(died)
