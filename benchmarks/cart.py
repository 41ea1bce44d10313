"""The document that most benchmarks write."""

from __future__ import annotations

from datetime import timedelta

import omnistate


class Cart(omnistate.State, ttl=timedelta(days=7)):
    items: dict[str, int] = {}
    note: str = ""
    visits: int = 0

    def add(self, sku: str) -> None:
        self.items[sku] = self.items.get(sku, 0) + 1


def a_cart() -> Cart:
    """About 1 KB of JSON."""
    return Cart(items={f"product-{number:04}-large": number for number in range(12)}, note="n" * 700)
