"""`@action`: which methods of a state channels may call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints, overload

import msgspec

from omnistate.errors import InvalidDeclaration, InvalidValue
from omnistate.state import State, schema_of

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "__omnistate_action__"


@dataclass(frozen=True, slots=True)
class _Marked:
    channels: frozenset[str] | None


@overload
def action(function: F, /) -> F: ...
@overload
def action(*, channels: Collection[str] | None = None) -> Callable[[F], F]: ...
def action(function: F | None = None, /, *, channels: Collection[str] | None = None) -> F | Callable[[F], F]:
    """Lets channels call this method of a state over HTTP and WebSocket.

    `@action` allows every channel, `@action(channels={"web", "agent desk"})` these. The arguments need type hints: they
    are checked against them, and the API's description is made from them. The method stays an ordinary method.
    """
    if isinstance(channels, str):
        raise InvalidDeclaration(f'channels must be a set of names, not a str: channels={{"{channels}"}}')

    def mark(marked: F) -> F:
        setattr(marked, _MARK, _Marked(None if channels is None else frozenset(channels)))
        return marked

    return mark if function is None else mark(function)


class Action:
    """One action of one state: its arguments as a struct, and who may call it."""

    __slots__ = ("arguments", "channels", "doc", "function", "kind", "name", "returns")

    def __init__(self, kind: type[State], function: Callable[..., Any], channels: frozenset[str] | None) -> None:
        self.kind, self.function, self.channels = kind, function, channels
        self.name = f"{schema_of(kind).name}.{function.__name__}"
        self.doc = inspect.getdoc(function) or ""
        self.arguments, self.returns = _signature(self.name, function)

    def allows(self, channel: str) -> bool:
        return self.channels is None or channel in self.channels

    def decode(self, data: bytes) -> dict[str, Any]:
        """The arguments, checked. Raises `InvalidValue` and says which one is wrong."""
        try:
            arguments = msgspec.json.decode(data or b"{}", type=self.arguments)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidValue(f"{self.name}: {error}") from error
        return {name: getattr(arguments, name) for name in arguments.__struct_fields__}


def _signature(name: str, function: Callable[..., Any]) -> tuple[type[msgspec.Struct], Any]:
    if inspect.iscoroutinefunction(function):
        raise InvalidDeclaration(f"action {name} must not be async: it runs inside an update, and may run again")
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise InvalidDeclaration(f"action {name}: a type hint cannot be resolved: {error}") from error
    fields: list[Any] = []
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise InvalidDeclaration(f"action {name}: {parameter} cannot be given by name, so no channel can give it")
        if parameter.name not in hints:
            raise InvalidDeclaration(f"action {name}: the argument {parameter.name} needs a type hint")
        hint = hints[parameter.name]
        required = parameter.default is parameter.empty
        fields.append((parameter.name, hint) if required else (parameter.name, hint, parameter.default))
    try:
        struct = msgspec.defstruct(name.replace(".", "_"), fields, kw_only=True, forbid_unknown_fields=True)
        msgspec.json.Decoder(struct)
    except TypeError as error:
        raise InvalidDeclaration(f"action {name}: an argument's type cannot be used: {error}") from error
    return struct, hints.get("return", Any)


def actions_of(kind: type[State]) -> list[Action]:
    """The marked methods of a class, inherited ones too, by name."""
    found = []
    for name, member in inspect.getmembers(kind, inspect.isfunction):
        marked = getattr(member, _MARK, None)
        if isinstance(marked, _Marked) and not name.startswith("_"):
            found.append(Action(kind, member, marked.channels))
    return found
