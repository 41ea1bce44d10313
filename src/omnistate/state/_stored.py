"""How values are stored. In this process a value of a State is JSON; in the store it may be something else.

A stored value says what it is: JSON begins with a printable character, everything else with a byte below 32. So values
written with different codecs stand side by side in one document, and each is read as what it is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

from omnistate.errors import InvalidDeclaration, MissingExtra, SchemaMismatch
from omnistate.state._seal import Keyring

MSGPACK, ZSTD, SEALED, PROTOBUF = b"\x01", b"\x02", b"\x03", b"\x04"
NO_KEYS = "{} keys: connect(keyring=omnistate.Keyring({{...}}, current=...))"
_INTEGER = re.compile(rb"-?\d{1,16}")
_MOST_UNPACKED = 16 * 1024 * 1024  # a value that claims to be larger than any that was ever stored is damaged


class Packing:
    """What a class says of how its values are stored: codec, compression, encryption."""

    __slots__ = ("_compressor", "compress_over", "encrypted", "from_json", "is_plain", "name", "to_json")

    def __init__(
        self,
        codec: str,
        *,
        compress_over: int,
        encrypted: frozenset[bytes] | bool,
        from_json: Callable[[bytes, bytes], bytes | None],
        to_json: Callable[[bytes, bytes], bytes],
    ) -> None:
        """`encrypted`: fields, or all of them. `from_json` and `to_json` transcode a field's value to MessagePack and back."""
        self.compress_over, self.encrypted = compress_over, encrypted
        self.from_json, self.to_json = from_json, to_json
        self.name = codec + ("+zstd" if compress_over else "") + ("+aes" if encrypted else "")
        self.is_plain = codec == "json" and not compress_over and not encrypted
        if compress_over:
            self._compressor = zstd().ZstdCompressor()  # making one costs more than compressing a short value

    def is_sealed(self, name: bytes) -> bool:
        if isinstance(self.encrypted, bool):
            return self.encrypted
        return name.partition(b":")[0] in self.encrypted

    def pack(self, name: bytes, value: bytes, document: bytes, keyring: Keyring | None) -> bytes:
        """The stored form of a field's value, which is JSON or already in the class's own form."""
        if self.name.startswith("msgpack") and not _INTEGER.fullmatch(value):  # integers stay countable by the server
            transcoded = self.from_json(name, value)
            value = value if transcoded is None else MSGPACK + transcoded
        elif self.name.startswith("protobuf"):
            value = PROTOBUF + value
        if self.compress_over and len(value) > self.compress_over:
            packed = ZSTD + self._compressor.compress(value, mode=self._compressor.FLUSH_FRAME)
            value = packed if len(packed) < len(value) else value
        if self.encrypted and self.is_sealed(name):
            if keyring is None:
                raise InvalidDeclaration(NO_KEYS.format("encrypted states need"))
            value = SEALED + keyring.seal(value, document + b"\0" + name)
        return value

    def unpack(self, name: bytes, stored: bytes, document: bytes, keyring: Keyring | None) -> bytes:
        """The value that was packed, whatever it was packed with. Raises `SchemaMismatch`, `EncryptionKeyMissing`."""
        tag = stored[:1]
        if tag == SEALED:
            if keyring is None:
                raise SchemaMismatch(NO_KEYS.format("an encrypted value needs"))
            stored = keyring.open(stored[1:], document + b"\0" + name)
            tag = stored[:1]
        if tag == ZSTD:
            stored = decompress(stored[1:])
            tag = stored[:1]
        if tag == PROTOBUF:
            if not self.name.startswith("protobuf"):
                raise SchemaMismatch("a stored value is a protobuf message, and this class is none")
            return stored[1:]
        if self.name.startswith("protobuf"):
            raise SchemaMismatch("a stored value is no protobuf message, and this class is one")
        if tag == MSGPACK:
            return self.to_json(name, stored[1:])
        if tag < b" ":
            raise SchemaMismatch("a stored value has an encoding that this version does not know, or it is damaged")
        return stored


def zstd() -> Any:
    """The zstd module of the standard library, or its backport."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd as module  # noqa: PLC0415 - an extra
        else:
            from backports import zstd as module  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtra("compression", extra="zstd") from error
    return module


def decompress(packed: bytes) -> bytes:
    module = zstd()
    try:
        decompressor = module.ZstdDecompressor()
        value: bytes = decompressor.decompress(packed, _MOST_UNPACKED)
    except module.ZstdError as error:
        raise SchemaMismatch("a compressed value is damaged") from error
    if not decompressor.eof:
        raise SchemaMismatch("a compressed value is damaged: its end is missing, or it is too large")
    return value
