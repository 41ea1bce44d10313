"""State classes, and the values that handles return."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from enum import Enum
from typing import Any, ClassVar, Generic, TypeVar, cast, dataclass_transform

import msgspec

from omnistate.errors import InvalidDeclaration
from omnistate.state._schema import Schema
from omnistate.store import Position

R = TypeVar("R")


class Expect(Enum):
    """Preconditions that name no version."""

    ANY = "*"
    ABSENT = "-"


ANY, ABSENT = Expect.ANY, Expect.ABSENT
Precondition = Expect | Position
_LONGEST_TTL = timedelta(days=3650)


@dataclass_transform(field_specifiers=(msgspec.field,))
class StateMeta(msgspec.StructMeta):
    """Adds keywords (`ttl=`, `name=` and so on) to a struct's. No type checker sees them: they are checked here."""

    def __new__(  # noqa: PYI034 - Self is not allowed in a metaclass
        mcls,
        class_name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        ttl: timedelta | None = None,
        lifetime: timedelta | None = None,
        name: str | None = None,
        channels: Collection[str] | None = None,
        **options: Any,
    ) -> StateMeta:
        cls = super().__new__(mcls, class_name, bases, namespace, **options)
        if any(isinstance(base, StateMeta) for base in bases):
            _declare(cls, name or class_name, ttl, lifetime, channels)
        return cls


class _Declaration:
    """What was said of a class. The schema is made at the first use: a field's type may be declared after the class."""

    __slots__ = ("channels", "lifetime", "name", "schema", "ttl")

    def __init__(
        self, name: str, ttl: timedelta | None, lifetime: timedelta | None, channels: frozenset[str] | None
    ) -> None:
        self.name, self.ttl, self.lifetime, self.channels = name, ttl, lifetime, channels
        self.schema: Schema[Any] | None = None


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
        if value is not None and not timedelta(milliseconds=1) <= value <= _LONGEST_TTL:
            raise InvalidDeclaration(f"{name}: {what} must be between 1 ms and {_LONGEST_TTL.days} days")


def _declare(
    cls: type, name: str, ttl: timedelta | None, lifetime: timedelta | None, channels: Collection[str] | None
) -> None:
    check_name(name)
    check_life(name, ttl, lifetime)
    struct = cast("type[msgspec.Struct]", cls)
    without = len(struct.__struct_fields__) - len(struct.__struct_defaults__)
    if without > 0:
        field = struct.__struct_fields__[0]
        raise InvalidDeclaration(
            f"{name}.{field} needs a default: every customer has one, also before anything was written"
        )
    if isinstance(channels, str):
        raise InvalidDeclaration(f'{name}: channels must be a set of names, not a str: channels={{"{channels}"}}')
    readers = None if channels is None else frozenset(channels)
    cls.__omnistate__ = _Declaration(name, ttl, lifetime, readers)  # type: ignore[attr-defined]


class State(msgspec.Struct, metaclass=StateMeta):
    """The base of state classes: `class Cart(State, ttl=timedelta(days=7))`.

    Every field needs a default. `ttl` is the time after the last write at which a document is gone, `lifetime` the time
    after the first one; without them it stays. `channels` are those that may read it through the gateway, by default all;
    `name` is what it is stored under, by default the class's name. An instance is your private copy: change it freely; a
    handle's verbs store.
    """

    __omnistate__: ClassVar[Any] = None


AnyState = TypeVar("AnyState", bound=State)


def schema_of(kind: type[AnyState]) -> Schema[AnyState]:
    """The schema of a state class. Raises `InvalidDeclaration` for anything else."""
    declaration = getattr(kind, "__omnistate__", None)
    if declaration is None or not isinstance(kind, type):
        what = kind.__name__ if isinstance(kind, type) else f"a {type(kind).__name__}"
        raise InvalidDeclaration(f"{what} is not a state class: give the class itself, derived from State")
    if declaration.schema is None:
        ttl, lifetime = (
            0 if one is None else one // timedelta(milliseconds=1) for one in (declaration.ttl, declaration.lifetime)
        )
        declaration.schema = Schema(kind, declaration.name, ttl, lifetime)
    return cast("Schema[AnyState]", declaration.schema)


def readers_of(kind: type[State]) -> frozenset[str] | None:
    """The channels that may read a state through the gateway; None for all."""
    declaration = kind.__omnistate__
    return declaration.channels if declaration is not None else None


class Snapshot(Generic[AnyState]):
    """A document as it was at one moment: frozen, and free of any connection.

    `value` is your private copy. `version` is 0 where there is no document, and the value is then the class's default.
    `position` is the log's position of the same moment: watching after it misses nothing.
    """

    __slots__ = ("_encoded", "_schema", "_value", "_version", "position")

    def __init__(self, schema: Schema[AnyState], encoded: bytes, version: Position | None, position: Position) -> None:
        self._schema, self._encoded, self._value = schema, encoded, cast("AnyState | None", None)
        self._version, self.position = version, position

    @property
    def value(self) -> AnyState:
        if self._value is None:
            self._value = self._schema.decode(self._encoded)
        return self._value

    @property
    def version(self) -> int:
        return 0 if self._version is None else self._version.offset

    @property
    def exists(self) -> bool:
        return self._version is not None

    @property
    def precondition(self) -> Precondition:
        """What `expect=snapshot` asks for: this version still, or still no document."""
        return ABSENT if self._version is None else self._version

    @property
    def json(self) -> bytes:
        """The fields that are stored, as one JSON object."""
        return self._encoded

    def __repr__(self) -> str:  # a customer's content does not belong in logs
        return f"<{type(self).__name__} {self._schema.name} version={self.version}>"


class Change(Snapshot[AnyState]):
    """What `watch` yields: the document after a change. `patches` are the log's events, oldest first.

    The first of a `watch` has no patches. After a pause of the reader several changes may come as one, with the patch of
    each: nothing is left out.
    """

    __slots__ = ("patches",)

    def __init__(
        self,
        schema: Schema[AnyState],
        encoded: bytes,
        version: Position | None,
        position: Position,
        patches: tuple[bytes, ...],
    ) -> None:
        super().__init__(schema, encoded, version, position)
        self.patches = patches


class Written(Snapshot[AnyState], Generic[AnyState, R]):
    """What `update` returns: the document after the function ran, and what the function returned.

    `repeated`: this operation id had been applied before; nothing was written now and `result` is None.
    """

    __slots__ = ("operation_id", "repeated", "result")

    def __init__(
        self,
        schema: Schema[AnyState],
        encoded: bytes,
        version: Position | None,
        position: Position,
        result: R,
        operation_id: str,
        *,
        repeated: bool = False,
    ) -> None:
        super().__init__(schema, encoded, version, position)
        self.result, self.operation_id, self.repeated = result, operation_id, repeated
