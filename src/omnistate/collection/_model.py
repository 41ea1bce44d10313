"""How collections are declared."""

from __future__ import annotations

import weakref
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeAlias, TypeVar

from omnistate.collection._values import Keys, Values
from omnistate.errors import InvalidDeclaration
from omnistate.state import Beside, Options, State, check_life, check_name, options_of, schema_of

if TYPE_CHECKING:  # the bases below name the handles in strings, which the linter does not look into
    from omnistate.collection._api import (  # noqa: F401
        CounterHandle,
        ListHandle,
        MapHandle,
        SetHandle,
        SortedSetHandle,
        UniqueCounterHandle,
        WorkQueueHandle,
    )
    from omnistate.sync import _collection as sync  # noqa: F401

H = TypeVar("H")
H_co = TypeVar("H_co", covariant=True)
S_co = TypeVar("S_co", covariant=True)
T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
MOST_ENTRIES = 1_000_000
_declared: weakref.WeakSet[Collection[Any, Any]] = weakref.WeakSet()


_NOT_SEALED = "a {} cannot be encrypted, since the server compares or adds what is in it"


class Collection(Beside, Generic[H_co, S_co]):
    """The base of collections. `H_co` is the handle that `customer.collection(...)` gives for it, `S_co` in `omnistate.sync`.

    As a field of a state class it is called by the class and the field, and lives as long as the class says:
    `class Profile(State, ttl=...): viewed = List(str, limit=50)`, `ana.collection(Profile.viewed)`. On its own it needs a
    `name`. `ttl` is the time after the last write at which it is gone, `lifetime` the time after the first; `limit` the
    number of entries it may have, up to a million. `channels` are those that may follow it through the gateway, by default
    all. `encrypted` seals the values of a list, a map or a work queue; a field of a class with `encrypted=True` is sealed
    unless it says False. Of a session it ends with that, unless
    `outlives_session`. A collection and a state must not have the same name.
    """

    kind: ClassVar[str] = ""
    key_parts: ClassVar[tuple[str, ...]] = ()  # the further keys it has
    can_be_encrypted: ClassVar[bool] = False  # of the others, the server compares or adds what is in them

    def __init__(
        self,
        *,
        name: str | None = None,
        ttl: timedelta | None = None,
        lifetime: timedelta | None = None,
        limit: int | None = None,
        channels: frozenset[str] | set[str] | None = None,
        encrypted: bool | None = None,
        outlives_session: bool | None = None,
    ) -> None:
        what = name or type(self).__name__
        if name is not None:
            check_name(name)
        check_life(what, ttl, lifetime)
        if limit is not None and (type(limit) is not int or not 1 <= limit <= MOST_ENTRIES):
            raise InvalidDeclaration(
                f"{what}: limit must be a number of entries from 1 to {MOST_ENTRIES:,}, not {limit!r}"
            )
        if isinstance(channels, str):
            raise InvalidDeclaration(f'{what}: channels must be a set of names, not a str: channels={{"{channels}"}}')
        self._name, self._ttl, self._lifetime = name, ttl, lifetime
        self._owner: type[State] | None = None
        self.limit = self.default_limit() if limit is None else limit
        self.channels = None if channels is None else frozenset(channels)
        if encrypted and not self.can_be_encrypted:
            raise InvalidDeclaration(f"{what}: {_NOT_SEALED.format(type(self).__name__)}")
        self._encrypted, self._outlives_session = encrypted, outlives_session
        _declared.add(self)

    def __set_name__(self, owner: type[State], attribute: str) -> None:
        if self._name is None:
            self._owner, self._attribute = owner, attribute

    def check_class(self, attribute: str, options: Options) -> None:
        """Raises `InvalidDeclaration` where the class asks for more than this kind can."""
        kind = type(self).__name__
        if not isinstance(options.encrypted, bool) and attribute in options.encrypted:
            raise InvalidDeclaration(
                f"{options.name}.{attribute} is a collection: say {kind}(..., encrypted=True), not the class's encrypted="
            )
        if options.encrypted is not True or self._encrypted is not None:
            return
        if not self.can_be_encrypted:
            raise InvalidDeclaration(
                f"{options.name}.{attribute}: {_NOT_SEALED.format(kind)}. Say {kind}(..., encrypted=False) where that may be"
            )
        inherited = None if self._owner is None else options_of(self._owner)
        if inherited is not None and inherited.encrypted is not True:
            raise InvalidDeclaration(
                f"{options.name}.{attribute} belongs to {inherited.name}, which is not encrypted: say {kind}(..., encrypted=)"
            )

    @property
    def is_encrypted(self) -> bool:
        if self._encrypted is None and self._owner is not None:
            options = options_of(self._owner)
            return self.can_be_encrypted and options is not None and options.encrypted is True
        return bool(self._encrypted)

    @property
    def outlives_session(self) -> bool:
        """Whether it stays when the session it belongs to ends; a field of a class does as the class says."""
        options = None if self._owner is None else options_of(self._owner)
        if self._outlives_session is None:
            return options is not None and options.outlives_session
        return self._outlives_session

    def default_limit(self) -> int:
        return 10_000

    @property
    def name(self) -> str:
        """What it is stored under. Raises `InvalidDeclaration` where it has none."""
        if self._name is not None:
            return self._name
        if self._owner is None:
            kind = type(self).__name__
            raise InvalidDeclaration(f'this {kind} has no name: {kind}(..., name="..."), or make it a field of a State')
        return f"{schema_of(self._owner).name}.{self._attribute}"

    @property
    def has_name(self) -> bool:
        return self._name is not None or self._owner is not None

    @property
    def ttl_ms(self) -> int:
        return self._milliseconds(self._ttl, "ttl_ms")

    @property
    def lifetime_ms(self) -> int:
        return self._milliseconds(self._lifetime, "lifetime_ms")

    def _milliseconds(self, own: timedelta | None, of_class: str) -> int:
        if own is not None:
            return own // timedelta(milliseconds=1)
        return 0 if self._owner is None else int(getattr(schema_of(self._owner), of_class))

    @property
    def limit_argument(self) -> str:
        return str(self.limit)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name or getattr(self, '_attribute', 'without a name')}>"


class OfValues(Collection[H_co, S_co], Generic[H_co, S_co, T]):
    """Collections whose values are of one type."""

    has_members: ClassVar[bool] = False  # values that are equal in Python are one

    def __init__(self, item: type[T], **options: Any) -> None:
        super().__init__(**options)
        self._item = item
        self._values: Values[T] | None = None

    @property
    def values(self) -> Values[T]:
        if self._values is None:
            self._values = Values(self.name, self._item, are_members=self.has_members)
        return self._values


class List(OfValues["ListHandle[T]", "sync.ListHandle[T]", T], Generic[T]):
    """An ordered list with a bounded length: what is pushed over its limit makes the other end drop as much.

    `List(str, limit=50)` keeps the 50 newest. The default limit is 10,000.
    """

    kind = "list"
    can_be_encrypted = True


class Set(OfValues["SetHandle[T]", "sync.SetHandle[T]", T], Generic[T]):
    """A set of different values. Adding to a full one raises `CollectionFull`; the default limit is 10,000."""

    kind = "set"
    has_members = True


class Map(Collection["MapHandle[K, V]", "sync.MapHandle[K, V]"], Generic[K, V]):
    """Keys and values, each entry with a deadline of its own if you give it one. `Map(str, int, limit=100)`.

    Adding to a full one raises `CollectionFull`; the default limit is 10,000.
    """

    kind = "map"
    can_be_encrypted = True
    key_parts = ("due",)

    def __init__(self, key: type[K], value: type[V], **options: Any) -> None:
        super().__init__(**options)
        self._key, self._value = key, value
        self._keys: Keys[K] | None = None
        self._values: Values[V] | None = None

    @property
    def keys(self) -> Keys[K]:
        if self._keys is None:
            self._keys = Keys(self.name, self._key)
        return self._keys

    @property
    def values(self) -> Values[V]:
        if self._values is None:
            self._values = Values(self.name, self._value)
        return self._values


class SortedSet(OfValues["SortedSetHandle[T]", "sync.SortedSetHandle[T]", T], Generic[T]):
    """Different members, each with a score (a float): leaderboards, ranges and ranks.

    `keep="highest"` or `"lowest"` says who stays when there are more than `limit`; without it a full one raises
    `CollectionFull`. The default limit is 10,000.
    """

    kind = "sorted"
    has_members = True

    def __init__(self, member: type[T], *, keep: Literal["highest", "lowest"] | None = None, **options: Any) -> None:
        super().__init__(member, **options)
        if keep not in (None, "highest", "lowest"):
            raise InvalidDeclaration('keep must be "highest" or "lowest": who stays when there are more than `limit`')
        self.keep = keep

    @property
    def limit_argument(self) -> str:
        return f"{self.limit} {self.keep or ''}"


class Counter(Collection["CounterHandle", "sync.CounterHandle"]):
    """One integer within 2^53. A change that would leave `least` or `most` is refused with `OutOfBounds`."""

    kind = "counter"

    def __init__(self, *, least: int | None = None, most: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        for bound in (least, most):
            if bound is not None and (type(bound) is not int or abs(bound) >= 2**53):
                raise InvalidDeclaration("the bounds of a Counter must be integers within 2^53")
        if least is not None and most is not None and least > most:
            raise InvalidDeclaration(f"a Counter cannot be at least {least} and at most {most}")
        self.least, self.most = least, most


class UniqueCounter(OfValues["UniqueCounterHandle[T]", "sync.UniqueCounterHandle[T]", T], Generic[T]):
    """How many different values were added, with a standard error of 0.81 %, in 12 KiB (a HyperLogLog)."""

    kind = "unique"
    key_parts = ("other",)


class WorkQueue(OfValues["WorkQueueHandle[T]", "sync.WorkQueueHandle[T]", T], Generic[T]):
    """Work for several workers: each item is leased to one of them, in order, until it is done or the lease ends.

    A worker that dies loses its lease, and the item goes to the next one: at least once. The default limit is 10,000.
    """

    kind = "queue"
    can_be_encrypted = True
    key_parts = ("ready", "leased")


Declares: TypeAlias = Collection[H, Any]
"""A collection by the handle that it gives here."""


def collections_of(kind: type[State]) -> list[Collection[Any, Any]]:
    """The collections that are fields of a state class."""
    found = (getattr(kind, name, None) for name in dir(kind) if not name.startswith("__"))
    return [one for one in found if isinstance(one, Collection)]


def imported_collections() -> dict[str, Collection[Any, Any]]:
    """The collections of this process by name, those without one left out.

    Raises `InvalidDeclaration` when two of one name differ: which of them is meant, nobody can know.
    """
    found: dict[str, Collection[Any, Any]] = {}
    for one in list(_declared):
        if not one.has_name:
            continue
        other = found.setdefault(one.name, one)
        if (other.kind, other.limit_argument) != (one.kind, one.limit_argument):
            raise InvalidDeclaration(f"two different collections are called {one.name}: give one of them another name")
    return found
