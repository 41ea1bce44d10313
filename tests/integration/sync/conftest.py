"""Synchronous clients for the tests of this directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

import omnistate.sync as omnistate

Connect = Callable[..., omnistate.Client]


@pytest.fixture
def connect(url: str, tenant: str) -> Connect:
    def make(**options: Any) -> omnistate.Client:
        return omnistate.connect(**{"url": url, "tenant": tenant, "timeout": timedelta(seconds=5)} | options)

    return make


@pytest.fixture
def omni(connect: Connect) -> Iterator[omnistate.Client]:
    with connect() as client:
        yield client
