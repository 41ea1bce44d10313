"""A call of one server-side function as a value: built and judged without IO."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any, Generic, TypeVar

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
