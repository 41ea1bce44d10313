"""The state classes that the tests share."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import omnistate


class Cart(omnistate.State, ttl=timedelta(days=7)):
    items: dict[str, int] = {}
    note: str = ""
    visits: int = 0

    @omnistate.action
    def add(self, sku: str, quantity: int = 1) -> int:
        """Puts something into the cart."""
        self.items[sku] = self.items.get(sku, 0) + quantity
        return self.items[sku]

    @omnistate.action(channels={"agent desk"})
    def grant(self, note: str) -> None:
        self.note = note

    def merge(self, other: Cart) -> None:
        for sku, quantity in other.items.items():
            self.add(sku, quantity)


class Profile(omnistate.State):
    name: str = ""
    email: str | None = None
    extra: dict[str, Any] = {}
