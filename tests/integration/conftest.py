"""The world in which the state machines play."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from model import World


@pytest.fixture(params=["mortal_valkey", "mortal_redis"])
def world(request: pytest.FixtureRequest, tenant: str) -> Iterator[World]:
    made = World(request.getfixturevalue(request.param), tenant)
    yield made
    made.close()
