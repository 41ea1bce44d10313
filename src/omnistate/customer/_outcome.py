"""What a change inside a transaction gives."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar, cast

from omnistate.errors import InvalidInput

T = TypeVar("T")
_NOT_YET = object()


class Outcome(Generic[T]):
    """What a change inside a transaction gives: await it, or ask for its `value`, once the transaction is over."""

    __slots__ = ("_judge", "_value")

    def __init__(self, judge: Callable[[bytes], T]) -> None:
        self._judge = judge
        self._value: Any = _NOT_YET

    @property
    def value(self) -> T:
        if self._value is _NOT_YET:
            raise InvalidInput(
                "the transaction is not over: its results are there after the `async with` block, unless it repeated one "
                "(tx.repeated) that did something else"
            )
        return cast("T", self._value)

    def __await__(self) -> Generator[Any, None, T]:
        yield from ()
        return self.value

    def settle(self, result: bytes) -> None:
        """For the transaction: what the server said of it."""
        self._value = self._judge(result)
