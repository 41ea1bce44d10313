"""Documents: typed, versioned, patched field by field."""

from omnistate.state._api import Origin, Services, StateHandle
from omnistate.state._commands import MAX_BYTES, Part, change, expected, parse_change, split_results
from omnistate.state._events import StateEvent, decode_event
from omnistate.state._model import (
    ABSENT,
    ANY,
    AnyState,
    Change,
    Precondition,
    Snapshot,
    State,
    Written,
    check_life,
    check_name,
    readers_of,
    schema_of,
)
from omnistate.state._schema import Schema, check_depth, check_numbers

__all__ = [
    "ABSENT",
    "ANY",
    "MAX_BYTES",
    "AnyState",
    "Change",
    "Origin",
    "Part",
    "Precondition",
    "Schema",
    "Services",
    "Snapshot",
    "State",
    "StateEvent",
    "StateHandle",
    "Written",
    "change",
    "check_depth",
    "check_life",
    "check_name",
    "check_numbers",
    "decode_event",
    "expected",
    "parse_change",
    "readers_of",
    "schema_of",
    "split_results",
]
