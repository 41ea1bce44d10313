"""Encryption of stored values: AES-256-GCM with envelope keys.

A process draws a data key, wraps it with the keyring's current key, and writes the wrapped data key into each value that it
seals: so a value can be read with the keyring alone, a key service is asked once per data key and not once per value, and a
key is rotated by making another one current while values of both are read. The place of a value (its document's key and its
field) is authenticated with it: moved to another customer or field it is refused.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from omnistate.errors import EncryptionKeyMissing, InvalidInput, MissingExtra, SchemaMismatch

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_FORMAT = 1
_NONCE = 12  # bytes, random for each value: safe for 2^32 values of a data key (NIST SP 800-38D, 8.3)
_MOST_USES = 2**24
_LONGEST_USE = 3600.0  # seconds
_MOST_KNOWN = 4096  # unwrapped data keys of other processes


@runtime_checkable
class KeyEncryptionKey(Protocol):
    """A key of a key service: it wraps and unwraps the data keys (32 bytes) that values are sealed with."""

    def wrap(self, data_key: bytes) -> bytes: ...
    def unwrap(self, wrapped: bytes) -> bytes: ...


class Keyring:
    """The keys of `encrypted` states: `Keyring({"2026-11": key}, current="2026-11")`, given to `connect(keyring=)`.

    A key is 32 random bytes, or an object with `wrap` and `unwrap` that asks a key service. `current` seals, all of them
    open. To rotate: add a key everywhere, then make it current everywhere, then run `omnistate migrate`, then remove the old.
    Raises `InvalidInput`, `MissingExtra`.
    """

    def __init__(self, keys: Mapping[str, bytes | KeyEncryptionKey], *, current: str) -> None:
        self._aead = _aead()
        if current not in keys:
            raise InvalidInput(
                f"the current key {current!r} is not in the keyring: it has {', '.join(keys) or 'no keys'}"
            )
        self.current = current
        self._keys: dict[str, KeyEncryptionKey] = {}
        for name, key in keys.items():
            if not name or not name.isascii() or len(name) > 64:
                raise InvalidInput("the name of a key must have 1 to 64 ASCII characters")
            if isinstance(key, bytes) and len(key) == 32:
                self._keys[name] = _LocalKey(name, self._aead(key))
            elif isinstance(key, KeyEncryptionKey):
                self._keys[name] = key
            else:
                raise InvalidInput(f"key {name!r} must be 32 bytes (secrets.token_bytes(32)), or have wrap and unwrap")
        self._sealing: tuple[bytes, AESGCM] | None = None
        self._uses, self._since = 0, 0.0
        self._known: OrderedDict[bytes, AESGCM] = OrderedDict()

    def __repr__(self) -> str:  # never the keys
        return f"<Keyring {', '.join(self._keys)}; current {self.current}>"

    def seal(self, value: bytes, place: bytes) -> bytes:
        """The value, readable only with this keyring and only at this place."""
        head, cipher = self._data_key()
        nonce = os.urandom(_NONCE)
        return head + nonce + cipher.encrypt(nonce, value, head + place)

    def open(self, sealed: bytes, place: bytes) -> bytes:
        """Raises `EncryptionKeyMissing`; `SchemaMismatch` for what was damaged or moved."""
        try:
            name_end = 2 + sealed[1]
            name = sealed[2:name_end].decode("ascii")
            end = name_end + 2 + int.from_bytes(sealed[name_end : name_end + 2], "big")
            head, nonce = sealed[:end], sealed[end : end + _NONCE]
            is_known_format = sealed[0] == _FORMAT and len(nonce) == _NONCE
        except (IndexError, UnicodeDecodeError):
            is_known_format = False
        if not is_known_format:
            raise SchemaMismatch("an encrypted value is damaged: it is not in the format that omnistate writes")
        if name not in self._keys:
            raise EncryptionKeyMissing(name)
        try:
            cipher = self._known_cipher(name, head, sealed[name_end + 2 : end])
            return cipher.decrypt(nonce, sealed[end + _NONCE :], head + place)
        except EncryptionKeyMissing:
            raise
        except Exception as error:  # InvalidTag, or what a key service raises for a data key that is not its own
            raise SchemaMismatch(
                "an encrypted value is damaged, or was moved from another customer or field"
            ) from error

    def uses_current_key(self, sealed: bytes) -> bool:
        return sealed[2 : 2 + sealed[1]] == self.current.encode()

    def _data_key(self) -> tuple[bytes, AESGCM]:
        now = time.monotonic()
        if self._sealing is None or self._uses >= _MOST_USES or now - self._since > _LONGEST_USE:
            data_key = os.urandom(32)
            wrapped, name = self._keys[self.current].wrap(data_key), self.current.encode()
            head = bytes([_FORMAT, len(name)]) + name + len(wrapped).to_bytes(2, "big") + wrapped
            self._sealing, self._uses, self._since = (head, self._aead(data_key)), 0, now
        self._uses += 1
        return self._sealing

    def _known_cipher(self, name: str, head: bytes, wrapped: bytes) -> AESGCM:
        if self._sealing is not None and self._sealing[0] == head:
            return self._sealing[1]
        cipher = self._known.get(head)
        if cipher is None:
            cipher = self._known[head] = self._aead(self._keys[name].unwrap(wrapped))
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        return cipher


class _LocalKey:
    """A key that this process holds."""

    def __init__(self, name: str, cipher: AESGCM) -> None:
        self._name, self._cipher = name.encode(), cipher

    def wrap(self, data_key: bytes) -> bytes:
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, data_key, self._name)

    def unwrap(self, wrapped: bytes) -> bytes:
        return self._cipher.decrypt(wrapped[:_NONCE], wrapped[_NONCE:], self._name)


def _aead() -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtra("encryption", extra="encryption") from error
    return AESGCM
