"""Private copies of a value, as cheap as its type allows: what cannot be changed is shared, not copied."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, TypeAlias

import msgspec
from msgspec import inspect

Copier: TypeAlias = Callable[[Any], Any]
_Copiers: TypeAlias = dict[type, Copier | None]  # of the structs that are being looked at: a type may hold itself

_FIXED = (
    *(inspect.NoneType, inspect.BoolType, inspect.IntType, inspect.FloatType, inspect.StrType, inspect.BytesType),
    *(inspect.DateTimeType, inspect.DateType, inspect.TimeType, inspect.TimeDeltaType, inspect.UUIDType),
    *(inspect.DecimalType, inspect.EnumType, inspect.LiteralType),
)


def copier_of(kind: type) -> Copier | None:
    """A function that copies values of a struct class; None where a value cannot be changed, all the way down."""
    return _of(inspect.type_info(kind), {})


def _of(info: inspect.Type, known: _Copiers) -> Copier | None:
    if isinstance(info, inspect.Metadata):
        return _of(info.type, known)
    if isinstance(info, _FIXED):
        return None
    if isinstance(info, inspect.StructType):
        return _of_struct(info, known)
    if isinstance(info, inspect.DictType):
        return _of_dict(_of(info.value_type, known))
    if isinstance(info, inspect.ListType):
        return _of_list(_of(info.item_type, known))
    if isinstance(info, inspect.SetType):
        return set.copy  # what is in it can be hashed, so it cannot be changed
    if isinstance(info, inspect.FrozenSetType):
        return None
    if isinstance(info, inspect.VarTupleType):
        return _of_tuple([_of(info.item_type, known)])
    if isinstance(info, inspect.TupleType):
        return _of_tuple([_of(one, known) for one in info.item_types])
    if isinstance(info, inspect.UnionType):
        return _of_union(info, known)
    return deepcopy  # Any, dataclasses and others: right, if not quick


def is_plain(kind: type) -> bool:
    """Whether a shallow copy has all that there is of a value of a struct class, and may be changed."""
    config = kind.__struct_config__  # type: ignore[attr-defined]
    return not (config.frozen or config.dict or hasattr(kind, "__post_init__") or _has_own_ways(kind))


def _has_own_ways(kind: type) -> bool:
    return any(getattr(kind, name) is not getattr(msgspec.Struct, name) for name in ("__copy__", "__setattr__"))


def _of_struct(info: inspect.StructType, known: _Copiers) -> Copier | None:
    kind = info.cls
    if _has_own_ways(kind) and not kind.__struct_config__.frozen:
        return deepcopy
    if kind in known:  # it holds itself

        def again(value: Any) -> Any:
            return (known[kind] or _same)(value)

        return again
    known[kind] = deepcopy  # where it is asked for before it is known
    shallow: Copier = kind.__copy__  # type: ignore[attr-defined]  # structs have it, their stub does not
    changing = [(field.name, copier) for field in info.fields if (copier := _of(field.type, known)) is not None]
    is_frozen = kind.__struct_config__.frozen
    if not changing:
        known[kind] = None if is_frozen else shallow
        return known[kind]
    put = msgspec.structs.force_setattr if is_frozen else setattr

    def copy(value: Any) -> Any:
        made = shallow(value)
        for name, copier in changing:
            put(made, name, copier(getattr(value, name)))
        return made

    known[kind] = copy
    return copy


def _of_dict(item: Copier | None) -> Copier:
    if item is None:
        return dict.copy
    return lambda value: {key: item(one) for key, one in value.items()}


def _of_list(item: Copier | None) -> Copier:
    if item is None:
        return list.copy
    return lambda value: [item(one) for one in value]


def _of_tuple(items: list[Copier | None]) -> Copier | None:
    if all(item is None for item in items):
        return None
    return deepcopy


def _of_union(info: inspect.UnionType, known: _Copiers) -> Copier | None:
    """By the class of the value: `Address | None` costs one look more than `Address`."""
    changing = {_class_of(one): copier for one in info.types if (copier := _of(one, known)) is not None}
    if not changing:
        return None
    if None in changing:
        return deepcopy
    return lambda value: changing.get(type(value), _same)(value)


def _class_of(info: inspect.Type) -> type | None:
    """The class of the values of a type that can be changed; None where it takes a look to tell."""
    if isinstance(info, inspect.StructType):
        return info.cls
    return {inspect.DictType: dict, inspect.ListType: list, inspect.SetType: set}.get(type(info))


def _same(value: Any) -> Any:
    return value
