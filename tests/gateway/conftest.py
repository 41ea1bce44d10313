"""A gateway on a free port, over the same stores as the other tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from served import SECRET, Served, make_app

import omnistate
from omnistate.gateway import Limits, Tokens, bind, serving


@pytest.fixture
def limits() -> Limits:
    return Limits()


@pytest.fixture
async def served(omni: omnistate.Client, limits: Limits) -> AsyncIterator[Served]:
    tokens = Tokens(SECRET)
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    async with serving(omni, make_app(), tokens, listener, limits=limits) as gateway:
        yield Served(omni, gateway, tokens, port)
