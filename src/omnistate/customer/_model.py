"""What customers' verbs return."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from omnistate.store import Durability, Position

R = TypeVar("R")


class Event(msgspec.Struct, frozen=True):
    """One entry of a customer's log."""

    position: Position
    type: str
    data: dict[str, Any]


class Updated(Generic[R]):
    """What `customer.update` returns: what the function returned, and the log's position after it.

    `position` is None where nothing was changed. `repeated`: this operation id had been applied before; nothing was
    written now and `result` is None. `durability`: what the write survives.
    """

    __slots__ = ("durability", "position", "repeated", "result")

    def __init__(self, result: R, position: Position | None, repeated: bool, durability: Durability) -> None:
        self.result, self.position, self.repeated, self.durability = result, position, repeated, durability

    def __repr__(self) -> str:  # a customer's content does not belong in logs
        return f"<Updated position={self.position} repeated={self.repeated}>"
