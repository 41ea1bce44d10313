"""State classes, and the values that handles return."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from datetime import timedelta
from difflib import get_close_matches
from enum import Enum
from typing import Any, ClassVar, Generic, TypeVar, cast, dataclass_transform

import msgspec

from omnistate.errors import InvalidDeclaration
from omnistate.state._options import History, Options
from omnistate.state._protobuf import protobuf_options, protobuf_schema
from omnistate.state._schema import Schema
from omnistate.store import Durability, Position

R = TypeVar("R")


class Expect(Enum):
    """Preconditions that name no version."""

    ANY = "*"
    ABSENT = "-"
    PRESENT = "+"


ANY, ABSENT = Expect.ANY, Expect.ABSENT
Precondition = Expect | Position


_STRUCT_OPTIONS = {
    *("tag", "tag_field", "rename", "omit_defaults", "forbid_unknown_fields", "frozen", "eq", "order", "kw_only"),
    *("repr_omit_defaults", "array_like", "gc", "weakref", "dict", "cache_hash"),
}
_OWN_OPTIONS = (
    *("ttl", "lifetime", "name", "channels", "version", "writes", "codec", "compress_over", "encrypted", "history"),
    *("indexes", "near_cache", "outlives_session"),
)


def _unknown_option(class_name: str, option: str) -> InvalidDeclaration:
    guess = get_close_matches(option, (*_OWN_OPTIONS, *_STRUCT_OPTIONS), n=1)
    hint = f"did you mean {guess[0]}=?" if guess else f"the options of a state are {', '.join(_OWN_OPTIONS)}"
    return InvalidDeclaration(f"{class_name} has no option {option}=: {hint}")


class Beside:
    """What a state class may declare beside its fields, by slices on top. It hears what is said of the class."""

    __slots__ = ()

    def check_class(self, attribute: str, options: Options) -> None:
        """Raises `InvalidDeclaration` where the two do not fit."""
        raise NotImplementedError


@dataclass_transform(field_specifiers=(msgspec.field,))
class StateMeta(msgspec.StructMeta):
    """Adds the keywords of `State` to a struct's. No type checker sees them: they are checked here."""

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
        version: int = 1,
        writes: int | None = None,
        codec: str = "json",
        compress_over: int | None = None,
        encrypted: bool | Collection[str] = False,
        history: History | int | timedelta | None = None,
        indexes: Collection[str] = (),
        near_cache: bool = False,
        outlives_session: bool = False,
        **options: Any,
    ) -> StateMeta:
        if unknown := options.keys() - _STRUCT_OPTIONS:
            raise _unknown_option(class_name, min(unknown))
        try:
            cls = super().__new__(mcls, class_name, bases, namespace, **options)
        except TypeError as error:
            raise InvalidDeclaration(f"state {class_name}: {error}") from error
        _check_annotated(cls, namespace)
        if any(isinstance(base, StateMeta) for base in bases):
            declared = Options(
                name or class_name,
                ttl,
                lifetime,
                channels,
                version,
                writes,
                codec,
                compress_over,
                encrypted,
                history,
                indexes,
                near_cache,
                outlives_session,
            )
            for attribute in dir(cls):
                value = getattr(cls, attribute, None)
                if isinstance(value, Beside):
                    value.check_class(attribute, declared)
            _declare(cls, declared)
        return cls


def _check_annotated(cls: type, namespace: dict[str, Any]) -> None:
    """`total = 0` would be no field, and nobody would hear of it."""
    with suppress(NameError):  # Python 3.14 looks types up that may be declared later
        annotated = cls.__annotations__
        for name, value in namespace.items():
            is_plain = not callable(value) and not hasattr(value, "__get__") and not isinstance(value, Beside)
            if is_plain and not name.startswith("_") and name not in annotated:
                kind = type(value).__name__
                raise InvalidDeclaration(
                    f"{cls.__name__}.{name} has no type: write {name}: {kind} = {value!r}, or ClassVar[{kind}] for what is "
                    "not stored"
                )


class _Declaration:
    """What was said of a class. The schema is made at the first use: a field's type may be declared after the class."""

    __slots__ = ("options", "schema")

    def __init__(self, options: Options) -> None:
        self.options = options
        self.schema: Schema[Any] | None = None


def _declare(cls: type, options: Options) -> None:
    struct = cast("type[msgspec.Struct]", cls)
    without = len(struct.__struct_fields__) - len(struct.__struct_defaults__)
    if without > 0:
        field = struct.__struct_fields__[0]
        raise InvalidDeclaration(
            f"{options.name}.{field} needs a default: every customer has one, also before anything was written"
        )
    cls.__omnistate__ = _Declaration(options)  # type: ignore[attr-defined]


class State(msgspec.Struct, metaclass=StateMeta):
    """The base of state classes: `class Cart(State, ttl=timedelta(days=7))`.

    Every field needs a default. `ttl` is the time after the last write at which a document is gone, `lifetime` the time
    after the first one; without them it stays. `channels` are those that may read it through the gateway, by default all;
    `name` is what it is stored under, by default the class's name. An instance is your private copy: change it freely; a
    handle's verbs store.

    How it is stored: `codec` is "json" or "msgpack"; values of over `compress_over` bytes are compressed (zstd); `encrypted`
    fields, or all with True, are sealed with the keyring of `connect(keyring=)`. How it follows its class: `version`, with
    `@migrate` between versions, and `writes` while a deployment is being replaced. `history` keeps who changed what:
    a number of changes, an age, or a `History` of both. `indexes` are fields or properties that `omni.query` may ask for.

    With `near_cache`, `get` and `read` answer from this process's memory where they can: see docs/near-cache.md. A state of a
    session ends with it, unless `outlives_session`.
    """

    __omnistate__: ClassVar[Any] = None


AnyState = TypeVar("AnyState")  # a State, or a message class that was given to `protobuf`


def schema_of(kind: type[AnyState]) -> Schema[AnyState]:
    """The schema of a state class. Raises `InvalidDeclaration` for anything else."""
    declaration = getattr(kind, "__omnistate__", None)
    if declaration is None and isinstance(kind, type) and (found := protobuf_schema(kind)) is not None:
        return cast("Schema[AnyState]", found)
    if declaration is None or not isinstance(kind, type):
        what = kind.__name__ if isinstance(kind, type) else f"a value of type {type(kind).__name__}"
        raise InvalidDeclaration(
            f"{what} is not a state class: give the class itself, derived from State, or a message class given to protobuf()"
        )
    if declaration.schema is None:
        declaration.schema = Schema(kind, declaration.options)
    return cast("Schema[AnyState]", declaration.schema)


def options_of(kind: type) -> Options | None:
    """What was said of a state class, without making its schema; None where it has not been said yet."""
    declaration = getattr(kind, "__omnistate__", None)
    return declaration.options if declaration is not None else protobuf_options(kind)


def readers_of(kind: type) -> frozenset[str] | None:
    """The channels that may read a state through the gateway; None for all."""
    options = options_of(kind)
    return None if options is None else options.channels


class Snapshot(Generic[AnyState]):
    """A document as it was at one moment: frozen, and free of any connection.

    `value` is your private copy. `version` is 0 where there is no document, and the value is then the class's default.
    `position` is the log's position of the same moment: watching after it misses nothing. `unreadable` has the fields that
    `read(partial=True)` could not read, each with the reason; their values are the class's defaults.
    """

    __slots__ = ("_encoded", "_schema", "_value", "_version", "position", "unreadable")

    def __init__(self, schema: Schema[AnyState], encoded: bytes, version: Position | None, position: Position) -> None:
        self._schema, self._encoded, self._value = schema, encoded, cast("AnyState | None", None)
        self._version, self.position = version, position
        self.unreadable: dict[str, str] = {}

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
    def encoded(self) -> bytes:
        """For the slices on top: the document as its class encodes it."""
        return self._encoded

    @property
    def json(self) -> bytes:
        """The fields that are stored, as one JSON object."""
        return self._schema.to_json(self._encoded)

    def __repr__(self) -> str:  # a customer's content does not belong in logs
        return f"<{type(self).__name__} {self._schema.name} version={self.version}>"


class Change(Snapshot[AnyState]):
    """What `watch` yields: the document after a change. `patches` are the log's events, oldest first.

    The first of a `watch` has no patches, nor one after a gap: it is the document as it was read. After a pause of the reader
    several changes may come as one, with the patch of each: nothing is left out.
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

    `repeated`: this operation id had been applied before; nothing was written now, `result` is None, and the document is as it
    is now, not as the first call left it. `durability`: what
    the write survives.
    """

    __slots__ = ("durability", "operation_id", "repeated", "result")

    def __init__(
        self,
        schema: Schema[AnyState],
        encoded: bytes,
        version: Position | None,
        position: Position,
        result: R,
        operation_id: str,
        durability: Durability,
        *,
        repeated: bool = False,
    ) -> None:
        # What the class above does, without the call: this is made for each write.
        self._schema, self._encoded, self._value = schema, encoded, None
        self._version, self.position, self.unreadable = version, position, {}
        self.result, self.operation_id, self.durability, self.repeated = result, operation_id, durability, repeated
