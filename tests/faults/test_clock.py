"""The server's clock is set an hour ahead or back while everything goes on."""

from __future__ import annotations

import time
from datetime import timedelta

from redis import Redis

from machine import SteppedServer

HOUR = timedelta(hours=1)


def test_the_servers_clock_can_be_stepped(mortal_valkey: SteppedServer) -> None:
    raw = Redis(port=mortal_valkey.port)
    for hours in (3, -2, 0):
        mortal_valkey.set_clock(hours * HOUR)
        assert abs(raw.time()[0] - time.time() - hours * 3600) < 5  # type: ignore[index]
    raw.close()
