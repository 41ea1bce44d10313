"""Customers and their identities."""

from omnistate.customer._api import Customer, Event, identify
from omnistate.customer._commands import Identity

__all__ = ["Customer", "Event", "Identity", "identify"]
