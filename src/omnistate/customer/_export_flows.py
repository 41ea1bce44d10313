"""What is known of a customer, line by line. Flows without IO; `_export.py` drives them and signs.

What there is is found by the names of keys, as by an erasure: what this version does not know is exported as it is stored.
Nothing is written, so a process that dies leaves nothing, and an export is begun anew. Each line is as it was at one moment;
the positions of the log before and after say whether anything changed in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeAlias

import msgspec
from msgspec import Raw

from omnistate.collection import own_keys
from omnistate.customer import _erase_commands as names
from omnistate.customer._commands import (
    Stored,
    documents,
    list_entries,
    read_key,
    read_log_as_it_is,
)
from omnistate.customer._flows import imported_classes
from omnistate.errors import CustomerErased, SchemaMismatch
from omnistate.session import SessionInfo, stored_sessions
from omnistate.state import (
    COLLECTION_KINDS,
    Keyring,
    plain_document,
    plain_event,
    plain_message,
    plain_step,
    plain_value,
)
from omnistate.store import Flow, Keyspace, LogKeys, Position, call, encode_id

_PAGE = 500  # messages, or changes, of one reply
_KEPT = (
    "meta",
    "older",
    "log",
    "docs",
    "identities",
    "sessions",
    "merged",
    "erasing",
)  # of a log: exported from what it means
_NOT_OF_A_SESSION = ("customer_id", "merged_into", "reauthentication_due")  # said by the line, and by the times
_encode = msgspec.json.Encoder().encode

Line = dict[str, Any]
Lines: TypeAlias = Flow[list[Line]]


def find_all(keyspace: Keyspace, customer: str) -> Flow[tuple[Position | None, list[str]]]:
    """The position of the log, and the ids of the customer and of all who were merged into it. Raises `CustomerErased`."""
    if (yield from call(names.check(keyspace.customer(customer)))):
        raise CustomerErased(customer)
    position, _ = yield from call(read_log_as_it_is(keyspace.customer(customer)))
    found, waiting = [], [customer]
    while waiting:
        one = waiting.pop(0)
        if one not in found:
            found.append(one)
            others, _ = yield from call(names.read_others(keyspace.customer(one)))
            waiting += others
    return position, found


def find_keys(log: LogKeys) -> Flow[list[bytes]]:
    """The names of all keys of a customer, in order."""
    while True:
        found: set[bytes] = set()
        servers, cursor = set[bytes](), b"0"
        while True:
            page = yield from call(names.find_keys(log, cursor))
            cursor = page.cursor
            found.update(page.own)
            servers.add(page.server)
            if cursor == b"0":
                break
        if len(servers) == 1:  # else a slot has moved, or a primary was replaced
            return sorted(found)


class Reader:
    """The lines of one customer."""

    def __init__(self, log: LogKeys, keyring: Keyring | None) -> None:
        self._log, self._keyring = log, keyring
        self._classes = imported_classes()
        self._covered = {log.key(one) for one in _KEPT}

    def plan(self, keys: list[bytes]) -> Flow[list[Lines]]:
        """What is to be read, a flow for each reply that may be large."""
        into, entries = yield from call(list_entries(self._log))
        work: list[Lines] = [self._about(into), self._events(), self._sessions()]
        for name, owner, header in entries:
            kind = header.split(b" ")[5].decode()
            work.append(self._entry(name, owner, kind))
            entry = _entry(name, owner)
            self._covered.update(own_keys(self._log, kind if kind in COLLECTION_KINDS else "state", entry))
        for key in keys:
            if key in self._covered:
                continue
            parts = key.removeprefix(self._log.prefix).decode().split(":")
            match parts:
                case ["doc", *_, ".history"]:
                    work += [self._history(key, parts)]
                case ["conversation", id_]:
                    work += [self._hash("conversation", key, f"{encode_id(self._log.id)}.{id_}"), self._messages(key)]
                case ["conversation", _, "messages"]:
                    pass  # with its conversation
                case _:
                    work.append(self._other(key))
        return work

    def _about(self, into: str) -> Lines:
        merged, identities = yield from call(names.read_others(self._log))
        about: Line = (
            {"kind": "customer"} | ({"merged_into": into} if into else {}) | ({"merged": merged} if merged else {})
        )
        return [about, *({"kind": "identity"} | msgspec.to_builtins(one) for one in identities.values())]

    def _sessions(self) -> Lines:
        """Also those that are over and not yet removed. Never hashes of tokens."""
        _, held = yield from call(read_key(self._log.key("sessions")))
        return [_session(name, info) for name, info in stored_sessions(self._log, _by(held, 2))]

    def _events(self) -> Lines:
        position, events = yield from call(read_log_as_it_is(self._log))
        first = position.offset - len(events) + 1 if position is not None else 0
        keys = lambda entry: self._log.key("doc", entry)  # noqa: E731 - one word more would say no more
        return [
            {"kind": "event", "offset": offset, "event": plain_event(event, keys, self._keyring)}
            for offset, event in enumerate(events, first)
        ]

    def _entry(self, name: str, owner: tuple[str, str] | None, kind: str) -> Lines:
        entry = _entry(name, owner)
        is_collection = kind in COLLECTION_KINDS
        found = yield from call(documents(self._log, {entry: kind if is_collection else "state"}))
        if found[0] is None:
            return []  # it has expired
        line: Line = {"kind": "collection" if is_collection else "state", "name": name}
        if owner is not None:
            line["owner"] = {"kind": owner[0], "id": owner[1]}
        header = found[0].header.decode().split(" ")
        line |= {"version": f"{header[3]}:{header[2]}", "stored_as": kind, "class_version": int(header[6])}
        if found[0].deadline:
            line["expires"] = found[0].deadline
        document = self._log.key("doc", entry)
        if is_collection:
            return [line | self._collection(document, found[0])]
        message = self._message(name, owner, found[0])
        return [line | (self._document(document, found[0]) if message is None else {"value": message})]

    def _message(self, name: str, owner: tuple[str, str] | None, found: Stored) -> Raw | None:
        """A protobuf message as JSON: only its class knows the names of its fields."""
        if not found.kind.startswith("protobuf") or name not in self._classes:
            return None
        with suppress(SchemaMismatch):
            return Raw(plain_message(self._classes[name], self._log, owner, found.header, found.values, self._keyring))
        return None

    def _document(self, document: bytes, found: Stored) -> Line:
        flat = dict(zip(found.values[::2], found.values[1::2], strict=True))
        line: Line = {"value": plain_document(dict(flat), document, self._keyring)}
        ends = {name[1:].decode(): int(value) for name, value in flat.items() if name.startswith(b"!")}
        return line | ({"entries_expire": ends} if ends else {})

    def _collection(self, key: bytes, found: Stored) -> Line:
        def opened(value: bytes, entry: bytes = b"") -> Any:
            return plain_value(value, key + b"\0" + entry, self._keyring)

        values = found.values
        match found.kind:
            case "map":
                triples = list(_by(values, 3))
                ends = {name.decode(): int(end) for name, _, end in triples if end}
                held: Any = {name.decode(): opened(value, name) for name, value, _ in triples}
                return {"value": held} | ({"entries_expire": ends} if ends else {})
            case "sorted":
                held = [[opened(member), float(score)] for member, score in _by(values, 2)]
            case "queue":
                held = [
                    opened(item.partition(b" ")[2])
                    for _, item, _ in sorted(_by(values, 3), key=lambda one: int(one[0]))
                ]
            case "counter":
                held = int(values[0])
            case "unique":
                held = values[0]  # hashes of what was counted, as base64
            case _:
                held = [opened(value) for value in values]
        return {"value": held}

    def _history(self, key: bytes, parts: list[str]) -> Lines:
        entry = ":".join(parts[1:-1])
        document, lines, first = self._log.key("doc", entry), [], 0
        while True:
            _, page = yield from call(read_key(key, first, first + _PAGE - 1))
            for step in page:
                said = plain_step(step, document, self._keyring)
                lines.append({"kind": "change", "name": parts[1], "of": entry} | said)
            first += _PAGE
            if len(page) < _PAGE:
                return lines

    def _hash(self, kind: str, key: bytes, id_: str) -> Lines:
        type_, held = yield from call(read_key(key))
        if type_ != "hash":
            return []
        return [{"kind": kind, "id": id_, "fields": {name.decode(): _text(value) for name, value in _by(held, 2)}}]

    def _messages(self, key: bytes) -> Lines:
        lines: list[Line] = []
        while True:
            _, page = yield from call(read_key(key + b":messages", len(lines), len(lines) + _PAGE - 1))
            lines += [{"kind": "message", "message": plain_value(one, b"", None)} for one in page]
            if len(page) < _PAGE:
                return lines

    def _other(self, key: bytes) -> Lines:
        """What this version knows nothing of, or what is left of something that has expired."""
        type_, held = yield from call(read_key(key))
        if type_ == "none":
            return []
        name = key.removeprefix(self._log.prefix).decode()
        return [{"kind": "other", "key": name, "type": type_, "value": [_text(one) for one in held]}]


def spell(customer: str, lines: Iterable[Line]) -> Iterator[tuple[str, bytes]]:
    """Each line as it is in the file, and its kind."""
    for line in lines:
        yield line["kind"], _encode({"kind": line["kind"], "customer": customer} | line) + b"\n"


def _session(name: str, info: SessionInfo | None) -> Line:
    if info is None:
        return {"kind": "session", "id": name, "value": {"$unreadable": "its record is damaged"}}
    said = msgspec.to_builtins(info)
    return {"kind": "session"} | {what: said[what] for what in said if what not in _NOT_OF_A_SESSION}


def _entry(name: str, owner: tuple[str, str] | None) -> str:
    return name if owner is None else f"{name}:{owner[0]}:{encode_id(owner[1])}"


def _by(values: list[bytes], size: int) -> Iterator[tuple[bytes, ...]]:
    return zip(*(values[first::size] for first in range(size)), strict=True)


def _text(value: bytes) -> str | Raw | bytes:
    """As text where it is text, else as base64."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
