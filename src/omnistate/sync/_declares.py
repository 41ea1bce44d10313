"""How collections are declared: as for `omnistate`, and a synchronous client gives their synchronous handles."""

from __future__ import annotations

from typing import Any, TypeAlias, TypeVar

from omnistate.collection import Collection

H = TypeVar("H")
Declares: TypeAlias = Collection[Any, H]
"""A collection by the handle that it gives here."""
