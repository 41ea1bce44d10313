"""Commands on customers. No IO."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec

from omnistate.collection import own_keys
from omnistate.customer._identity import Identity, identities_key, identity_of
from omnistate.errors import CustomerMerged, InvalidInput
from omnistate.state import NEVER
from omnistate.store import Command, LogKeys, Position, decode_id, opening

_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Frozen:
    """What a customer who is merged away leaves to move: names of documents, identities by digest."""

    documents: list[str]
    identities: dict[str, Identity]


def freeze(log: LogKeys, customer: str, into: str, known: Iterable[str], *, operation_id: str) -> Command[Frozen]:
    event = b'{"type":"customer.merged","into":%b' % _json(into)

    def parse(reply: list[Any]) -> Frozen:
        if reply[0] == b"merged":
            raise CustomerMerged(customer, into=reply[1].decode())
        if reply[0] == b"unknown":
            name = reply[1].decode().removeprefix("doc:").partition(":")[0]
            raise InvalidInput(
                f"customer {customer} has a {name}, and no class of that name is imported here: "
                "import it, so that its merge method can run. Nothing has changed"
            )
        end = 3 + int(reply[2])
        pairs = zip(reply[end::2], reply[end + 1 :: 2], strict=True)
        identities = {digest.decode(): identity_of(identity) for digest, identity in pairs}
        return Frozen([entry.decode().removeprefix("doc:") for entry in reply[3:end]], identities)

    keys = (*log.written, identities_key(log))
    return Command("customer_freeze", keys, (*opening(operation_id), into, event, *known), parse, operation_id)


class Stored(msgspec.Struct, frozen=True):
    """A document or a collection as it is stored: its header, and what is in it, with the deadlines of entries."""

    header: bytes
    values: list[bytes]

    @property
    def kind(self) -> str:
        """The kind of a collection, or the codec of a document."""
        return self.header.split(b" ", 6)[5].decode()

    @property
    def deadline(self) -> int:
        """In milliseconds since 1970, 0 for none."""
        deadline = self.header[:13]
        return 0 if deadline == NEVER else int(deadline)


def documents(log: LogKeys, kinds: Mapping[str, str]) -> Command[list[Stored | None]]:
    """A frozen customer's documents and collections, given as entry and kind; None where one has expired."""
    keys = [own_keys(log, kind, entry) for entry, kind in kinds.items()]
    arguments = [one for entry, own in zip(kinds, keys, strict=True) for one in ("doc:" + entry, len(own))]

    def parse(reply: list[Any]) -> list[Stored | None]:
        return [Stored(*found) if found else None for found in reply]

    return Command("customer_documents", (log.meta, *chain.from_iterable(keys)), arguments, parse)


def empty(log: LogKeys, kinds: Mapping[str, str], indexes: Iterable[str]) -> Command[None]:
    """Removes what moved, also from the indexes of these names."""
    own = list(chain.from_iterable(own_keys(log, kind, entry) for entry, kind in kinds.items()))
    own += [log.key("doc", entry, ".history") for entry, kind in kinds.items() if kind == "state"]
    keys = (log.meta, log.written[3], identities_key(log), *own, *map(log.index, indexes))
    return Command("customer_empty", keys, (len(own), *("doc:" + entry for entry in kinds)), lambda _: None)


def read(log: LogKeys) -> Command[tuple[str | None, list[Identity]]]:
    """Whom the customer was merged into, and their identities."""

    def parse(reply: list[Any]) -> tuple[str | None, list[Identity]]:
        return reply[0].decode() or None, [identity_of(identity) for identity in reply[2::2]]

    return Command("customer_read", (log.meta, identities_key(log)), (), parse)


Entries = tuple[str, list[tuple[str, tuple[str, str] | None, bytes]]]


def list_entries(log: LogKeys) -> Command[Entries]:
    """Whom a customer was merged into, or ""; and name, owner and header of each document and collection."""

    def parse(reply: list[bytes]) -> Entries:
        found = []
        for entry, header in zip(reply[1::2], reply[2::2], strict=True):
            name, _, owner = entry.decode().removeprefix("doc:").partition(":")
            what, _, id_ = owner.partition(":")
            found.append((name, (what, decode_id(id_)) if owner else None, header))
        return reply[0].decode(), found

    return Command("log_entries", (log.meta, log.written[3]), (), parse)


def read_log_as_it_is(log: LogKeys) -> Command[tuple[Position | None, list[bytes]]]:
    """The position of a log, None where there is none, and all events that it still has."""

    def parse(reply: list[bytes]) -> tuple[Position | None, list[bytes]]:
        return Position(reply[0].decode(), int(reply[1])) if reply[0] else None, reply[2:]

    return Command("customer_log", (log.meta, log.log), (), parse)


def read_key(key: bytes, first: int = 0, last: int = -1) -> Command[tuple[str, list[bytes]]]:
    """The type of a key and what it holds, of a list only from `first` to `last`; "none" where it has expired."""
    return Command("customer_value", (key,), (first, last), lambda reply: (reply[0].decode(), reply[1:]))
