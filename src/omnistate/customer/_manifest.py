"""The manifest of an export: what is in it, and a signature that anybody can check who has the public key.

Ed25519 and not an HMAC, for whoever checks an HMAC could also have made it, and a clerk is given nothing that must be kept
secret. And the manifest is a file of its own, so that openssl and sha256sum are enough (docs/erasure.md).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any, BinaryIO

import msgspec

from omnistate.errors import InvalidInput, MissingExtra, SchemaMismatch
from omnistate.store import Position

FORMAT = "omnistate customer export 1"


class Manifest(msgspec.Struct, frozen=True):
    """What an export holds: how many lines of each kind, how much in all, and where the log was before and after.

    `unchanged`: nothing was written in between, so all lines are of one moment. `unreadable`: values that could not be
    decrypted or decoded, and are in it as they are stored.
    """

    format: str
    customer: str
    counts: dict[str, int]
    unreadable: int
    lines: int
    bytes: int
    sha256: str
    log_before: str | None
    log_after: str | None
    unchanged: bool


class Tally:
    """Counts what goes into an export."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._digest = hashlib.sha256()
        self._bytes = self._unreadable = 0

    def add(self, kind: str, line: bytes) -> None:
        self._counts[kind] += 1
        self._digest.update(line)
        self._bytes += len(line)
        self._unreadable += line.count(b'"$unreadable":')

    def manifest(self, customer: str, before: Position | None, after: Position | None) -> Manifest:
        counts = dict(sorted(self._counts.items()))
        size, digest = self._bytes, self._digest.hexdigest()
        places = (str(before) if before else None, str(after) if after else None)
        total = self._counts.total()
        return Manifest(FORMAT, customer, counts, self._unreadable, total, size, digest, *places, before == after)


def sign(manifest: bytes, private_key: bytes) -> bytes:
    """The signature, 64 bytes. `private_key`: PEM, as `openssl genpkey -algorithm ed25519` writes it."""
    ed25519, serialization = _cryptography()
    try:
        key = serialization.load_pem_private_key(private_key, None)
    except (ValueError, TypeError) as error:
        raise InvalidInput("the signing key is no PEM of a private key: openssl genpkey -algorithm ed25519") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise InvalidInput("the signing key must be an Ed25519 key: openssl genpkey -algorithm ed25519")
    return bytes(key.sign(manifest))


def verify_export(file: BinaryIO, manifest: bytes, signature: bytes, public_key: bytes) -> Manifest:
    """Checks that an export is whole and as it was signed. Returns its manifest; raises `SchemaMismatch` where it is not.

    `public_key`: PEM, as `openssl pkey -pubout` writes it. Raises `InvalidInput` for one that is none, `MissingExtra`.
    """
    ed25519, serialization = _cryptography()
    try:
        key = serialization.load_pem_public_key(public_key)
    except (ValueError, TypeError) as error:
        raise InvalidInput("the public key is no PEM of one: openssl pkey -in key.pem -pubout") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise InvalidInput("the public key must be an Ed25519 key")
    try:
        key.verify(signature, manifest)
    except Exception as error:  # cryptography's InvalidSignature, whose module is an extra
        raise SchemaMismatch("the manifest was changed, or was signed with another key") from error
    said = msgspec.json.decode(manifest, type=Manifest)
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    if digest.hexdigest() != said.sha256:
        raise SchemaMismatch("the file is not the one that the manifest was made for: it was changed, or is not whole")
    return said


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - an extra
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtra("signing and verifying an export", extra="encryption") from error
    return ed25519, serialization
