"""Copies share only what cannot be changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import omnistate
from omnistate.state._copy import copier_of


class Colour(Enum):
    RED = "red"


class Line(msgspec.Struct):
    sku: str = ""
    tags: list[str] = []


class Fixed(msgspec.Struct, frozen=True):
    name: str = ""
    at: datetime | None = None
    colour: Colour = Colour.RED
    pair: tuple[int, str] = (0, "")
    seen: frozenset[int] = frozenset()


class Holder(msgspec.Struct, frozen=True):
    lines: list[Line] = []


class Tree(msgspec.Struct):
    label: str = ""
    children: list[Tree] = []
    parent: Tree | None = None


@dataclass
class Point:
    x: int = 0
    path: list[int] = field(default_factory=list)


class Everything(omnistate.State):
    number: int = 0
    fixed: Fixed = Fixed()
    holder: Holder = Holder()
    line: Line | None = None
    either: Line | list[int] | str = ""
    lines: list[Line] = []
    by_sku: dict[str, Line] = {}
    counts: dict[str, int] = {}
    deep: dict[str, dict[str, list[int]]] = {}
    names: set[str] = set()
    pairs: tuple[Line, ...] = ()
    tree: Tree = msgspec.field(default_factory=Tree)
    point: Point = msgspec.field(default_factory=Point)
    free: Any = None


def mutable_parts(value: Any) -> list[Any]:
    """Everything inside that can be changed."""
    if isinstance(value, dict):
        return [value, *(part for one in value.values() for part in mutable_parts(one))]
    if isinstance(value, list | set | tuple | frozenset):
        own = [value] if isinstance(value, list | set) else []
        return own + [part for one in value for part in mutable_parts(one)]
    if isinstance(value, msgspec.Struct):
        own = [] if value.__struct_config__.frozen else [value]
        return own + [part for name in value.__struct_fields__ for part in mutable_parts(getattr(value, name))]
    if isinstance(value, Point):
        return [value, *mutable_parts(value.path)]
    return []


def trees() -> st.SearchStrategy[Tree]:
    return st.recursive(
        st.builds(Tree, st.text()),
        lambda some: st.builds(Tree, st.text(), st.lists(some, max_size=3), some),
        max_leaves=6,
    )


lines = st.builds(Line, st.text(), st.lists(st.text(), max_size=3))
everything = st.builds(
    Everything,
    number=st.integers(-9, 9),
    fixed=st.builds(Fixed, st.text(), st.none() | st.datetimes()),
    holder=st.builds(Holder, st.lists(lines, max_size=2)),
    line=st.none() | lines,
    either=lines | st.lists(st.integers(0, 9)) | st.text(),
    lines=st.lists(lines, max_size=3),
    by_sku=st.dictionaries(st.text(), lines, max_size=3),
    counts=st.dictionaries(st.text(), st.integers(0, 9), max_size=3),
    deep=st.dictionaries(st.text(), st.dictionaries(st.text(), st.lists(st.integers(0, 9), max_size=2)), max_size=2),
    names=st.sets(st.text(), max_size=3),
    pairs=st.lists(lines, max_size=2).map(tuple),
    tree=trees(),
    point=st.builds(Point, st.integers(0, 9), st.lists(st.integers(0, 9))),
    free=st.none() | st.lists(st.dictionaries(st.text(), st.integers(0, 9), max_size=2), max_size=2),
)


@given(everything)
def test_a_copy_is_equal_and_shares_nothing_that_can_be_changed(value: Everything) -> None:
    copier = copier_of(Everything)
    assert copier is not None
    copy = copier(value)
    assert copy == value
    assert type(copy) is Everything
    assert not {id(part) for part in mutable_parts(value)} & {id(part) for part in mutable_parts(copy)}


class Badge(omnistate.State, frozen=True):
    fixed: Fixed = Fixed()
    roles: tuple[str, ...] = ()


class Loose(omnistate.State, frozen=True):
    roles: list[str] = []


def test_what_cannot_be_changed_needs_no_copy() -> None:
    assert copier_of(Badge) is None
    assert copier_of(Loose) is not None


@pytest.mark.parametrize("wrong", [5, "yes", None])
def test_a_wrong_near_cache_is_refused(wrong: Any) -> None:
    with pytest.raises(omnistate.InvalidDeclaration, match="near_cache must be True or False"):

        class Wrong(omnistate.State, near_cache=wrong):
            number: int = 0
