"""Documents on real servers: reads, writes, preconditions, versions, watching."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

import omnistate
from omnistate import ABSENT, Client, Position
from shop import Cart, Profile


class Notes(omnistate.State):
    """Its values are decoded for each function; those of a cart are copied."""

    lines: list[list[str]] = []


async def test_an_unwritten_state_is_the_default_at_version_zero(omni: Client) -> None:
    snapshot = await omni.customer("ana").state(Cart).read()
    assert snapshot.value == Cart()
    assert (snapshot.version, snapshot.exists) == (0, False)
    assert snapshot.position.epoch
    assert snapshot.position.offset == 0


async def test_update_stores_what_the_function_changed(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    written = await cart.update(Cart.add, "cup", 2)
    assert written.value.items == {"cup": 2}
    assert written.result == 2
    assert written.version == 1
    assert (await cart.read()).version == 1
    assert await cart.get() == Cart(items={"cup": 2})


async def test_update_that_changes_nothing_writes_nothing(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    first = await cart.update(Cart.add, "cup")
    second = await cart.update(lambda value: value.items.setdefault("cup", 9))
    assert (second.version, second.result) == (first.version, 1)


async def test_an_error_of_the_function_is_raised_and_nothing_is_stored(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)

    def fail(value: Cart) -> None:
        value.items["cup"] = 5
        raise LookupError("sold out")

    with pytest.raises(LookupError, match="sold out"):
        await cart.update(fail)
    assert not (await cart.read()).exists


async def test_an_error_on_an_outdated_document_is_not_believed(omni: Client, connect: object) -> None:
    """The process saw an empty cart; another one filled it; the function must see the filled one."""
    here = omni.customer("ana").state(Cart)
    await here.update(Cart.add, "cup")
    await here.update(lambda value: value.items.clear())
    async with connect() as elsewhere:  # type: ignore[operator]
        await elsewhere.customer("ana").state(Cart).update(Cart.add, "cup", 3)

    def take(value: Cart) -> int:
        return value.items.pop("cup")

    assert (await here.update(take)).result == 3


async def test_writers_of_one_document_lose_no_update(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)

    async def write() -> None:
        for _ in range(100):
            await cart.update(Cart.add, "cup")

    await asyncio.gather(*(write() for _ in range(32)))
    assert (await cart.get()).items == {"cup": 3200}


async def test_callers_that_share_a_write_keep_their_own_result_and_error(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)

    async def write(number: int) -> int:
        def change(value: Cart) -> int:
            value.visits += 1
            if number % 3 == 0:
                raise ValueError(number)
            if number % 5 == 0:
                value.visits = "no number"  # type: ignore[assignment]
            return value.visits

        return (await cart.update(change)).result

    results = await asyncio.gather(*(write(number) for number in range(60)), return_exceptions=True)
    good = [number for number in range(60) if number % 3 and number % 5]
    for number, result in enumerate(results):
        if number % 3 == 0:
            assert isinstance(result, ValueError)
            assert result.args == (number,)
        elif number % 5 == 0:
            assert isinstance(result, omnistate.InvalidValue)
    assert sorted(results[number] for number in good) == list(range(1, len(good) + 1))  # type: ignore[type-var]
    assert (await cart.get()).visits == len(good)


async def test_a_cancelled_writer_does_not_disturb_the_others(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    tasks = [asyncio.create_task(cart.update(Cart.add, f"sku-{number}")) for number in range(40)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    items = (await cart.get()).items
    assert {f"sku-{number}" for number in range(1, 40, 2)} <= items.keys()


async def test_values_are_private_copies(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    kept: list[Cart] = []
    await asyncio.gather(*(cart.update(lambda value: (kept.append(value), value.add("cup"))) for _ in range(10)))
    for value in kept:
        value.items["cup"] = 999
    assert (await cart.get()).items == {"cup": 10}


async def test_fields_and_entries_are_changed_without_reading(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    await cart.patch(note="gift")
    await cart.put("items", "cup", 1)
    assert await cart.increment("items", "cup", by=4) == 5
    assert await cart.increment("visits") == 1
    await cart.put("items", "pot", 1)
    await cart.remove("items", "pot")
    await cart.remove("items", "never there")
    assert await cart.get() == Cart(items={"cup": 5}, note="gift", visits=1)


async def test_set_replaces_everything(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    await cart.update(Cart.add, "cup", 2)
    await cart.set(Cart(items={"pot": 1}, note="new"))
    assert await cart.get() == Cart(items={"pot": 1}, note="new")


async def test_absent_refuses_to_overwrite(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    await cart.set(Cart(note="first"), expect=ABSENT)
    with pytest.raises(omnistate.Conflict, match="is at version 1"):
        await cart.set(Cart(note="second"), expect=ABSENT)
    assert (await cart.get()).note == "first"


async def test_an_expected_version_must_still_be_there(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    await cart.set(Cart(note="first"))
    seen = await cart.read()
    await cart.set(Cart(note="second"), expect=seen)
    with pytest.raises(omnistate.Conflict):
        await cart.set(Cart(note="third"), expect=seen)
    with pytest.raises(omnistate.Conflict):
        await cart.delete(expect=seen)
    assert (await cart.get()).note == "second"


async def test_a_stale_writer_cannot_bring_back_a_deleted_document(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    await cart.set(Cart(note="old"))
    stale = await cart.read()
    assert await cart.delete()
    with pytest.raises(omnistate.Conflict, match="does not exist"):
        await cart.set(Cart(note="back"), expect=stale)
    await cart.set(Cart(note="successor"))
    with pytest.raises(omnistate.Conflict):
        await cart.set(Cart(note="back"), expect=stale)
    assert (await cart.get()).note == "successor"


async def test_versions_never_restart(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    versions = []
    for _ in range(5):
        versions.append((await cart.set(Cart())).offset)
        await cart.delete()
    assert versions == sorted(set(versions))
    assert not await cart.delete()


async def test_an_update_after_a_delete_starts_from_the_default(omni: Client, connect: object) -> None:
    cart = omni.customer("ana").state(Cart)
    await cart.update(Cart.add, "cup", 7)
    async with connect() as elsewhere:  # type: ignore[operator]
        await elsewhere.customer("ana").state(Cart).delete()
    assert (await cart.update(Cart.add, "pot")).value.items == {"pot": 1}


async def test_update_once_is_repeated_also_when_its_function_would_change_nothing_now(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)

    def take_note(cart: Cart) -> str:
        found, cart.note = cart.note, ""
        return found

    await cart.patch(note="gift")
    first = await cart.update_once("take", take_note)
    await cart.increment("visits")
    again = await cart.update_once("take", take_note)
    assert (first.result, first.repeated) == ("gift", False)
    assert (again.result, again.repeated) == (None, True)
    assert (again.version, again.value) == (first.version + 1, Cart(visits=1))  # the document as it is


async def test_a_repeated_operation_id_changes_nothing(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    first = await cart.update_once("order-17", Cart.add, "cup", 2)
    again = await cart.update_once("order-17", Cart.add, "cup", 2)
    assert (first.repeated, again.repeated) == (False, True)
    assert again.version == first.version
    assert (await cart.get()).items == {"cup": 2}
    assert await cart.increment("visits", operation_id="visit-1") == 1
    assert await cart.increment("visits", operation_id="visit-1") == 1
    assert await cart.set(Cart(note="x"), operation_id="set-1") == await cart.set(Cart(note="x"), operation_id="set-1")


async def test_an_operation_id_is_good_for_one_call_only(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    await cart.update_once("order-17", Cart.add, "cup", 2)
    with pytest.raises(omnistate.OperationIdReused, match="order-17"):
        await cart.update_once("order-17", Cart.add, "cup", 3)
    with pytest.raises(omnistate.OperationIdReused):
        await omni.customer("ana").state(Profile).set(Profile(), operation_id="order-17")


async def test_equal_arguments_are_the_same_call_whatever_their_order(omni: Client) -> None:
    def note(cart: Cart, tags: object, **_: int) -> None:
        cart.note += str(tags)[:1]

    one, other = {0, 8}, {8, 0}
    assert list(one) != list(other)  # as in another process
    cart = omni.customer("ana").state(Cart)
    assert not (await cart.update_once("id", note, {"x": 1, "y": 2}, a=1, b=2)).repeated
    assert (await cart.update_once("id", note, {"y": 2, "x": 1}, b=2, a=1)).repeated
    assert not (await cart.update_once("id-2", note, {"x": one, 1: 2})).repeated
    assert (await cart.update_once("id-2", note, {"x": other, 1: 2})).repeated
    endless: list[object] = []
    endless.append(endless)
    for bad in ("\ud800", endless):
        with pytest.raises(omnistate.InvalidInput, match="operation id"):
            await cart.update_once("id-3", note, bad)


async def test_two_states_of_a_customer_share_one_log(omni: Client) -> None:
    ana = omni.customer("ana")
    await ana.state(Cart).update(Cart.add, "cup")
    await ana.state(Profile).patch(name="Ana")
    assert (await ana.state(Cart).read()).version == 1
    assert (await ana.state(Profile).read()).version == 2
    assert (await ana.state(Cart).read()).position.offset == 2


async def test_watch_yields_the_present_and_then_every_change(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    await cart.update(Cart.add, "cup")
    seen: list[dict[str, int]] = []
    async with contextlib.aclosing(cart.watch()) as changes:
        async for change in changes:
            seen.append(change.value.items)
            if len(seen) == 1:
                await cart.update(Cart.add, "pot")
                await omni.customer("ana").state(Profile).patch(name="Ana")
                await omni.customer("ana").via("web", actor="ana").state(Cart).remove("items", "cup")
            if not change.value.items.get("cup"):
                break
    assert seen[0] == {"cup": 1}
    assert seen[-1] == {"pot": 1}
    assert b'"actor":"ana"' in change.patches[-1]


async def test_watch_sees_a_deletion_and_what_follows(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    await cart.update(Cart.add, "cup")
    states: list[tuple[bool, dict[str, int]]] = []
    async with contextlib.aclosing(cart.watch()) as changes:
        async for change in changes:
            states.append((change.exists, change.value.items))
            match len(states):
                case 1:
                    await cart.delete()
                case 2:
                    await cart.set(Cart(items={"pot": 1}))
                case _:
                    break
    assert states == [(True, {"cup": 1}), (False, {}), (True, {"pot": 1})]


async def test_watch_after_a_position_yields_what_was_missed(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    await cart.update(Cart.add, "cup")
    position = (await cart.read()).position
    await cart.update(Cart.add, "cup")
    await cart.update(Cart.add, "pot")
    async with contextlib.aclosing(cart.watch(after=position)) as changes:
        change = await anext(changes)
        assert change.value.items == {"cup": 2, "pot": 1}
        assert len(change.patches) == 2
        await cart.update(Cart.add, "pot")
        assert (await anext(changes)).value.items == {"cup": 2, "pot": 2}


async def test_a_position_that_the_log_no_longer_holds_is_an_error(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    first = await cart.set(Cart())
    for _ in range(1100):
        await cart.increment("visits")
    with pytest.raises(omnistate.PositionLost) as caught:
        await anext(cart.watch(after=first))
    assert caught.value.current.offset == 1101
    with pytest.raises(omnistate.PositionLost):
        await anext(cart.watch(after=Position("other", 5)))
    with pytest.raises(omnistate.PositionLost):
        await anext(cart.watch(after=Position(first.epoch, 99_999)))


async def test_a_slow_watcher_misses_nothing(omni: Client) -> None:
    cart = omni.customer("ana").state(Cart)
    async with contextlib.aclosing(cart.watch()) as changes:
        await anext(changes)
        for _ in range(900):
            await cart.increment("visits")
        patches = 0
        async for change in changes:
            patches += len(change.patches)
            if change.value.visits == 900:
                break
    assert patches == 900


async def test_a_document_expires_after_its_ttl(omni: Client) -> None:
    from datetime import timedelta

    class Brief(omnistate.State, ttl=timedelta(milliseconds=60)):
        word: str = ""

    brief = omni.customer("ana").state(Brief)
    await brief.patch(word="now")
    stale = await brief.read()
    deadline = asyncio.get_running_loop().time() + 5
    while (await brief.read()).exists:
        assert asyncio.get_running_loop().time() < deadline
    with pytest.raises(omnistate.Conflict):
        await brief.set(Brief(word="back"), expect=stale)
    assert (await brief.set(Brief(word="new"))).offset == 3  # the expiry has its own place in the log


async def test_two_tenants_do_not_see_each_other(url: str, tenant: str) -> None:
    async with omnistate.connect(url, tenant=tenant + "-a") as a, omnistate.connect(url, tenant=tenant + "-b") as b:
        await a.customer("ana").state(Cart).update(Cart.add, "cup")
        assert not (await b.customer("ana").state(Cart).read()).exists


async def test_what_a_function_keeps_of_its_value_changes_nothing_afterwards(omni: Client) -> None:
    cart, notes = omni.customer("ana").state(Cart), omni.customer("ana").state(Notes)
    kept: list[Any] = []

    def add_item(value: Cart) -> None:
        kept.append(value)
        value.add("cup", 1)

    def add_line(value: Notes) -> None:
        kept.append(value)
        value.lines.append(["a"])

    for _ in range(3):
        written = await cart.update(add_item)
        written.value.items["cup"] = 50
        kept[-1].items["other"] = 9
        changed = await notes.update(add_line)
        changed.value.lines.clear()
        kept[-1].lines[-1].append("later")
    assert (await cart.get()).items == {"cup": 3}
    assert (await notes.get()).lines == [["a"]] * 3


async def test_a_function_that_fails_leaves_nothing_for_the_next(omni: Client) -> None:
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
        await cart.update(Cart.add, "cup", 1)
        await notes.update(lambda value: value.lines.append(["a"]))
        for handle in (cart, notes):
            with pytest.raises(ValueError, match="no"):
                await handle.update(spoil)
        with pytest.raises(omnistate.InvalidValue):
            await notes.update(spoil_type)
    assert (await cart.get()).items == {"cup": 2}
    assert (await notes.get()).lines == [["a"], ["a"]]


async def test_an_update_after_other_changes_of_this_process_still_starts_from_what_it_knows(omni: Client) -> None:
    ana = omni.customer("ana")
    cart, link = ana.state(Cart), omni._services.link
    await cart.update(Cart.add, "cup", 1)
    sent: list[str] = []

    async def count(command: Any, **options: Any) -> Any:
        sent.append(command.function)
        return await type(link).execute(link, command, **options)

    cart._services.combiner._execute = count
    await cart.increment("items", "cup", by=4)
    await cart.put("items", "tea", 2)
    await cart.remove("items", "tea")
    await cart.patch(note="n")
    written = await cart.update(Cart.add, "cup", 1)
    assert sent == ["state_write"]
    assert written.value == await cart.get()
    assert (written.value.items, written.value.note) == ({"cup": 6}, "n")


async def test_an_update_after_a_change_of_another_process_is_not_lost(
    omni: Client, connect: Callable[..., Client]
) -> None:
    async with connect() as another:
        cart, other = omni.customer("ana").state(Cart), another.customer("ana").state(Cart)
        await cart.update(Cart.add, "cup", 1)
        await other.update(Cart.add, "cup", 10)
        await cart.increment("items", "cup", by=100)
        await other.increment("items", "tea", by=5)
        await cart.update(Cart.add, "cup", 1000)
    assert (await cart.get()).items == {"cup": 1111, "tea": 5}
