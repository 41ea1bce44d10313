"""A call of one server-side function as a value: built and judged without IO."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Argument = bytes | str | int
_PREFIX = secrets.token_urlsafe(9)
_COUNTER = count()


def new_operation_id() -> str:
    """An operation id that no other process uses: 72 random bits of this process and a counter."""
    return f"{_PREFIX}.{next(_COUNTER):x}"


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
