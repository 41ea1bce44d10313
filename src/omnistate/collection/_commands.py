"""Commands on collections. No IO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import msgspec

from omnistate.collection._model import Collection, List, Map, WorkQueue
from omnistate.collection._values import PlacedValues
from omnistate.errors import (
    AlreadyThere,
    CollectionFull,
    InvalidValue,
    LeaseLost,
    NotThere,
    OutOfBounds,
    SchemaMismatch,
    ValueTooLarge,
)
from omnistate.state import ANY, Keyring, Origin, Part, Precondition, expected, split_results
from omnistate.store import Argument, Command, LogKeys, Position, encode_id, merged_error

T = TypeVar("T")
MAX_BYTES = 16 * 1024 * 1024  # as in functions.lua
_json = msgspec.json.Encoder().encode


class Whose:
    """Whose collections are meant, and who acts."""

    __slots__ = ("keyring", "log", "origin", "owner")

    def __init__(self, log: LogKeys, origin: Origin, owner: tuple[str, str] | None, keyring: Keyring | None) -> None:
        self.log, self.origin, self.owner, self.keyring = log, origin, owner, keyring

    def entry(self, name: str) -> str:
        return name if self.owner is None else f"{name}:{self.owner[0]}:{encode_id(self.owner[1])}"


def own_keys(log: LogKeys, kind: str, entry: str) -> list[bytes]:
    """The keys of a collection, or of a document, by its kind and its entry."""
    parts = {"map": ("due",), "unique": ("other",), "queue": ("ready", "leased")}.get(kind, ())
    return [log.key("doc", entry), *(log.key("doc", entry, "." + part) for part in parts)]


@dataclass(frozen=True, slots=True)
class Found:
    """A reading: the collection's version (None: absent), the log's position, and what was asked for."""

    version: Position | None
    position: Position
    values: list[Any]


class Target:
    """A collection of one owner: its keys, and the beginning of its events."""

    __slots__ = ("_keyring", "_values", "collection", "entry", "head", "keys", "log")

    def __init__(self, collection: Collection[Any, Any], place: Whose) -> None:
        self.collection, self.log = collection, place.log
        self._keyring, self._values = place.keyring, cast("PlacedValues[Any] | None", None)
        name = place.entry(collection.name)
        self.entry = "doc:" + name
        self.keys = own_keys(place.log, collection.kind, name)
        self.head = b'{"type":"collection.changed","collection":%b' % _json(collection.name)
        if place.owner is not None:
            self.head += b',"owner":' + _json(f"{place.owner[0]}:{encode_id(place.owner[1])}")
        self.head += place.origin.members()

    @property
    def values(self) -> PlacedValues[Any]:
        """The values as they are stored here, of a kind whose values may be sealed."""
        if self._values is None:
            declared = cast("Map[Any, Any] | List[Any] | WorkQueue[Any]", self.collection)
            self._values = PlacedValues(declared.values, self.keys[0], self._keyring, seals=declared.is_encrypted)
        return self._values

    def part(
        self,
        operation: str,
        event: bytes,
        arguments: Sequence[Argument],
        expect: Precondition = ANY,
        limit: str | None = None,
        plain: Sequence[Argument] | None = None,
    ) -> Part:
        """A change of it, as a part of a call. `event` goes into the event as it is; `plain`: arguments before sealing."""
        one = self.collection
        limit = one.limit_argument if limit is None else limit
        head = self.head + b',"op":"%b"' % operation.encode() + event
        fixed = (self.entry, expected(expect), one.ttl_ms, one.lifetime_ms, one.kind, limit, operation, head)
        intention = (self.entry, one.kind, operation, *(arguments if plain is None else plain))
        return Part("collection", self.keys, (*fixed, *arguments), intention)

    def delete(self, expect: Precondition = ANY) -> Part:
        event = self.head.replace(b".changed", b".deleted", 1)
        arguments = (self.entry, expected(expect), event, self.collection.kind)
        return Part("erase", self.keys, arguments, (self.entry, "erase"))

    def reseal(self, opened: list[tuple[Argument, bytes]], version: Position) -> Part:
        """To store these values (by index, key or id) sealed as is declared now; they must still be what was read."""
        arguments: list[Argument] = []
        for name, value in opened:
            key = name if self.collection.kind == "map" and isinstance(name, bytes) else b""
            arguments += (name, self.values.seal(value, key))
        event = self.head + b',"op":"reseal"'
        return Part("reseal", self.keys, (self.entry, expected(version), self.collection.kind, event, *arguments))

    def refusal(self, reply: list[Any]) -> Exception:
        """What a part's refusal means, but for a version that was not the expected one."""
        name, word = self.collection.name, reply[0]
        match word:
            case b"full" if reply[1] == b"entries":
                return CollectionFull(
                    f"{name} is full: it may hold {int(reply[2]):,} entries. Remove some, or raise its limit"
                )
            case b"large":
                return ValueTooLarge(name, size=int(reply[1]), limit=MAX_BYTES)
            case b"kind":
                return SchemaMismatch(
                    f"{name} is stored as a {reply[1].decode()}, not a {self.collection.kind}: rename it"
                )
            case b"not_integer":
                return InvalidValue(f"what {name} holds there is no integer, or the sum is beyond 2^53")
            case b"infinite":
                return InvalidValue(f"the sum is larger than a score of {name} can be")
            case b"bounds":
                return OutOfBounds(name, value=int(reply[1]))
            case b"damaged":
                return SchemaMismatch(f"what is to be added to {name} is damaged: these are not the bytes of a counter")
            case b"exists":
                return AlreadyThere(f"{name} has this key already: read it, or use put to replace its value")
            case b"absent":
                return NotThere(f"{name} has no value at this index")
            case _:
                return LeaseLost(
                    f"the lease on this item of {name} ended and it was given to another worker, or it is done"
                )

    def read(self, what: str, *arguments: Argument) -> Command[Found]:
        def parse(reply: list[Any]) -> Found:
            if reply[0] == b"merged":
                raise merged_error(self.log, reply[1])
            if reply[0] == b"kind":
                raise self.refusal(reply)
            epoch, version = reply[1].decode(), None
            if reply[3]:
                _, _, offset, of_epoch, _ = reply[3].split(b" ", 4)
                version = Position(of_epoch.decode(), int(offset))
            return Found(version, Position(epoch, int(reply[2])), reply[4])

        keys = (self.log.meta, *self.keys)
        said = (self.entry, self.collection.kind, what, *arguments)
        if what == "count" and self.collection.kind == "unique":
            return Command("collection_count", keys, said, parse)
        return Command("collection_read", keys, said, parse)


unpack: Callable[[bytes], list[bytes]] = split_results
