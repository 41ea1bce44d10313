"""Commands of an erasure. No IO. What they do is in customer/functions.lua, in what order in _erase.py.

All of them can be repeated as they are. Those that write have an operation id only so that a durability level is waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from omnistate.customer._identity import Identity, identities_key, identity_of
from omnistate.session import session_keys
from omnistate.store import Argument, Command, Keyspace, LogKeys, Position, merged_error, new_operation_id

EVENT = b'{"type":"customer.erased"'
_BOOKKEEPING = ("meta", "older", "docs", "merged", "erasing")  # of a log, and of this; holds no content that is counted


@dataclass(frozen=True, slots=True)
class Begun:
    """An erasure: `is_over` when it had been finished before; else what its journal says."""

    is_over: bool
    is_new: bool
    time: int
    digest: str
    actor: str = ""
    reason: str = ""
    into: str = ""
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NotErased:
    """Nothing has changed: the customer was merged into another one, or ("") into nobody."""

    into: str


Beginning: TypeAlias = Command[Begun | NotErased]


def journal_key(log: LogKeys) -> bytes:
    return log.key("erasing")


def merged_key(log: LogKeys) -> bytes:
    return log.key("merged")


def begin(keyspace: Keyspace, log: LogKeys, *, into: str, actor: str, reason: str) -> Beginning:
    """The first step. `into`: only if the customer was merged into that one. Safe to repeat."""

    def parse(reply: list[bytes]) -> Begun | NotErased:
        if reply[0] == b"merged":
            return NotErased(reply[1].decode())
        said = [one.decode() for one in reply[3:]]
        journal = dict(zip(said[::2], said[1::2], strict=True))
        counts = {name[2:]: int(number) for name, number in journal.items() if name.startswith("n:") and number != "0"}
        word, time, digest = reply[0], int(reply[1]), reply[2].decode()
        about = (journal.get("who", ""), journal.get("why", ""), journal.get("into", ""))
        return Begun(word == b"erased", word == b"ok", time, digest, *about, counts)

    arguments = (keyspace.erasure_key, into, actor, reason, EVENT)
    keys = (*log.written, journal_key(log), *session_keys(log))
    return Command("erase_begin", keys, arguments, parse, new_operation_id())


def read_others(log: LogKeys) -> Command[tuple[list[str], dict[str, Identity]]]:
    """Who was merged into the customer, and the customer's identities by digest."""

    def parse(reply: list[Any]) -> tuple[list[str], dict[str, Identity]]:
        merged, listed = reply
        pairs = zip(listed[::2], listed[1::2], strict=True)
        identities = {digest.decode(): identity_of(entry) for digest, entry in pairs}
        return sorted(one.decode() for one in merged), identities

    return Command("erase_read", (merged_key(log), identities_key(log)), (), parse)


@dataclass(frozen=True, slots=True)
class Names:
    """Some keys of a customer and some indexes, and how to go on. `server`: which one answered."""

    cursor: bytes
    server: bytes
    own: list[bytes]
    indexes: list[bytes]


def find_keys(log: LogKeys, cursor: bytes) -> Command[Names]:
    """What there is of a customer in its slot, a part of a walk over all keys of that server."""
    index = log.index("")

    def parse(reply: list[bytes]) -> Names:
        cursor, server, *keys = reply
        own = [key for key in keys if key.startswith(log.prefix)]
        return Names(cursor, server, own, [key for key in keys if key.startswith(index)])

    return Command("customer_keys", (log.meta,), (cursor, log.common, log.prefix, index), parse)


def kind_of(log: LogKeys, key: bytes) -> str:
    """What a key of a customer holds, in a word that reports use; "" for what is not counted."""
    parts = key.removeprefix(log.prefix).decode().split(":")
    if parts[-1].startswith("."):
        return "changes" if parts[-1] == ".history" else ""
    if len(parts) == 1:
        if parts[0] in _BOOKKEEPING:
            return ""
        return {"log": "events", "identities": "identities", "sessions": "sessions"}.get(parts[0], "others")
    match parts[0]:
        case "doc":
            return "documents"
        case "conversation" if len(parts) == 2:
            return "conversations"
        case "conversation" if parts[2:] == ["messages"]:
            return "messages"
    return "others"


Counts = dict[str, int]


def erase_keys(log: LogKeys, keys: Sequence[bytes], *, only_count: bool) -> Command[Counts | None]:
    """Removes keys; how much of each kind it was. None: another process has finished the erasure."""

    def parse(reply: list[bytes]) -> Counts | None:
        if reply[:1] == [b"over"]:
            return None
        return {kind.decode(): int(number) for kind, number in zip(reply[::2], reply[1::2], strict=True)}

    kinds = (kind_of(log, key) for key in keys)
    return Command("erase_keys", (journal_key(log), *keys), (_flag(only_count), *kinds), parse, new_operation_id())


def erase_from_index(log: LogKeys, index: bytes, cursor: bytes, *, only_count: bool) -> Command[tuple[bytes, int]]:
    """Takes the customer out of an index, some of its entries at a time: the next cursor, and how many it was in."""
    return Command(
        "erase_index",
        (journal_key(log), index),
        (_flag(only_count), log.name, cursor),
        lambda reply: (reply[0], int(reply[1])),
        new_operation_id(),
    )


def end(log: LogKeys) -> Command[None]:
    """The last step. Safe to repeat."""
    return Command("erase_end", (log.written[4], journal_key(log)), (log.name,), lambda _: None, new_operation_id())


def record(keyspace: Keyspace, digest: str, entry: bytes) -> Command[bytes]:
    """Adds to the tenant's list of erasures; what is there for this one."""
    return Command("erase_record", (keyspace.erasures,), (digest, entry), bytes, new_operation_id())


def list_erasures(keyspace: Keyspace, cursor: bytes) -> Command[tuple[bytes, list[tuple[str, bytes]]]]:
    """A part of the tenant's list of erasures, and the next cursor."""

    def parse(reply: list[bytes]) -> tuple[bytes, list[tuple[str, bytes]]]:
        return reply[0], [(digest.decode(), one) for digest, one in zip(reply[1::2], reply[2::2], strict=True)]

    return Command("erase_list", (keyspace.erasures,), (cursor,), parse)


def check(log: LogKeys) -> Command[bool]:
    """Whether the customer was erased."""
    return Command("erase_check", (log.meta, log.written[4]), (), lambda reply: reply == b"1")


def refuse(keyspace: Keyspace, partition: int, digest: str, milliseconds: int) -> Command[None]:
    """A tombstone without a customer, in a store that was restored. Safe to repeat."""
    arguments = (keyspace.erasure_key, digest, milliseconds)
    return Command("erase_refuse", (keyspace.agenda(partition),), arguments, lambda _: None, new_operation_id())


def absorb(log: LogKeys, other: str) -> Command[Position]:
    """Notes that `other` is going to be merged into this customer; the log's position. Safe to repeat."""

    def parse(reply: list[bytes]) -> Position:
        if reply[0] == b"merged":
            raise merged_error(log, reply[1])
        return Position(reply[1].decode(), int(reply[2]))

    return Command("customer_absorb", (*log.written, merged_key(log)), (other,), parse)


def _flag(value: bool) -> Argument:
    return "1" if value else "0"
