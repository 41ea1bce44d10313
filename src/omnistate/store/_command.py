"""A call of one server-side function as a value: built and judged without IO."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import count
from typing import Any, Generic, TypeVar, cast

import hiredis

T = TypeVar("T")
Argument = bytes | str | int
_COUNTER = count()
_prefix = secrets.token_urlsafe(9)


def new_operation_id() -> str:
    """An operation id that no other process uses: 72 random bits of this process and a counter."""
    return f"{_prefix}.{next(_COUNTER):x}"


def _renew() -> None:
    """A forked process must not count on where its parent does: the same id twice would be taken for one write."""
    global _prefix  # noqa: PLW0603 - of this process
    _prefix = secrets.token_urlsafe(9)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


DIGEST_SIZE = 16  # characters


def digest_of(said: Iterable[object]) -> str:
    """Tells what is asked for under one operation id apart."""
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE // 2)
    for one in said:
        text = one if isinstance(one, bytes) else str(one).encode()
        digest.update(len(text).to_bytes(4, "big") + text)
    return digest.hexdigest()


def pack(*words: Argument) -> bytes:
    """A command as it goes over the wire."""
    return cast(bytes, hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub knows tuples of one


class Keys(tuple[bytes, ...]):  # noqa: SLOT001 - a tuple can have no slots
    """Keys that many calls name: what they are on the wire is worked out once.

    A command on them has no integers among its arguments.
    """

    @cached_property
    def packed(self) -> bytes:
        """Their number, and each of them."""
        return words_of(pack(b"%d" % len(self), *self))


def words_of(packed: bytes) -> bytes:
    """Packed words without their number, to put some together."""
    return packed[packed.index(b"\n") + 1 :]


class Command(Generic[T]):
    """One function call. `parse` turns the reply into a result or raises one of our errors.

    `operation_id` is what makes a retry of a write harmless; a command without one only reads.
    """

    __slots__ = ("arguments", "function", "keys", "operation_id", "parse")

    def __init__(
        self,
        function: str,
        keys: Sequence[bytes],
        arguments: Sequence[Argument],
        parse: Callable[[Any], T],
        operation_id: str | None = None,
    ) -> None:
        self.function = function
        self.keys = keys
        self.arguments = arguments
        self.parse = parse
        self.operation_id = operation_id

    def __repr__(self) -> str:  # keys and arguments hold customers' data: not for logs
        return f"<Command {self.function}>"
