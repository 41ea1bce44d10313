"""How a state class becomes a hash and comes back: one hash field per field, one per entry of a mapping field."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import NODEFAULT, UNSET, Raw, UnsetType

from omnistate.errors import InvalidDeclaration, InvalidValue, SchemaMismatch, ValueTooDeep

S = TypeVar("S", bound=msgspec.Struct)
Flat = dict[bytes, bytes]  # a document's hash fields

MAX_DEPTH = 64
CODEC = "json 1"  # what the header says of the values: codec and class version

_encode = msgspec.json.Encoder().encode
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"')
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class Schema(Generic[S]):
    """What is derived from a class once: its fields, which of them are mappings, and its decoders."""

    __slots__ = ("_decode", "_kind", "_parts", "fields", "known", "mappings", "name", "ttl_ms")

    def __init__(self, kind: type[S], name: str, ttl_ms: int) -> None:
        self._kind, self.name, self.ttl_ms = kind, name, ttl_ms
        try:
            info = msgspec.inspect.type_info(kind)
            self._decode = msgspec.json.Decoder(kind).decode
        except (TypeError, NameError) as error:
            raise InvalidDeclaration(f"state {name}: a field's type cannot be used: {error}") from error
        assert isinstance(info, msgspec.inspect.StructType)
        self.fields = {field.name: field for field in info.fields}
        self.mappings = {field.encode_name for field in info.fields if isinstance(field.type, msgspec.inspect.DictType)}
        for field in info.fields:
            if field.encode_name in self.mappings and (field.default_factory is NODEFAULT or field.default_factory()):
                raise InvalidDeclaration(f"{name}.{field.name} is a mapping: its default must be empty, = {{}}")
        self.known = frozenset(field.encode_name.encode() for field in info.fields)
        parts = [
            (field.name, dict[str, Raw] | UnsetType if field.encode_name in self.mappings else Raw | UnsetType, UNSET)
            for field in info.fields
        ]
        renamed = {field.name: field.encode_name for field in info.fields}
        self._parts = msgspec.json.Decoder(msgspec.defstruct(f"{name}Parts", parts, rename=renamed)).decode

    def default(self) -> S:
        return self._kind()

    # value <-> JSON

    def encode(self, value: S) -> bytes:
        """The value as JSON. Raises `InvalidValue` when it does not fit the class, `ValueTooDeep` when it nests too deep."""
        if type(value) is not self._kind:
            raise InvalidValue(f"expected a {self.name}, got {type(value).__name__}")
        try:
            encoded = _encode(value)
        except RecursionError:
            raise ValueTooDeep(self.name, limit=MAX_DEPTH) from None
        except (TypeError, ValueError, UnicodeEncodeError) as error:
            raise InvalidValue(f"{self.name} cannot be stored: {error}") from error
        check_depth(self.name, encoded)
        return encoded

    def validate(self, encoded: bytes) -> S:
        """The value that JSON holds, with every type checked. Raises `InvalidValue` and says where."""
        try:
            return self._decode(encoded)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidValue(f"{self.name}: {error}") from error

    def parse(self, text: bytes) -> S:
        """A value from somebody's JSON, where a field that the class does not have is an error."""
        check_depth(self.name, text)
        value = self.validate(text)
        for field in msgspec.json.decode(text):
            if all(field != known.encode_name for known in self.fields.values()):
                self.field(field)
        return value

    def decode(self, encoded: bytes) -> S:
        """The stored value. Raises `SchemaMismatch` when it no longer fits the class."""
        try:
            return self._decode(encoded)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SchemaMismatch(f"the stored {self.name} cannot be read as its class: {error}") from error

    # JSON <-> hash fields

    def split(self, encoded: bytes) -> Flat:
        """The hash fields of a document. An empty mapping has none."""
        parts = self._parts(encoded)
        flat: Flat = {}
        for field in self.fields.values():
            part = getattr(parts, field.name)
            if part is UNSET:
                continue
            name = field.encode_name.encode()
            if type(part) is dict:
                for key, raw in part.items():
                    flat[name + b":" + key.encode()] = bytes(raw)
            else:
                flat[name] = bytes(part)
        return flat

    def join(self, flat: Flat) -> bytes:
        """The JSON of a document's hash fields. Fields that the class does not know stay where they are, unread."""
        parts: dict[bytes, bytes | list[bytes]] = {}
        for name, value in flat.items():
            field, entry, key = name.partition(b":")
            if entry:
                parts.setdefault(field, []).append(_encode(key.decode()) + b":" + value)  # type: ignore[union-attr]
            else:
                parts[field] = value
        return b"{" + b",".join([_member(field, part) for field, part in parts.items()]) + b"}"

    # names

    def field(self, name: str) -> msgspec.inspect.Field:
        """The field of this name. Raises `InvalidValue` with a guess."""
        if (found := self.fields.get(name)) is not None:
            return found
        guess = get_close_matches(name, self.fields, n=1)
        hint = f": did you mean {guess[0]!r}?" if guess else f"; it has {', '.join(self.fields)}"
        raise InvalidValue(f"{self.name} has no field {name[:40]!r}{hint}")

    def plain(self, values: dict[str, Any]) -> Flat:
        """Hash fields for whole plain fields, each checked against its type."""
        for name in values:
            if self.field(name).encode_name in self.mappings:
                raise InvalidValue(f"{self.name}.{name} is a mapping: use put and remove for its entries")
        return self.split(self._checked({self.fields[name].encode_name: value for name, value in values.items()}))

    def entry(self, name: str, key: Any, value: Any) -> tuple[bytes, bytes]:
        """Hash field and value for one entry of a mapping field, checked against its types."""
        field = self._mapping(name)
        return next(iter(self.split(self._checked({field.encode_name: {key: value}})).items()))

    def entry_name(self, name: str, key: Any) -> bytes:
        """The hash field of an entry that is to be removed."""
        field = self._mapping(name)
        spelled: str = next(iter(msgspec.json.decode(_encode({key: None}))))
        return field.encode_name.encode() + b":" + spelled.encode()

    def counter(self, name: str, key: Any | None) -> bytes:
        """The hash field of an integer that may be incremented on the server."""
        type_ = self.field(name).type
        if key is not None:
            self._mapping(name)
            assert isinstance(type_, msgspec.inspect.DictType)
            type_ = type_.value_type
        if not isinstance(type_, msgspec.inspect.IntType):
            raise InvalidValue(f"{self.name}.{name} is not an integer: use update")
        if any(bound is not None for bound in (type_.ge, type_.gt, type_.le, type_.lt, type_.multiple_of)):
            raise InvalidValue(f"{self.name}.{name} has bounds that only `update` can check: use update")
        if key is not None:
            return self.entry(name, key, 0)[0]
        return self.fields[name].encode_name.encode()

    def _mapping(self, name: str) -> msgspec.inspect.Field:
        field = self.field(name)
        if field.encode_name not in self.mappings:
            raise InvalidValue(f"{self.name}.{name} is not a mapping: use patch or update")
        return field

    def _checked(self, values: dict[str, Any]) -> bytes:
        try:
            encoded = _encode(values)
        except RecursionError:
            raise ValueTooDeep(self.name, limit=MAX_DEPTH) from None
        except (TypeError, ValueError) as error:
            raise InvalidValue(f"{self.name} cannot be stored: {error}") from error
        check_depth(self.name, encoded)
        return _encode(self._only(self.validate(encoded), values))

    def _only(self, value: S, names: dict[str, Any]) -> dict[str, Any]:
        """The given fields as the class normalises them, without the defaults of the others."""
        return {
            field.encode_name: getattr(value, field.name)
            for field in self.fields.values()
            if field.encode_name in names
        }


def _member(field: bytes, part: bytes | list[bytes]) -> bytes:
    value = b"{" + b",".join(part) + b"}" if type(part) is list else part
    return b'"' + field + b'":' + value  # type: ignore[operator]


def check_depth(what: str, encoded: bytes) -> None:
    """Raises `ValueTooDeep` for JSON that nests deeper than the limit; looks closely only where it could."""
    if encoded.count(b"{") + encoded.count(b"[") > MAX_DEPTH and _depth(encoded) > MAX_DEPTH:
        raise ValueTooDeep(what, limit=MAX_DEPTH)


def _depth(encoded: bytes) -> int:
    depth = deepest = 0
    for bracket in _STRINGS.sub(b"", encoded).translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest
