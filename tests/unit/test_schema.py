"""Documents as hash fields and back; what a class may declare; what a value may hold."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Annotated, Any, ClassVar
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import omnistate
from omnistate import State
from omnistate.state import Patch, schema_of
from omnistate.state._api import Origin, target_of
from omnistate.state._commands import Held, describe
from omnistate.state._events import Followed, decode_event
from omnistate.store import Keyspace
from shop import Cart, Profile

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
NESTED = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))


class Everything(State):
    lines: dict[str, Any] = {}
    numbered: dict[int, list[int]] = {}
    by_id: dict[UUID, date | None] = {}
    word: str = ""
    amount: float = 0.0
    count: int = 0
    when: datetime | None = None
    words: list[str] = []
    any: Any = None


class Node(msgspec.Struct):
    inner: list[Node] = []


class Tree(State):
    root: Node | None = None


class Exact(State, rename="camel"):
    order_lines: dict[str, int] = {}
    tags: dict[str, str | None] = {}
    is_open: bool | None = None
    word: str = ""
    count: int = 0
    raw: bytes = b""


EXACT = st.builds(
    Exact,
    order_lines=st.dictionaries(TEXT, st.integers(-2, 2**53), max_size=5),
    tags=st.dictionaries(TEXT, st.none() | TEXT, max_size=5),
    is_open=st.none() | st.booleans(),
    word=TEXT,
    count=st.integers(0, 2),
    raw=st.binary(max_size=3),
)

VALUES = st.builds(
    Everything,
    lines=st.dictionaries(TEXT, NESTED, max_size=5),
    numbered=st.dictionaries(st.integers(-5, 2**40), st.lists(st.integers(0, 9), max_size=3), max_size=4),
    by_id=st.dictionaries(st.uuids(), st.none() | st.dates(), max_size=3),
    word=TEXT,
    amount=st.floats(allow_nan=False, allow_infinity=False),
    count=st.integers(-(2**53), 2**53 + 1),
    when=st.none() | st.datetimes(),
    words=st.lists(TEXT, max_size=3),
    any=NESTED,
)


@given(VALUES)
def test_a_value_comes_back_from_its_hash_fields(value: Everything) -> None:
    schema = schema_of(Everything)
    encoded = schema.encode(value)
    expected = schema.decode(encoded)  # infinities become null in JSON
    assert schema.decode(schema.join(schema.split(encoded))) == expected


@given(VALUES, VALUES)
def test_a_readers_copy_follows_by_events_alone(before: Everything, after: Everything) -> None:
    schema = schema_of(Everything)
    old, new = schema.split(schema.encode(before)), schema.split(schema.encode(after))
    patch = Patch(*schema.diff(old, new))
    event = b'{"type":"state.changed","state":"Everything"' + describe(schema, patch, patch.sets) + b',"time":1}'
    reader = Followed(target_of(Keyspace("t").customer("ana"), schema, Origin()), Held(None, old))
    reader.apply(decode_event(event))
    assert reader.flat == new


def test_fields_that_the_class_does_not_know_stay() -> None:
    schema = schema_of(Cart)
    old = schema.split(schema.encode(Cart(note="x"))) | {b"added_by_a_newer_version": b"1", b"other:entry": b"2"}
    sets, drops = schema.diff(old, schema.split(schema.encode(Cart(note="y"))))
    assert (sets, drops) == ({b"note": b'"y"'}, [])
    assert schema.decode(schema.join(old)).note == "x"


def test_depth_is_bounded() -> None:
    schema = schema_of(Profile)
    deep: Any = 1
    for _ in range(62):
        deep = [deep]
    schema.encode(Profile(extra={"x": deep}))
    with pytest.raises(omnistate.ValueTooDeep, match="64"):
        schema.encode(Profile(extra={"x": [deep]}))
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(omnistate.ValueTooDeep):
        schema.encode(Profile(extra={"x": deep}))
    schema.encode(Profile(extra={"x": "[[[[" * 100}))
    with pytest.raises(omnistate.InvalidInput):
        schema.parse(b'{"extra":{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}}")


@pytest.mark.parametrize("bad", [{"x"}, object(), {1: object()}, "\ud800", {"\ud800": 1}, float("nan")])
def test_what_json_cannot_hold_is_refused(bad: Any) -> None:
    schema = schema_of(Cart)
    value = Cart()
    value.note = bad
    with pytest.raises(omnistate.InvalidValue):
        schema.validate(schema.encode(value))


def test_a_value_of_another_class_is_refused() -> None:
    with pytest.raises(omnistate.InvalidValue, match="expected a Cart, got Profile"):
        schema_of(Cart).encode(Profile())  # type: ignore[arg-type]


def test_a_stored_value_that_no_longer_fits_is_a_mismatch() -> None:
    with pytest.raises(omnistate.SchemaMismatch, match="Cart"):
        schema_of(Cart).decode(b'{"visits":"many"}')


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"nte":"x"}', "did you mean 'note'"),
        (b'{"visits":"x"}', "Expected `int`"),
        (b"[]", "Expected `object`"),
        (b"{", "truncated"),
        (b"\xff", "Cart"),
    ],
)
def test_json_from_outside_is_checked(text: bytes, words: str) -> None:
    with pytest.raises(omnistate.InvalidValue, match=words):
        schema_of(Cart).parse(text)


def test_fields_for_operations_are_checked() -> None:
    schema = schema_of(Cart)
    assert schema.entry("items", "a:b", 1) == (b"items:a:b", b"1")
    assert schema.entry_name("items", "a:b") == b"items:a:b"
    assert schema.plain({"note": "x"}) == {b"note": b'"x"'}
    for call in (
        lambda: schema.plain({"items": {}}),
        lambda: schema.plain({"note": 1}),
        lambda: schema.entry("note", "a", 1),
        lambda: schema.entry("items", "a", "x"),
        lambda: schema.counter("note", None),
        lambda: schema.counter("note", "x"),
    ):
        with pytest.raises(omnistate.InvalidValue):
            call()


class Bounded(State):
    stock: Annotated[int, msgspec.Meta(ge=0)] = 0


def test_a_bounded_integer_is_not_incremented_blindly() -> None:
    with pytest.raises(omnistate.InvalidValue, match="use update"):
        schema_of(Bounded).counter("stock", None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ttl": 7}, "timedelta"),
        ({"ttl": timedelta(0)}, "between"),
        ({"ttl": timedelta(days=99_999)}, "between"),
        ({"name": "a b"}, "identifier"),
        ({"name": "x" * 65}, "identifier"),
        ({"channels": "web"}, "set of names"),
    ],
)
def test_a_wrong_declaration_is_told_when_the_class_is_made(options: dict[str, Any], words: str) -> None:
    with pytest.raises(omnistate.InvalidDeclaration, match=words):
        type(State)("Wrong", (State,), {}, **options)


@pytest.mark.parametrize("name", ["my:note", "!note"])
def test_a_field_name_that_would_be_read_as_something_else_is_refused(name: str) -> None:
    class Renamed(State):
        note: str = msgspec.field(default="", name=name)

    with pytest.raises(omnistate.InvalidDeclaration, match="note"):
        schema_of(Renamed)


@pytest.mark.parametrize("key", ["\ud800", object(), None, 3, b"\xff"])
def test_what_is_no_key_is_refused_also_where_nothing_is_written(key: Any) -> None:
    with pytest.raises(omnistate.InvalidValue):
        schema_of(Cart).entry_name("items", key)


def test_an_attribute_without_a_type_is_told() -> None:
    with pytest.raises(omnistate.InvalidDeclaration, match="total: int = 0"):

        class Forgotten(State):
            total = 0

    class Complete(State):
        LIMIT: ClassVar[int] = 9
        _cache = None
        items: dict[str, int] = {}
        recent = omnistate.List(str)

        class Inner:
            pass

        @property
        def total(self) -> int:
            return self.LIMIT

        @staticmethod
        def make() -> None: ...

    assert list(schema_of(Complete).fields) == ["items"]


def test_a_default_is_of_its_fields_type() -> None:
    class Wrong(State):
        name: str = ""
        number: int = "x"  # type: ignore[assignment]

    with pytest.raises(omnistate.InvalidDeclaration, match=r"Wrong\.number does not fit its type: Expected `int`"):
        schema_of(Wrong)
    with pytest.raises(omnistate.InvalidDeclaration, match="default_factory"):

        class Shared(State):
            items: dict[str, int] = {"a": 1}


@pytest.mark.parametrize(
    "declare",
    [
        lambda: omnistate.List(str, limit=0),
        lambda: omnistate.Map(str, int, limit=-1),
        lambda: omnistate.Counter(least=3, most=1),
        lambda: omnistate.migrate(1, 2)(lambda self: None),
        lambda: omnistate.migrate(1, 2)(lambda fields, more: None),
    ],
)
def test_a_declaration_that_cannot_work_is_refused(declare: Callable[[], Any]) -> None:
    with pytest.raises(omnistate.InvalidDeclaration):
        declare()


def test_every_field_needs_a_default() -> None:
    with pytest.raises(omnistate.InvalidDeclaration, match="needs a default"):

        class Wrong(State):
            word: str

    class Prefilled(State):
        items: dict[str, int] = msgspec.field(default_factory=lambda: {"a": 1})

    with pytest.raises(omnistate.InvalidDeclaration, match="must be empty"):
        schema_of(Prefilled)


def test_what_is_no_state_is_refused() -> None:
    with pytest.raises(omnistate.InvalidDeclaration, match="derived from State"):
        schema_of(dict)  # type: ignore[type-var]


@given(EXACT, EXACT)
def test_comparing_values_finds_what_comparing_hash_fields_finds(old: Exact, new: Exact) -> None:
    schema = schema_of(Exact)
    assert schema.compares
    sets, drops = schema.diff_values(old, new)
    expected_sets, expected_drops = schema.diff(*(schema.split(schema.encode(value)) for value in (old, new)))
    assert sets == expected_sets
    assert sorted(drops) == sorted(expected_drops)


@pytest.mark.parametrize(
    "type_", [float, Any, int | bool, int | str, list[int], dict[str, float], dict[int, int], Cart]
)
def test_values_are_not_compared_where_equal_ones_can_have_other_json(type_: Any) -> None:
    schema = schema_of(type("Odd", (State,), {"__annotations__": {"field": type_ | None}, "field": None}))
    assert not schema.compares


def test_depth_is_checked_where_a_type_can_nest_without_end() -> None:
    tree = Tree(root=Node())
    assert tree.root is not None
    inner = tree.root
    for _ in range(40):
        inner.inner = [Node()]
        inner = inner.inner[0]
    with pytest.raises(omnistate.ValueTooDeep):
        schema_of(Tree).encode(tree)


class Copied(State):
    items: dict[str, int] = {}
    tags: dict[str, str | None] = {}
    note: str = ""


class CopiedFrozen(State, frozen=True):
    items: dict[str, int] = {}


class CopiedWithHook(State):
    total: int = 0

    def __post_init__(self) -> None:
        self.total += 1


class CopiedDeep(State):
    items: dict[str, list[int]] = {}


def test_a_copy_shares_nothing_that_can_be_changed():
    schema = schema_of(Copied)
    value = Copied(items={"cup": 1}, tags={"a": None}, note="n")
    twin = schema.copier(value)
    twin.items["cup"], twin.tags["b"], twin.note = 2, "x", "m"
    assert value == Copied(items={"cup": 1}, tags={"a": None}, note="n")


@pytest.mark.parametrize("kind", [CopiedFrozen, CopiedWithHook, CopiedDeep])
def test_what_a_shallow_copy_would_not_do_justice_is_decoded(kind):
    assert not schema_of(kind).copies
    assert schema_of(Copied).copies


def test_an_entry_that_is_none_is_no_entry_that_is_missing():
    schema = schema_of(Copied)
    sets, drops = schema.diff_values(Copied(tags={"b": None}), Copied(tags={"a": None}))
    assert (sets, drops) == ({b"tags:a": b"null"}, [b"tags:b"])
