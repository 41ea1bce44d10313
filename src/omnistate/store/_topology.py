"""Which link serves an address."""

from __future__ import annotations

from collections.abc import Callable

from omnistate.store._cluster import ClusterLink
from omnistate.store._library import library
from omnistate.store._link import Link
from omnistate.store._sentinel import SentinelLink
from omnistate.store._url import Address


def open_link(address: Address, *, timeout: float, check_server: Callable[[], None] = lambda: None) -> Link:
    """The link to the store at an address; nothing is sent before `connect`."""
    if address.kind == "sentinel":
        return SentinelLink(address, library(), timeout=timeout)
    if address.kind == "cluster":
        return ClusterLink(address, library(), timeout=timeout)
    return Link(address, library(), timeout=timeout, check_server=check_server)
