"""Connection, key names, server-side library and log. For the other slices: users import from `omnistate`."""

from omnistate.store._binary import find_binary
from omnistate.store._command import DIGEST_SIZE, Argument, Command, Keys, digest_of, new_operation_id, pack
from omnistate.store._connection import ConnectionLost
from omnistate.store._datadir import default_data_dir, running_url
from omnistate.store._durability import ACCEPTED, SYNCED, Durability, replicated
from omnistate.store._embedded import EmbeddedServer
from omnistate.store._feed import Feed, Leave, Listener
from omnistate.store._flow import Flow, Pause, call, pause, run, together
from omnistate.store._greeting import Exchange
from omnistate.store._hold import LOCK_FILE, check_writable, hold, make_private, private, say_who_holds
from omnistate.store._inbox import Inbox
from omnistate.store._keys import (
    PARTITIONS,
    Keyspace,
    LogKeys,
    OwnOperationId,
    check_duration,
    check_operation_id,
    decode_id,
    encode_id,
    partition_of,
)
from omnistate.store._library import library
from omnistate.store._link import DurableLink, Executor, Link, meta_of
from omnistate.store._log import (
    LONGEST_LOG,
    MAX_PAGE,
    Entry,
    Page,
    is_last,
    merged_error,
    open_log,
    opening,
    read_log,
    spell_operation,
)
from omnistate.store._node import Node
from omnistate.store._position import Position, check_position
from omnistate.store._process import Profile, ServerProcess, common_settings
from omnistate.store._topology import open_link
from omnistate.store._url import Address, Endpoint, parse_url

__all__ = [
    "ACCEPTED",
    "DIGEST_SIZE",
    "LOCK_FILE",
    "LONGEST_LOG",
    "MAX_PAGE",
    "PARTITIONS",
    "SYNCED",
    "Address",
    "Argument",
    "Command",
    "ConnectionLost",
    "Durability",
    "DurableLink",
    "EmbeddedServer",
    "Endpoint",
    "Entry",
    "Exchange",
    "Executor",
    "Feed",
    "Flow",
    "Inbox",
    "Keys",
    "Keyspace",
    "Leave",
    "Link",
    "Listener",
    "LogKeys",
    "Node",
    "OwnOperationId",
    "Page",
    "Pause",
    "Position",
    "Profile",
    "ServerProcess",
    "call",
    "check_duration",
    "check_operation_id",
    "check_position",
    "check_writable",
    "common_settings",
    "decode_id",
    "default_data_dir",
    "digest_of",
    "encode_id",
    "find_binary",
    "hold",
    "is_last",
    "library",
    "make_private",
    "merged_error",
    "meta_of",
    "new_operation_id",
    "open_link",
    "open_log",
    "opening",
    "pack",
    "parse_url",
    "partition_of",
    "pause",
    "private",
    "read_log",
    "replicated",
    "run",
    "running_url",
    "say_who_holds",
    "spell_operation",
    "together",
]
