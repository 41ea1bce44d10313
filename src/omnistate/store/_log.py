"""Commands that read a log, and what they return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omnistate.errors import CustomerMerged, PositionLost
from omnistate.store._command import Argument, Command
from omnistate.store._keys import LogKeys
from omnistate.store._position import Position

LONGEST_LOG = (
    1000  # as in functions.lua: entries kept for subscribers that come back; conversations keep their messages apart
)
MAX_PAGE = 300  # entries of one reply; who missed more reads the state again


@dataclass(frozen=True, slots=True)
class Entry:
    """One event: a JSON object as it was written."""

    offset: int
    event: bytes


def is_last(entry: Entry) -> bool:
    """Whether nothing ever follows this entry: the customer was erased."""
    return entry.event.startswith(b'{"type":"customer.erased"')


@dataclass(frozen=True, slots=True)
class Page:
    """Everything after a position: contiguous, up to and with the newest entry `top`."""

    epoch: str
    top: int
    entries: list[Entry]

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.top)


def spell_operation(operation_id: str) -> str:
    """An operation id as it is stored: beside fields of ours, so it gets a prefix."""
    return "op:" + operation_id


def opening(operation_id: str, digest: str = "") -> tuple[Argument, ...]:
    """The arguments with which every write begins."""
    return (1, spell_operation(operation_id), digest)


def open_log(keys: LogKeys) -> Command[Position]:
    """The newest position of a log, which exists afterwards."""

    def parse(reply: list[bytes]) -> Position:
        if reply[0] == b"merged":
            raise merged_error(keys, reply[1])
        return Position(reply[1].decode(), int(reply[2]))

    return Command("log_open", keys.written, (), parse)


def read_log(keys: LogKeys, after: Position, *, limit: int = MAX_PAGE) -> Command[Page]:
    """The page after a position. Raises `PositionLost` rather than returning a part of it."""

    def parse(reply: list[Any]) -> Page:
        epoch, top = reply[1].decode(), int(reply[2])
        if reply[0] == b"lost":
            raise PositionLost(after, current=Position(epoch, top))
        entries = [Entry(after.offset + 1 + index, event) for index, event in enumerate(reply[3:])]
        return Page(epoch, top, entries)

    return Command("log_read", keys.written[:2], (after.epoch, after.offset, limit), parse)


def merged_error(keys: LogKeys, into: bytes) -> CustomerMerged:
    return CustomerMerged(keys.id, into=into.decode())
