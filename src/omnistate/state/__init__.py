"""Documents: typed, versioned, patched field by field."""

from omnistate.state._api import Origin, Services, StateHandle
from omnistate.state._commands import MAX_BYTES
from omnistate.state._events import StateEvent, decode_event
from omnistate.state._model import ABSENT, ANY, AnyState, Change, Snapshot, State, Written, readers_of, schema_of
from omnistate.state._schema import Schema, check_depth

__all__ = [
    "ABSENT",
    "ANY",
    "MAX_BYTES",
    "AnyState",
    "Change",
    "Origin",
    "Schema",
    "Services",
    "Snapshot",
    "State",
    "StateEvent",
    "StateHandle",
    "Written",
    "check_depth",
    "decode_event",
    "readers_of",
    "schema_of",
]
