"""Documents: typed, versioned, patched field by field."""

from omnistate.state._api import Origin, Services, StateHandle, precondition_of
from omnistate.state._commands import (
    MAX_BYTES,
    Changed,
    Part,
    Patch,
    Target,
    change,
    delete_part,
    expect_part,
    expected,
    parse_change,
    parse_version,
    split_results,
    sums_of,
    write_part,
    write_refusal,
)
from omnistate.state._events import StateEvent, decode_event
from omnistate.state._history import FieldChange, Revision, Undone
from omnistate.state._indexes import UPDATED, is_ordered, score_of
from omnistate.state._migrate import migrate
from omnistate.state._model import (
    ABSENT,
    ANY,
    AnyState,
    Change,
    Precondition,
    Snapshot,
    State,
    Written,
    readers_of,
    schema_of,
)
from omnistate.state._options import History, Options, check_life, check_name
from omnistate.state._protobuf import declared_messages, protobuf
from omnistate.state._schema import Flat, Schema, check_depth, check_numbers
from omnistate.state._seal import KeyEncryptionKey, Keyring

__all__ = [
    "ABSENT",
    "ANY",
    "MAX_BYTES",
    "UPDATED",
    "AnyState",
    "Change",
    "Changed",
    "FieldChange",
    "Flat",
    "History",
    "KeyEncryptionKey",
    "Keyring",
    "Options",
    "Origin",
    "Part",
    "Patch",
    "Precondition",
    "Revision",
    "Schema",
    "Services",
    "Snapshot",
    "State",
    "StateEvent",
    "StateHandle",
    "Target",
    "Undone",
    "Written",
    "change",
    "check_depth",
    "check_life",
    "check_name",
    "check_numbers",
    "declared_messages",
    "decode_event",
    "delete_part",
    "expect_part",
    "expected",
    "is_ordered",
    "migrate",
    "parse_change",
    "parse_version",
    "precondition_of",
    "protobuf",
    "readers_of",
    "schema_of",
    "score_of",
    "split_results",
    "sums_of",
    "write_part",
    "write_refusal",
]
