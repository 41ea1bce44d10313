"""Positions in a log: what a subscriber resumes from, and what a document's version is."""

from __future__ import annotations

from typing import Any

import msgspec

from omnistate.errors import InvalidInput


class Position(msgspec.Struct, frozen=True, gc=False):
    """A place in a log. Offsets rise by one inside an epoch; positions of different epochs cannot be compared."""

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """The position that `str(position)` wrote. Raises `InvalidInput` for anything else."""
        epoch, _, offset = text.rpartition(":")
        if not epoch or not offset.isascii() or not offset.isdigit() or len(offset) > 16:
            raise InvalidInput(f"not a position: {text[:40]!r}; a position looks like 5f3a:17")
        return cls(epoch, int(offset))


def check_position(name: str, value: Any) -> None:
    """Raises `InvalidInput` unless an argument is a position."""
    if not isinstance(value, Position):
        raise InvalidInput(
            f"{name} must be a Position of the log, not {type(value).__name__}: the `position` of a snapshot or an event, or "
            "Position.parse(text)"
        )
