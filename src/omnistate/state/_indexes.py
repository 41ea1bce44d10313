"""Secondary indexes: what of a value is indexed, and as which number.

An index is a sorted set in each partition, changed in the call that changes the document. Numbers and times are their own
scores, so ranges can be asked for; everything else is hashed to a score of 52 bits, so it can be asked for by equality. A
score only finds candidates: whoever asks reads the documents and looks at the values themselves.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec

from omnistate.errors import InvalidDeclaration, InvalidValue
from omnistate.state._options import Options

UPDATED = "@updated"  # the index of the time of the last write
_json = msgspec.json.Encoder(order="sorted").encode


def score_of(what: str, value: Any) -> float | None:
    """The score of a value, None for one that is not indexed. Raises `InvalidValue` for what has none, as NaN."""
    if value is None or value is msgspec.UNSET:
        return None
    try:
        score = _score(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidValue(f"{what} is indexed, and this value cannot be: {error}") from error
    if score != score:
        raise InvalidValue(f"{what} is indexed, and NaN is in no order")
    return score


def _score(value: Any) -> float:
    if isinstance(value, int | float):  # bool too
        return float(value)
    if isinstance(value, datetime):
        return (value if value.tzinfo is not None else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, date):
        return float(value.toordinal())
    if isinstance(value, timedelta):
        return value.total_seconds()
    digest = hashlib.blake2b(_json(value), digest_size=8).digest()
    return float(int.from_bytes(digest, "big") >> 12)


def is_ordered(value: Any) -> bool:
    """Whether ranges of such values can be asked for."""
    return isinstance(value, int | float | date | timedelta)


class Indexes:
    """The indexes of a class."""

    __slots__ = ("_defaults", "_fields", "_name", "has_computed", "names")

    def __init__(self, kind: Any, options: Options, fields: dict[str, bytes]) -> None:
        """`fields`: the stored names of the class's plain fields, by their own. Raises `InvalidDeclaration`."""
        self._name, self.names = options.name, options.indexes
        self._fields = {name: fields[name] for name in self.names if name in fields}
        self._defaults: Any = kind() if self.names else None
        for name in self.names:
            if name != UPDATED and name not in fields and not isinstance(getattr(kind, name, None), property):
                raise InvalidDeclaration(
                    f"{options.name}: indexes names {name!r}, which is no plain field and no property"
                )
        self.has_computed = any(name not in self._fields and name != UPDATED for name in self.names)

    def of(self, value: Any) -> list[tuple[str, str]]:
        """The entries of a document with this value. Raises `InvalidValue`."""
        return [
            (name, "now" if name == UPDATED else self._score(name, self._value(name, value))) for name in self.names
        ]

    def _value(self, name: str, value: Any) -> Any:
        if name in self._fields:
            return getattr(value, name)
        try:
            return getattr(value, name)
        except Exception as error:
            raise InvalidValue(
                f"the index {self._name}.{name} of this value cannot be computed: its property raised {error!r}"
            ) from error

    def of_changes(self, sets: dict[bytes, bytes], drops: Any, steps: Any) -> list[tuple[str, str]]:
        """The entries after a change of some fields, where none is computed from the whole value."""
        entries = []
        counted = {name for name, _ in steps}
        for name in self.names:
            field = self._fields.get(name)
            default = "" if field is None else self._score(name, getattr(self._defaults, name))
            if field is None:
                entries.append((name, "now"))
            elif field in counted:
                entries.append((name, "@" + field.decode()))
            elif field in sets:
                entries.append((name, self._score(name, self._decode(name, sets[field]))))
            elif field in drops:
                entries.append((name, default))
            elif default:
                entries.append((name, "+" + default))
            else:
                entries.append((name, "+"))
        return entries

    def _decode(self, name: str, value: bytes) -> Any:
        kind = {field.name: field.type for field in msgspec.structs.fields(self._defaults)}[name]
        return msgspec.json.decode(value, type=kind)

    def _score(self, name: str, value: Any) -> str:
        score = score_of(f"{self._name}.{name}", value)
        return "" if score is None else repr(score)
