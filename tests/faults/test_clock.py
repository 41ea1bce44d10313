"""The server's clock is set an hour ahead or back while everything goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from redis import Redis

import omnistate
from machine import SteppedServer
from omnistate.store import Keyspace

HOUR = timedelta(hours=1)


class Hold(omnistate.State, ttl=HOUR):
    seats: dict[str, int] = {}
    note: str = ""


RECENT = omnistate.List(int, name="clock_recent", ttl=HOUR)
JOBS = omnistate.WorkQueue(str, name="clock_jobs", ttl=HOUR)


@pytest.fixture
def server(mortal_valkey: SteppedServer) -> Iterator[SteppedServer]:
    yield mortal_valkey
    mortal_valkey.set_clock(0 * HOUR)


def test_the_servers_clock_can_be_stepped(server: SteppedServer) -> None:
    raw = Redis(port=server.port)
    for hours in (3, -2, 0):
        server.set_clock(hours * HOUR)
        assert abs(raw.time()[0] - time.time() - hours * 3600) < 5  # type: ignore[index]
    raw.close()


async def test_what_has_ended_without_an_event_is_whole_when_the_clock_goes_back(
    server: SteppedServer, tenant: str
) -> None:
    """The server removes keys by its own clock, at once or later: so not yet, or the document would be there and empty."""
    async with omnistate.connect(server.url, tenant=tenant) as omni:
        ana, log = omni.customer("ana"), Keyspace(tenant).customer("ana")
        version = await ana.state(Hold).put("seats", "a1", 1)
        await ana.collection(RECENT).append(1)
        await ana.collection(JOBS).put("job")
        server.set_clock(1.9 * HOUR)
        with Redis(port=server.port) as raw:
            assert raw.exists(log.key("doc", "Hold")) == 1
        assert not (await ana.state(Hold).read()).exists
        assert await ana.collection(RECENT).all() == []
        server.set_clock(0 * HOUR)
        held = await ana.state(Hold).read()
        assert (held.value, held.version) == (Hold(seats={"a1": 1}), version.offset)
        assert await ana.collection(RECENT).all() == [1]
        item = await ana.collection(JOBS).claim()
        assert item is not None
        await item.done()
