"""The values in a collection: typed, as JSON, and sealed where the declaration says so."""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from typing import Generic, TypeVar, cast

import msgspec

from omnistate.errors import InvalidDeclaration, InvalidValue, SchemaMismatch, ValueTooDeep, ValueTooLarge
from omnistate.state import NO_KEYS, Keyring, check_depth, check_numbers

T = TypeVar("T")
MAX_VALUE_BYTES = 64 * 1024
_SEALED = b'{"$sealed":"'
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


class PlacedValues(Generic[T]):
    """The values of one collection, as they are in its place in the store, from where nobody can move what is sealed.

    A sealed value is JSON too, `{"$sealed": "..."}`: so events, merges and the server need not know of it, and sealed and
    other values may stand side by side.
    """

    __slots__ = ("_keyring", "_place", "_values", "seals")

    def __init__(self, values: Values[T], place: bytes, keyring: Keyring | None, *, seals: bool) -> None:
        self._values, self._place, self._keyring, self.seals = values, place, keyring, seals

    def encode(self, value: T, key: bytes = b"") -> bytes:
        """What is stored of the value; `key` is that of an entry of a map."""
        return self.seal(self._values.encode(value), key)

    def decode(self, stored: bytes, key: bytes = b"") -> T:
        """Raises `SchemaMismatch`, `EncryptionKeyMissing`."""
        return self._values.decode(self.open(stored, key))

    def seal(self, encoded: bytes, key: bytes = b"") -> bytes:
        if not self.seals:
            if encoded.startswith(_SEALED):
                raise InvalidValue(f'{self._values.name} cannot hold an object that begins with "$sealed"')
            return encoded
        if self._keyring is None:
            raise InvalidDeclaration(NO_KEYS.format("encrypted collections need"))
        return _SEALED + b64encode(self._keyring.seal(encoded, self._place + b"\0" + key)) + b'"}'

    def open(self, stored: bytes, key: bytes = b"") -> bytes:
        if not stored.startswith(_SEALED):
            return stored
        return self._keys().open(_sealed(stored), self._place + b"\0" + key)

    def is_as_declared(self, stored: bytes) -> bool:
        """Whether it would be stored so today: sealed with the current key, or not at all."""
        if not self.seals or not stored.startswith(_SEALED):
            return self.seals == stored.startswith(_SEALED)
        return self._keys().uses_current_key(_sealed(stored))

    def _keys(self) -> Keyring:
        if self._keyring is None:
            raise SchemaMismatch(NO_KEYS.format("an encrypted value needs"))
        return self._keyring


def _sealed(stored: bytes) -> bytes:
    try:
        return b64decode(stored[len(_SEALED) : -2], validate=True)
    except binascii.Error as error:
        raise SchemaMismatch("an encrypted value is damaged: it is not in the format that omnistate writes") from error


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
