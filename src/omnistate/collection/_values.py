"""The values in a collection: typed, as JSON."""

from __future__ import annotations

from typing import Generic, TypeVar, cast

import msgspec

from omnistate.errors import InvalidDeclaration, InvalidValue, SchemaMismatch, ValueTooDeep, ValueTooLarge
from omnistate.state import check_depth, check_numbers

T = TypeVar("T")
MAX_VALUE_BYTES = 64 * 1024
_encoder = msgspec.json.Encoder(order="sorted")  # equal values have equal JSON: sets compare bytes
_plain_encoder = msgspec.json.Encoder()


class Values(Generic[T]):
    """Encodes and checks the values of one type. `are_members`: readers get them in sets or as keys of a dict."""

    __slots__ = ("_are_members", "_decode", "_type", "name")

    def __init__(self, name: str, type_: type[T], *, are_members: bool = False) -> None:
        self.name, self._type, self._are_members = name, type_, are_members
        try:
            self._decode = msgspec.json.Decoder(type_).decode
        except (TypeError, NameError) as error:
            raise InvalidDeclaration(f"collection {name}: its type cannot be used: {error}") from error

    def encode(self, value: T) -> bytes:
        """The value as JSON. Raises `InvalidValue`, `ValueTooDeep`, `ValueTooLarge`."""
        try:
            encoded = _encode(value)
            read = self._decode(encoded)
            if self._are_members:
                hash(read)
                encoded = _encode(read)  # as a float, 1 is 1.0: one member, not two
        except RecursionError:
            raise ValueTooDeep(self.name, limit=64) from None
        except (msgspec.MsgspecError, TypeError, ValueError, UnicodeEncodeError) as error:
            raise InvalidValue(f"{self.name} cannot hold this: {error}") from error
        if b"null" in encoded:
            check_numbers(self.name, value)
        check_depth(self.name, encoded)
        if len(encoded) > MAX_VALUE_BYTES:
            raise ValueTooLarge(f"a value of {self.name}", size=len(encoded), limit=MAX_VALUE_BYTES)
        return encoded

    def decode(self, encoded: bytes) -> T:
        """The stored value. Raises `SchemaMismatch` when it no longer fits the type."""
        try:
            return self._decode(encoded)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise _mismatch(self.name, error) from error


class Keys(Generic[T]):
    """Spells the keys of a map, which JSON writes as strings."""

    __slots__ = ("_is_text", "_type", "name")

    def __init__(self, name: str, type_: type[T]) -> None:
        self.name, self._type, self._is_text = name, type_, type_ is str
        try:
            msgspec.json.Decoder(dict[type_, None])  # type: ignore[valid-type]
        except TypeError as error:
            raise InvalidDeclaration(f"collection {name}: its keys' type cannot be used: {error}") from error

    def encode(self, key: T) -> bytes:
        if self._is_text and not isinstance(key, str):
            raise InvalidValue(f"a key of {self.name} must be a str, not {type(key).__name__}")
        try:
            spelled = _spell(key)
            if not self._is_text:
                read = msgspec.convert(spelled.decode(), self._type, strict=False)
                if read != key:  # a key of another type, or NaN, which equals nothing
                    raise InvalidValue(f"{self.name} cannot have the key {key!r}: it would be read as {read!r}")
                spelled = _spell(read)  # 1 and 1.0 are one key
        except (msgspec.MsgspecError, TypeError, ValueError, UnicodeEncodeError) as error:
            if isinstance(error, InvalidValue):
                raise
            raise InvalidValue(f"{self.name} cannot have this key: {error}") from error
        if not 0 < len(spelled) <= 1024:
            raise InvalidValue(f"a key of {self.name} must have 1 to 1,024 bytes, not {len(spelled):,}")
        return spelled

    def decode(self, spelled: bytes) -> T:
        try:
            return msgspec.convert(spelled.decode(), self._type, strict=False)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise _mismatch(self.name, error) from error


def _encode(value: object) -> bytes:
    try:
        return _encoder.encode(value)
    except TypeError:  # the sorting encoder takes no mapping with other keys than strings
        return _encoder.encode(msgspec.to_builtins(value, str_keys=True, order="sorted"))


def _spell(key: object) -> bytes:
    (text,) = msgspec.json.decode(_plain_encoder.encode({key: None}))
    return cast("str", text).encode()


def _mismatch(name: str, error: Exception) -> SchemaMismatch:
    return SchemaMismatch(f"a stored value of {name} cannot be read as its type: {error}")
