"""What watchers of a collection are given."""

from __future__ import annotations

from typing import Generic, TypeVar

from omnistate.store import Position

T = TypeVar("T")


class CollectionChange(Generic[T]):
    """What `watch` yields: everything in the collection after a change, and the log's events that led there.

    `value` is your private copy. `version` is 0 where there is no collection. The first change has no `events`, nor
    one after a gap.
    """

    __slots__ = ("events", "position", "value", "version")

    def __init__(self, value: T, version: Position | None, position: Position, events: tuple[bytes, ...]) -> None:
        self.value, self.position, self.events = value, position, events
        self.version = 0 if version is None else version.offset

    def __repr__(self) -> str:  # a customer's content does not belong in logs
        return f"<CollectionChange version={self.version}>"
