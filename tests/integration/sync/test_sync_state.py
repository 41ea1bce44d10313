"""Documents on real servers: reads, writes, preconditions, versions, watching."""

# Written by tools/unasync.py from tests/integration/test_state.py: change that one.

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

import omnistate.sync as omnistate
from omnistate.sync import ABSENT, Client, Position
from shop import Cart, Profile


class Notes(omnistate.State):
    """Its values are decoded for each function; those of a cart are copied."""

    lines: list[list[str]] = []


def test_an_unwritten_state_is_the_default_at_version_zero(omni: Client) -> None:
    snapshot = omni.customer("ana").state(Cart).read()
    assert snapshot.value == Cart()
    assert (snapshot.version, snapshot.exists) == (0, False)
    assert snapshot.position.epoch
    assert snapshot.position.offset == 0


def test_update_stores_what_the_function_changed(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    written = cart.update(Cart.add, "cup", 2)
    assert written.value.items == {"cup": 2}
    assert written.result == 2
    assert written.version == 1
    assert (cart.read()).version == 1
    assert cart.get() == Cart(items={"cup": 2})


def test_update_that_changes_nothing_writes_nothing(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    first = cart.update(Cart.add, "cup")
    second = cart.update(lambda value: value.items.setdefault("cup", 9))
    assert (second.version, second.result) == (first.version, 1)


def test_an_error_of_the_function_is_raised_and_nothing_is_stored(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)

    def fail(value: Cart) -> None:
        value.items["cup"] = 5
        raise LookupError("sold out")

    with pytest.raises(LookupError, match="sold out"):
        cart.update(fail)
    assert not (cart.read()).exists


def test_an_error_on_an_outdated_document_is_not_believed(omni: Client, connect: object) -> None:
    """The process saw an empty cart; another one filled it; the function must see the filled one."""
    here = omni.customer("ana").state(Cart)
    here.update(Cart.add, "cup")
    here.update(lambda value: value.items.clear())
    with connect() as elsewhere:  # type: ignore[operator]
        elsewhere.customer("ana").state(Cart).update(Cart.add, "cup", 3)

    def take(value: Cart) -> int:
        return value.items.pop("cup")

    assert (here.update(take)).result == 3


def test_fields_and_entries_are_changed_without_reading(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    cart.patch(note="gift")
    cart.put("items", "cup", 1)
    assert cart.increment("items", "cup", by=4) == 5
    assert cart.increment("visits") == 1
    cart.put("items", "pot", 1)
    cart.remove("items", "pot")
    cart.remove("items", "never there")
    assert cart.get() == Cart(items={"cup": 5}, note="gift", visits=1)


def test_set_replaces_everything(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    cart.update(Cart.add, "cup", 2)
    cart.set(Cart(items={"pot": 1}, note="new"))
    assert cart.get() == Cart(items={"pot": 1}, note="new")


def test_absent_refuses_to_overwrite(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    cart.set(Cart(note="first"), expect=ABSENT)
    with pytest.raises(omnistate.Conflict, match="is at version 1"):
        cart.set(Cart(note="second"), expect=ABSENT)
    assert (cart.get()).note == "first"


def test_an_expected_version_must_still_be_there(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    cart.set(Cart(note="first"))
    seen = cart.read()
    cart.set(Cart(note="second"), expect=seen)
    with pytest.raises(omnistate.Conflict):
        cart.set(Cart(note="third"), expect=seen)
    with pytest.raises(omnistate.Conflict):
        cart.delete(expect=seen)
    assert (cart.get()).note == "second"


def test_a_stale_writer_cannot_bring_back_a_deleted_document(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    cart.set(Cart(note="old"))
    stale = cart.read()
    assert cart.delete()
    with pytest.raises(omnistate.Conflict, match="does not exist"):
        cart.set(Cart(note="back"), expect=stale)
    cart.set(Cart(note="successor"))
    with pytest.raises(omnistate.Conflict):
        cart.set(Cart(note="back"), expect=stale)
    assert (cart.get()).note == "successor"


def test_versions_never_restart(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    versions = []
    for _ in range(5):
        versions.append((cart.set(Cart())).offset)
        cart.delete()
    assert versions == sorted(set(versions))
    assert not cart.delete()


def test_an_update_after_a_delete_starts_from_the_default(omni: Client, connect: object) -> None:
    cart = omni.customer("ana").state(Cart)
    cart.update(Cart.add, "cup", 7)
    with connect() as elsewhere:  # type: ignore[operator]
        elsewhere.customer("ana").state(Cart).delete()
    assert (cart.update(Cart.add, "pot")).value.items == {"pot": 1}


def test_update_once_is_repeated_also_when_its_function_would_change_nothing_now(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)

    def take_note(cart: Cart) -> str:
        found, cart.note = cart.note, ""
        return found

    cart.patch(note="gift")
    first = cart.update_once("take", take_note)
    cart.increment("visits")
    again = cart.update_once("take", take_note)
    assert (first.result, first.repeated) == ("gift", False)
    assert (again.result, again.repeated) == (None, True)
    assert (again.version, again.value) == (first.version + 1, Cart(visits=1))  # the document as it is


def test_a_repeated_operation_id_changes_nothing(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    first = cart.update_once("order-17", Cart.add, "cup", 2)
    again = cart.update_once("order-17", Cart.add, "cup", 2)
    assert (first.repeated, again.repeated) == (False, True)
    assert again.version == first.version
    assert (cart.get()).items == {"cup": 2}
    assert cart.increment("visits", operation_id="visit-1") == 1
    assert cart.increment("visits", operation_id="visit-1") == 1
    assert cart.set(Cart(note="x"), operation_id="set-1") == cart.set(Cart(note="x"), operation_id="set-1")


def test_an_operation_id_is_good_for_one_call_only(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    cart.update_once("order-17", Cart.add, "cup", 2)
    with pytest.raises(omnistate.OperationIdReused, match="order-17"):
        cart.update_once("order-17", Cart.add, "cup", 3)
    with pytest.raises(omnistate.OperationIdReused):
        omni.customer("ana").state(Profile).set(Profile(), operation_id="order-17")


def test_equal_arguments_are_the_same_call_whatever_their_order(omni: Client) -> None:
    def note(cart: Cart, tags: object, **_: int) -> None:
        cart.note += str(tags)[:1]

    one, other = {0, 8}, {8, 0}
    assert list(one) != list(other)  # as in another process
    cart = omni.customer("ana").state(Cart)
    assert not (cart.update_once("id", note, {"x": 1, "y": 2}, a=1, b=2)).repeated
    assert (cart.update_once("id", note, {"y": 2, "x": 1}, b=2, a=1)).repeated
    assert not (cart.update_once("id-2", note, {"x": one, 1: 2})).repeated
    assert (cart.update_once("id-2", note, {"x": other, 1: 2})).repeated
    endless: list[object] = []
    endless.append(endless)
    for bad in ("\ud800", endless):
        with pytest.raises(omnistate.InvalidInput, match="operation id"):
            cart.update_once("id-3", note, bad)


def test_two_states_of_a_customer_share_one_log(omni: Client) -> None:
    ana = omni.customer("ana")
    ana.state(Cart).update(Cart.add, "cup")
    ana.state(Profile).patch(name="Ana")
    assert (ana.state(Cart).read()).version == 1
    assert (ana.state(Profile).read()).version == 2
    assert (ana.state(Cart).read()).position.offset == 2


def test_watch_yields_the_present_and_then_every_change(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    cart.update(Cart.add, "cup")
    seen: list[dict[str, int]] = []
    with contextlib.closing(cart.watch()) as changes:
        for change in changes:
            seen.append(change.value.items)
            if len(seen) == 1:
                cart.update(Cart.add, "pot")
                omni.customer("ana").state(Profile).patch(name="Ana")
                omni.customer("ana").via("web", actor="ana").state(Cart).remove("items", "cup")
            if not change.value.items.get("cup"):
                break
    assert seen[0] == {"cup": 1}
    assert seen[-1] == {"pot": 1}
    assert b'"actor":"ana"' in change.patches[-1]


def test_watch_sees_a_deletion_and_what_follows(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    cart.update(Cart.add, "cup")
    states: list[tuple[bool, dict[str, int]]] = []
    with contextlib.closing(cart.watch()) as changes:
        for change in changes:
            states.append((change.exists, change.value.items))
            match len(states):
                case 1:
                    cart.delete()
                case 2:
                    cart.set(Cart(items={"pot": 1}))
                case _:
                    break
    assert states == [(True, {"cup": 1}), (False, {}), (True, {"pot": 1})]


def test_watch_after_a_position_yields_what_was_missed(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    cart.update(Cart.add, "cup")
    position = (cart.read()).position
    cart.update(Cart.add, "cup")
    cart.update(Cart.add, "pot")
    with contextlib.closing(cart.watch(after=position)) as changes:
        change = next(changes)
        assert change.value.items == {"cup": 2, "pot": 1}
        assert len(change.patches) == 2
        cart.update(Cart.add, "pot")
        assert (next(changes)).value.items == {"cup": 2, "pot": 2}


def test_a_position_that_the_log_no_longer_holds_is_an_error(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    first = cart.set(Cart())
    for _ in range(1100):
        cart.increment("visits")
    with pytest.raises(omnistate.PositionLost) as caught:
        next(cart.watch(after=first))
    assert caught.value.current.offset == 1101
    with pytest.raises(omnistate.PositionLost):
        next(cart.watch(after=Position("other", 5)))
    with pytest.raises(omnistate.PositionLost):
        next(cart.watch(after=Position(first.epoch, 99_999)))


def test_a_slow_watcher_misses_nothing(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    with contextlib.closing(cart.watch()) as changes:
        next(changes)
        for _ in range(900):
            cart.increment("visits")
        patches = 0
        for change in changes:
            patches += len(change.patches)
            if change.value.visits == 900:
                break
    assert patches == 900


def test_two_tenants_do_not_see_each_other(url: str, tenant: str) -> None:
    with omnistate.connect(url, tenant=tenant + "-a") as a, omnistate.connect(url, tenant=tenant + "-b") as b:
        a.customer("ana").state(Cart).update(Cart.add, "cup")
        assert not (b.customer("ana").state(Cart).read()).exists


def test_what_a_function_keeps_of_its_value_changes_nothing_afterwards(omni: Client) -> None:
    cart, notes = omni.customer("ana").state(Cart), omni.customer("ana").state(Notes)
    kept: list[Any] = []

    def add_item(value: Cart) -> None:
        kept.append(value)
        value.add("cup", 1)

    def add_line(value: Notes) -> None:
        kept.append(value)
        value.lines.append(["a"])

    for _ in range(3):
        written = cart.update(add_item)
        written.value.items["cup"] = 50
        kept[-1].items["other"] = 9
        changed = notes.update(add_line)
        changed.value.lines.clear()
        kept[-1].lines[-1].append("later")
    assert (cart.get()).items == {"cup": 3}
    assert (notes.get()).lines == [["a"]] * 3


def test_a_function_that_fails_leaves_nothing_for_the_next(omni: Client) -> None:
    cart, notes = omni.customer("ana").state(Cart), omni.customer("ana").state(Notes)

    def spoil(value: Any) -> None:
        if isinstance(value, Cart):
            value.items["bad"] = 1
        else:
            value.lines.append(["bad"])
        raise ValueError("no")

    def spoil_type(value: Notes) -> None:
        value.lines.append([1])  # type: ignore[list-item]

    for _ in range(2):
        cart.update(Cart.add, "cup", 1)
        notes.update(lambda value: value.lines.append(["a"]))
        for handle in (cart, notes):
            with pytest.raises(ValueError, match="no"):
                handle.update(spoil)
        with pytest.raises(omnistate.InvalidValue):
            notes.update(spoil_type)
    assert (cart.get()).items == {"cup": 2}
    assert (notes.get()).lines == [["a"], ["a"]]


def test_an_update_after_a_change_of_another_process_is_not_lost(omni: Client, connect: Callable[..., Client]) -> None:
    with connect() as another:
        cart, other = omni.customer("ana").state(Cart), another.customer("ana").state(Cart)
        cart.update(Cart.add, "cup", 1)
        other.update(Cart.add, "cup", 10)
        cart.increment("items", "cup", by=100)
        other.increment("items", "tea", by=5)
        cart.update(Cart.add, "cup", 1000)
    assert (cart.get()).items == {"cup": 1111, "tea": 5}
