"""What may be said of a state class."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from omnistate.errors import InvalidDeclaration

CODECS = ("json", "msgpack")
MOST_CHANGES = 10_000
_LONGEST = timedelta(days=3650)
_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class History:
    """How much of the past of a document is kept: the last `changes` of it, none older than `age`."""

    changes: int = 1000
    age: timedelta = timedelta(days=30)


class Options:
    """The keywords of a state class, checked. Raises `InvalidDeclaration`."""

    __slots__ = (
        "channels",
        "codec",
        "compress_over",
        "encrypted",
        "history",
        "indexes",
        "lifetime_ms",
        "name",
        "near_cache",
        "outlives_session",
        "ttl_ms",
        "version",
        "writes",
    )

    def __init__(
        self,
        name: str,
        ttl: timedelta | None = None,
        lifetime: timedelta | None = None,
        channels: Collection[str] | None = None,
        version: int = 1,
        writes: int | None = None,
        codec: str = "json",
        compress_over: int | None = None,
        encrypted: bool | Collection[str] = False,
        history: History | int | timedelta | None = None,
        indexes: Collection[str] = (),
        near_cache: bool = False,
        outlives_session: bool = False,
    ) -> None:
        check_name(name)
        check_life(name, ttl, lifetime)
        self.name = name
        self.ttl_ms, self.lifetime_ms = (0 if one is None else one // _MILLISECOND for one in (ttl, lifetime))
        self.channels = None if channels is None else names_of(name, "channels", channels)
        for number in (version, writes):
            if number is not None and (type(number) is not int or not 1 <= number < 2**31):
                raise InvalidDeclaration(f"{name}: a version must be an integer, 1 or higher, not {number!r}")
        self.version, self.writes = version, version if writes is None else writes
        if codec not in CODECS:
            raise InvalidDeclaration(f"{name}: codec must be one of {', '.join(CODECS)}, not {codec!r}")
        if compress_over is not None and (type(compress_over) is not int or compress_over < 64):
            raise InvalidDeclaration(
                f"{name}: compress_over must be a number of bytes, 64 or more: smaller values do not shrink"
            )
        self.codec, self.compress_over = codec, compress_over or 0
        self.encrypted = encrypted if isinstance(encrypted, bool) else names_of(name, "encrypted", encrypted)
        self.history = _history(name, history)
        self.indexes = tuple(sorted(names_of(name, "indexes", indexes)))
        if not isinstance(near_cache, bool):
            raise InvalidDeclaration(
                f"{name}: near_cache must be True or False, not {near_cache!r}: connect(near_cache_bytes=) says how much"
            )
        self.near_cache = near_cache
        if not isinstance(outlives_session, bool):
            raise InvalidDeclaration(f"{name}: outlives_session must be True or False, not {outlives_session!r}")
        self.outlives_session = outlives_session


def names_of(name: str, what: str, given: Collection[str]) -> frozenset[str]:
    """The names given for an option. Raises `InvalidDeclaration` for a str, which is a collection of letters."""
    if isinstance(given, str):
        raise InvalidDeclaration(f'{name}: {what} must be a set of names, not a str: {what}={{"{given}"}}')
    return frozenset(given)


def _history(name: str, given: History | int | timedelta | None) -> History | None:
    if given is None:
        return None
    if isinstance(given, timedelta):
        given = History(age=given)
    elif type(given) is int:
        given = History(changes=given)
    if not isinstance(given, History):
        raise InvalidDeclaration(f"{name}: history must be a number of changes, a timedelta, or a History")
    if not 1 <= given.changes <= MOST_CHANGES or not _MILLISECOND <= given.age <= _LONGEST:
        raise InvalidDeclaration(f"{name}: history keeps 1 to {MOST_CHANGES:,} changes, for up to {_LONGEST.days} days")
    return given


def check_name(name: str) -> None:
    """Raises `InvalidDeclaration` for what cannot name a state or a collection."""
    if not name.isascii() or not name.isidentifier() or len(name) > 64:
        raise InvalidDeclaration(f"the name {name[:70]!r} must be an ASCII identifier of at most 64 characters")


def check_life(name: str, ttl: timedelta | None, lifetime: timedelta | None) -> None:
    """Raises `InvalidDeclaration` for what cannot be the time after the last and after the first write."""
    given: tuple[tuple[str, object], ...] = (("ttl", ttl), ("lifetime", lifetime))
    for what, value in given:
        if value is not None and not isinstance(value, timedelta):
            kind = type(value).__name__
            raise InvalidDeclaration(f"{name}: {what} must be a timedelta, not {kind}: {what}=timedelta(days=7)")
        if value is not None and not _MILLISECOND <= value <= _LONGEST:
            raise InvalidDeclaration(f"{name}: {what} must be between 1 ms and {_LONGEST.days} days")
