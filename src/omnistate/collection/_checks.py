"""What the verbs of collections are given and give, checked and spelled. No IO."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import isfinite, isnan
from typing import Any, TypeVar

from omnistate.collection._commands import unpack
from omnistate.errors import InvalidInput, InvalidValue, SchemaMismatch

K = TypeVar("K")
V = TypeVar("V")
R = TypeVar("R")
MOST_AT_ONCE = 1000  # values of one call
_MOST = 2**53 - 1


def taken(result: bytes, read: Callable[[list[bytes]], R]) -> R:
    """What was taken out of a collection. It is gone from there: what cannot be read goes with the error."""
    values = unpack(result)
    try:
        return read(values)
    except SchemaMismatch as error:
        error.removed = tuple(values)
        raise


def checked(values: Iterable[Any]) -> list[Any]:
    found = list(values)
    if not 0 < len(found) <= MOST_AT_ONCE:
        raise InvalidInput(f"give 1 to {MOST_AT_ONCE:,} values at once, not {len(found):,}")
    return found


def pairs_of(values: Mapping[K, V]) -> Iterable[tuple[K, V]]:
    if not isinstance(values, Mapping):
        raise InvalidInput(f"update takes a mapping, not a {type(values).__name__}")
    return values.items()


def checked_index(value: int, what: str = "an index", least: int = -_MOST) -> int:
    if type(value) is not int or not least <= value <= _MOST:
        raise InvalidInput(f"{what} must be an int {'within 2^53' if least else 'from 0 on'}, not {value!r}")
    return value


def checked_count(count: int) -> int:
    if type(count) is not int or not 1 <= count <= MOST_AT_ONCE:
        raise InvalidInput(f"count must be an int from 1 to {MOST_AT_ONCE:,}")
    return count


def checked_integer(name: str, value: int) -> int:
    if type(value) is not int or abs(value) > _MOST:
        raise InvalidValue(f"{name} counts with integers within 2^53, not {value!r}")
    return value


def as_count(result: bytes) -> int:
    return int(result or 0)


def order_of(highest_first: bool) -> str:
    return "highest" if highest_first else "lowest"


def spelled_score(score: float) -> str:
    if not _is_number(score) or not isfinite(score):
        raise InvalidValue(f"a score must be a finite number, not {score!r}")
    return repr(float(score))


def spelled_bound(score: float) -> str:
    if not _is_number(score) or isnan(score):
        raise InvalidValue(f"a bound must be a number, not {score!r}")
    return repr(float(score))


def _is_number(score: object) -> bool:
    """Whether it is a float, or an int that a float can be."""
    if isinstance(score, float):
        return True
    return isinstance(score, int) and not isinstance(score, bool) and abs(score) < 2**1023
