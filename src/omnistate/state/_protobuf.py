"""Protobuf messages as states. A document's hash fields hold messages with one field, or one entry of a map field, each:
messages that are written one after the other are one message, so joining is concatenation."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator
from copy import deepcopy
from datetime import timedelta
from typing import Any, TypeVar

import msgspec

from omnistate.errors import InvalidDeclaration, InvalidValue, MissingExtra, SchemaMismatch
from omnistate.state._indexes import Indexes
from omnistate.state._options import History, Options
from omnistate.state._schema import Flat, Schema
from omnistate.state._stored import Packing

M = TypeVar("M")
_declared: weakref.WeakKeyDictionary[type, Options] = weakref.WeakKeyDictionary()
_schemas: weakref.WeakKeyDictionary[type, ProtobufSchema] = weakref.WeakKeyDictionary()


def protobuf(
    message: type[M],
    *,
    name: str | None = None,
    ttl: timedelta | None = None,
    lifetime: timedelta | None = None,
    channels: Collection[str] | None = None,
    compress_over: int | None = None,
    encrypted: bool | Collection[str] = False,
    history: History | int | timedelta | None = None,
    near_cache: bool = False,
    outlives_session: bool = False,
) -> type[M]:
    """Makes a generated message class a state type, and returns it: `protobuf(cart_pb2.Cart, ttl=timedelta(days=7))`.

    `ana.state(cart_pb2.Cart)` then has the verbs of every state. Fields are merged and watched one by one, entries of map
    fields too. Protobuf's own rules take the place of `version`: numbers of fields are never used again, and fields that
    this process does not know stay. The server does not count in messages: `increment` is refused, `update` does it.
    Raises `InvalidDeclaration`, `MissingExtra`.
    """
    if not isinstance(message, type) or not issubclass(message, _message_class()):
        raise InvalidDeclaration("protobuf takes a message class that protoc generated: protobuf(cart_pb2.Cart)")
    options = Options(
        name or message.DESCRIPTOR.name,  # type: ignore[attr-defined]
        ttl,
        lifetime,
        channels,
        compress_over=compress_over,
        encrypted=encrypted,
        history=history,
        near_cache=near_cache,
        outlives_session=outlives_session,
    )
    _declared[message] = options
    _schemas.pop(message, None)
    return message


def protobuf_options(message: type) -> Options | None:
    return _declared.get(message)


def protobuf_schema(message: type) -> ProtobufSchema | None:
    """The schema of a message class, None where it was not declared."""
    options = _declared.get(message)
    if options is None:
        return None
    found = _schemas.get(message)
    if found is None:
        found = _schemas[message] = ProtobufSchema(message, options)
    return found


def declared_messages() -> dict[str, type]:
    """The message classes of this process that are states, by name."""
    return {options.name: message for message, options in _declared.items()}


class ProtobufSchema(Schema[Any]):
    """What is derived from a message class. What is called JSON in a `Schema` is the message's own bytes here."""

    __slots__ = ("_maps", "_names")

    def __init__(self, kind: Any, options: Options) -> None:  # nothing of the msgspec side is made
        self._kind, self.name, self.ttl_ms, self.lifetime_ms = kind, options.name, options.ttl_ms, options.lifetime_ms
        self.version = self.writes = 1
        self.history, self.indexes = options.history, Indexes(kind, options, {})
        self.compares = self.copies = False
        self.how_one = None  # an event needs a value as JSON
        self.is_near, self.copier = options.near_cache, deepcopy
        fields = list(kind.DESCRIPTOR.fields)
        self._names = {field.name: field for field in fields}
        self._maps = {field.name: field for field in fields if _is_map(field)}
        self.mappings, self.known = set(self._maps), frozenset(field.name.encode() for field in fields)
        encrypted: frozenset[bytes] | bool = options.encrypted is True
        if not isinstance(options.encrypted, bool):
            if unknown := options.encrypted - self._names.keys():
                raise InvalidDeclaration(f"{self.name}: encrypted names {min(unknown)!r}, which is no field")
            encrypted = frozenset(field.encode() for field in options.encrypted)
        self.packing = Packing(
            "protobuf",
            compress_over=options.compress_over,
            encrypted=encrypted,
            from_json=lambda _, value: value,
            to_json=lambda _, value: value,
        )

    def encode(self, value: Any) -> bytes:
        if type(value) is not self._kind:
            raise InvalidValue(f"expected a {self.name}, got {type(value).__name__}")
        return _bytes(value)

    def validate(self, encoded: bytes) -> Any:
        return self.decode(encoded)

    def parse(self, text: bytes) -> Any:
        return self._from_json(msgspec.json.decode(text))

    def decode(self, encoded: bytes) -> Any:
        try:
            return self._kind.FromString(encoded)
        except _decode_error() as error:
            raise SchemaMismatch(f"the stored {self.name} cannot be read as its message: {error}") from error

    def to_json(self, encoded: bytes) -> bytes:
        return msgspec.json.encode(self._to_json(self.decode(encoded)))

    def split(self, encoded: bytes) -> Flat:
        return dict(self._parts(self.decode(encoded)))

    def join(self, flat: Flat) -> bytes:
        return b"".join(flat.values())

    def salvage(self, flat: Flat) -> tuple[Flat, dict[str, str]]:
        good: Flat = {}
        bad: dict[str, str] = {}
        for name, value in flat.items():
            try:
                self.decode(value)
                good[name] = value
            except SchemaMismatch as error:
                bad[name.decode(errors="replace")] = str(error)
        return good, bad

    def event_value(self, name: bytes, value: bytes) -> bytes:
        field, entry, _ = name.decode().partition(":")
        said: Any = self._to_json(self.decode(value)).get(field)
        return msgspec.json.encode(next(iter(said.values())) if entry else said)

    def value_of_event(self, name: bytes, value: bytes) -> bytes:
        field, entry, key = name.decode().partition(":")
        said = msgspec.json.decode(value)
        return _bytes(self._from_json({field: {key: said} if entry else said}))

    def plain(self, values: dict[str, Any]) -> Flat:
        for name in values:
            if self._field(name) in self._maps.values():
                raise InvalidValue(f"{self.name}.{name} is a map: use put and remove for its entries")
        flat = dict(self._parts(self._made(**values)))
        # A field without presence that has its default is not written: it is nevertheless set, to nothing.
        return {name.encode(): flat.get(name.encode(), b"") for name in values}

    def entry(self, name: str, key: Any, value: Any) -> tuple[bytes, bytes]:
        field = self._map(name)
        if field.message_type.fields_by_name["value"].message_type is not None:
            made = self._made()
            try:
                getattr(made, name)[key].CopyFrom(value)
            except (TypeError, ValueError) as error:
                raise InvalidValue(f"{self.name}.{name}: {error}") from error
        else:
            made = self._made(**{name: {key: value}})
        return next(iter(self._parts(made)))

    def entry_name(self, name: str, key: Any) -> bytes:
        self._map(name)
        return f"{name}:{_key(key)}".encode()

    def counter(self, name: str, key: Any | None) -> bytes:  # noqa: ARG002
        raise InvalidValue(f"{self.name} is a protobuf message, in which the server does not count: use update")

    def field(self, name: str) -> Any:  # noqa: ARG002
        raise InvalidValue(
            f"{self.name} is a protobuf message: a deadline can be given to entries of its maps, with put"
        )

    def _field(self, name: str) -> Any:
        if name not in self._names:
            raise InvalidValue(f"{self.name} has no field {name[:40]!r}; it has {', '.join(self._names)}")
        return self._names[name]

    def _map(self, name: str) -> Any:
        if self._field(name).name not in self._maps:
            raise InvalidValue(f"{self.name}.{name} is not a map: use patch or update")
        return self._maps[name]

    def _made(self, **values: Any) -> Any:
        try:
            return self._kind(**values)
        except (TypeError, ValueError) as error:
            raise InvalidValue(f"{self.name}: {error}") from error

    def _parts(self, message: Any) -> Iterator[tuple[bytes, bytes]]:
        for field, value in message.ListFields():
            if field.name not in self._names or self._names[field.name] is not field:
                continue  # an extension: it has no name of its own in the message
            if field.name in self._maps:
                is_message = field.message_type.fields_by_name["value"].message_type is not None
                for key in value:
                    part = self._kind()
                    if is_message:
                        getattr(part, field.name)[key].CopyFrom(value[key])
                    else:
                        getattr(part, field.name)[key] = value[key]
                    yield f"{field.name}:{_key(key)}".encode(), _bytes(part)
                continue
            part = self._kind()
            if _is_repeated(field):
                getattr(part, field.name).extend(value)
            elif field.message_type is not None:
                getattr(part, field.name).CopyFrom(value)
            else:
                setattr(part, field.name, value)
            yield field.name.encode(), _bytes(part)

    def _to_json(self, message: Any) -> dict[str, Any]:
        found: dict[str, Any] = _json_format().MessageToDict(message, preserving_proto_field_name=True)
        return found

    def _from_json(self, said: Any) -> Any:
        try:
            return _json_format().ParseDict(said, self._kind(), ignore_unknown_fields=False)
        except _json_format().ParseError as error:
            raise InvalidValue(f"{self.name}: {error}") from error


def _bytes(message: Any) -> bytes:
    encoded: bytes = message.SerializeToString(deterministic=True)
    return encoded


def _key(key: Any) -> str:
    return ("true" if key else "false") if isinstance(key, bool) else str(key)


def _is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _is_repeated(field: Any) -> bool:
    found = getattr(field, "is_repeated", None)  # newer protobuf; `label` is deprecated there
    return bool(found) if found is not None else field.label == field.LABEL_REPEATED


def _message_class() -> Any:
    try:
        from google.protobuf.message import Message  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtra("protobuf", extra="protobuf") from error
    return Message


def _decode_error() -> Any:
    from google.protobuf.message import DecodeError  # noqa: PLC0415 - an extra

    return DecodeError


def _json_format() -> Any:
    from google.protobuf import json_format  # noqa: PLC0415 - an extra

    return json_format
