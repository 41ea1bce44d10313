"""Several changes of one customer: all of them or none, in one call."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import Any

import pytest

import omnistate
from omnistate import ABSENT, Client
from shop import Cart, Profile


class Wallet(omnistate.State):
    balance: int = 0
    spent: dict[str, int] = {}


ORDERS = omnistate.List(str, name="orders", limit=100)
POINTS = omnistate.Counter(name="points", least=0)
STOCK = omnistate.Counter(name="stock", least=0)


async def test_everything_in_a_block_is_applied_at_once(omni: Client) -> None:
    ana = omni.customer("ana").via("web", actor="ana")
    await ana.state(Wallet).patch(balance=10)
    before = await ana.position()
    async with ana.transaction() as tx:
        tx.state(Cart).put("items", "cup", 2)
        tx.state(Cart).patch(note="gift")
        visits = tx.state(Cart).increment("visits", by=3)
        balance = tx.state(Wallet).increment("balance", by=-4)
        spent = tx.state(Wallet).increment("spent", "cups", by=4)
        length = tx.collection(ORDERS).append("order-1")
        points = tx.collection(POINTS).add(7)
        assert await ana.position() == before  # nothing is sent before the end
    assert (visits.value, balance.value, spent.value, await length, await points) == (3, 6, 4, 1, 7)
    assert await ana.state(Cart).get() == Cart(items={"cup": 2}, note="gift", visits=3)
    assert await ana.state(Wallet).get() == Wallet(balance=6, spent={"cups": 4})
    assert await ana.collection(ORDERS).all() == ["order-1"]
    assert tx.position == await ana.position()
    assert tx.position is not None
    assert tx.position.offset == before.offset + 4
    events = [event async for event in _until(ana, before, 4)]
    assert [event.type for event in events] == ["state.changed"] * 2 + ["collection.changed"] * 2
    assert events[0].data["set"] == {"note": "gift", "visits": 3}
    assert events[0].data["put"] == {"items": {"cup": 2}}
    assert {event.data["actor"] for event in events} == {"ana"}


async def _until(customer: omnistate.Customer, after: omnistate.Position, count: int):  # type: ignore[no-untyped-def]
    async for event in customer.events(after=after):
        yield event
        count -= 1
        if not count:
            return


@pytest.mark.parametrize("culprit", ["sum", "bounds", "size", "version", "absent", "session", "full"])
async def test_nothing_is_applied_when_one_part_is_refused(omni: Client, culprit: str) -> None:
    ana = omni.customer("ana")
    await ana.state(Wallet).patch(balance=2**53 - 1)
    await ana.state(Profile).patch(name="Ana")
    tags = omnistate.Set(str, name="tags", limit=1)
    await ana.collection(tags).add("x")
    session = await ana.start_session("web")
    await session.end()
    stale = await ana.state(Profile).read()
    await ana.state(Profile).patch(name="Anna")
    before = await ana.position()
    errors = {"sum": omnistate.InvalidValue, "bounds": omnistate.OutOfBounds, "size": omnistate.ValueTooLarge,
              "version": omnistate.Conflict, "absent": omnistate.Conflict, "session": omnistate.SessionExpired,
              "full": omnistate.CollectionFull}  # fmt: skip
    with pytest.raises(errors[culprit]):
        async with ana.transaction() as tx:
            tx.state(Cart).put("items", "cup", 1)
            tx.collection(ORDERS).append("order")
            if culprit == "sum":
                tx.state(Wallet).increment("balance")
            elif culprit == "bounds":
                tx.collection(POINTS).add(-1)
            elif culprit == "size":
                tx.state(Profile).patch(name="x" * 300_000)
            elif culprit == "version":
                tx.state(Profile).expect(stale)
            elif culprit == "absent":
                tx.state(Profile).expect(ABSENT)
            elif culprit == "session":
                tx.require(session)
            else:
                tx.collection(tags).add("y")
    assert await ana.position() == before
    assert not (await ana.state(Cart).read()).exists
    assert await ana.collection(ORDERS).all() == []
    with pytest.raises(omnistate.InvalidInput):
        _ = tx.collection(ORDERS).append("late")


async def test_an_error_in_the_block_leaves_everything_as_it_was(omni: Client) -> None:
    ana = omni.customer("ana")
    with pytest.raises(ZeroDivisionError):
        async with ana.transaction() as tx:
            tx.state(Cart).patch(note="never")
            _ = 1 // 0
    assert not (await ana.state(Cart).read()).exists


async def test_what_was_read_inside_must_still_be_so(omni: Client) -> None:
    ana = omni.customer("ana")
    await ana.state(Wallet).patch(balance=10)
    with pytest.raises(omnistate.Conflict):
        async with ana.transaction() as tx:
            wallet = await tx.get(Wallet)
            await ana.state(Wallet).increment("balance", by=-10)
            wallet.balance -= 8
            tx.state(Cart).patch(note="paid")
    assert (await ana.state(Wallet).get()).balance == 0
    async with ana.transaction() as tx:
        assert (await tx.get(Wallet)).balance == 0  # only read, and still a precondition
        tx.state(Cart).patch(note="nothing left")
    assert (await ana.state(Cart).get()).note == "nothing left"


async def test_an_operation_id_makes_a_repeated_transaction_harmless(omni: Client) -> None:
    ana = omni.customer("ana")
    for turn in range(2):
        async with ana.transaction(operation_id="order-17") as tx:
            total = tx.collection(POINTS).add(5)
            visits = tx.state(Cart).increment("visits")
        assert (await total, await visits, tx.repeated) == (5, 1, turn == 1)
    with pytest.raises(omnistate.OperationIdReused):
        async with ana.transaction(operation_id="order-17") as tx:
            tx.collection(POINTS).add(6)
    assert await ana.collection(POINTS).get() == 5


async def test_a_repeated_block_that_reads_is_known_whatever_it_finds(omni: Client) -> None:
    ana = omni.customer("ana")
    await ana.state(Cart).put("items", "cup", 2)

    async def check_out() -> tuple[omnistate.Transaction, Any]:
        async with ana.transaction(operation_id="order-17") as tx:
            cart = await tx.get(Cart)
            if cart.items:
                tx.collection(ORDERS).append(f"{cart.items}")
                cart.items.clear()
            else:
                assert tx.repeated
            total = tx.collection(POINTS).add(5)
        return tx, total

    first, total = await check_out()
    assert (first.repeated, await total) == (False, 5)
    before = await ana.position()
    for _ in range(2):
        again, total = await check_out()
        assert (again.repeated, again.position) == (True, first.position)
        with pytest.raises(omnistate.InvalidInput, match="something else"):
            await total
    assert await ana.position() == before
    assert await ana.collection(ORDERS).all() == ["{'cup': 2}"]
    with pytest.raises(omnistate.OperationIdReused, match="was applied"):
        async with ana.transaction(operation_id="order-17") as tx:
            await tx.get(Wallet)


async def test_a_repeated_block_that_reads_and_asks_for_the_same_has_its_outcomes(omni: Client) -> None:
    ana = omni.customer("ana")
    for turn in range(2):
        async with ana.transaction(operation_id="visit") as tx:
            await tx.get_all(ORDERS)
            total = tx.collection(POINTS).add(5)
        assert (await total, tx.repeated) == (5, turn == 1)


async def test_of_two_blocks_at_once_that_read_one_is_applied(omni: Client) -> None:
    ana = omni.customer("ana")
    await ana.state(Wallet).patch(balance=1)

    async def pay(wait: asyncio.Event, told: asyncio.Event) -> omnistate.Transaction:
        async with ana.transaction(operation_id="pay") as tx:
            wallet = await tx.get(Wallet)
            told.set()
            await wait.wait()
            if wallet.balance:
                wallet.balance -= 1
                tx.collection(ORDERS).append(f"order {id(tx)}")
                if wait is second:
                    tx.collection(POINTS).add(1)
        return tx

    first, second, told = asyncio.Event(), asyncio.Event(), asyncio.Event()
    first.set()
    late = asyncio.create_task(pay(second, told))
    await told.wait()
    early = await pay(first, asyncio.Event())
    second.set()
    assert (early.repeated, (await late).repeated) == (False, True)
    assert (await late).position == early.position
    assert (await ana.state(Wallet).get()).balance == 0
    assert len(await ana.collection(ORDERS).all()) == 1


async def test_a_session_is_touched_and_ended_with_the_rest(omni: Client) -> None:
    ana = omni.customer("ana")
    session = await ana.start_session("web", idle=timedelta(minutes=5))
    async with ana.transaction() as tx:
        tx.touch(session)
        tx.state(Cart).patch(note="x")
    async with ana.transaction() as tx:
        tx.end(session, reason="checked out")
        tx.state(Cart).delete()
    assert not (await ana.state(Cart).read()).exists
    with pytest.raises(omnistate.SessionExpired):
        await session.touch()
    ben = await omni.customer("ben").start_session("web")
    with pytest.raises(omnistate.InvalidInput, match="another customer"):
        async with ana.transaction() as tx:
            tx.require(ben)
    with pytest.raises(omnistate.InvalidInput, match="another customer"):
        async with ana.transaction() as tx:
            tx.state(omni.customer("ben").state(Cart)).patch(note="x")


async def test_a_change_of_several_states_runs_again_until_nobody_interferes(omni: Client) -> None:
    ana = omni.customer("ana")
    await ana.state(Wallet).patch(balance=60)

    def buy(cart: Cart, wallet: Wallet) -> int:
        cart.add("cup")
        wallet.balance -= 1
        wallet.spent["cup"] = wallet.spent.get("cup", 0) + 1
        return wallet.balance

    async def noise() -> None:
        for _ in range(20):
            await ana.state(Wallet).update(lambda wallet: setattr(wallet, "balance", wallet.balance + 1))

    done = await asyncio.gather(*(ana.update(buy, Cart, Wallet) for _ in range(20)), noise())
    wallet, cart = await ana.state(Wallet).get(), await ana.state(Cart).get()
    assert wallet.balance == 60
    assert wallet.spent["cup"] == cart.items["cup"] == 20
    assert len({one.position.offset for one in done[:-1] if one and one.position}) == 20


async def test_an_update_of_several_states_under_an_operation_id_runs_once(omni: Client) -> None:
    ana = omni.customer("ana")

    def buy(cart: Cart, wallet: Wallet) -> None:
        cart.add("cup")
        wallet.balance -= 1

    first = await ana.update(buy, Cart, Wallet, operation_id="once")
    assert not first.repeated
    again = await ana.update(buy, Cart, Wallet, operation_id="once")
    assert again.repeated
    assert (await ana.state(Wallet).get()).balance == -1


async def test_fields_that_are_set_and_counted_in_one_transaction_end_as_written(omni: Client) -> None:
    ana = omni.customer("ana")
    await ana.state(Cart).patch(note="old", visits=9)
    async with ana.transaction() as tx:
        cart = tx.state(Cart)
        cart.patch(visits=1)
        sum_ = cart.increment("visits", by=4)
        cart.put("items", "a", 1)
        cart.remove("items", "a")
        cart.remove("items", "b")
        cart.put("items", "b", 2)
        other = cart.increment("items", "b", by=5)
    assert (sum_.value, other.value) == (5, 7)
    assert await ana.state(Cart).get() == Cart(items={"b": 7}, note="old", visits=5)
    async with ana.transaction() as tx:
        tx.state(Cart).set(Cart(note="new"))
        fresh = tx.state(Cart).increment("visits")
    assert fresh.value == 1
    assert await ana.state(Cart).get() == Cart(note="new", visits=1)


async def test_a_result_is_there_only_after_the_block(omni: Client) -> None:
    async with omni.customer("ana").transaction() as tx:
        total = tx.collection(POINTS).add(1)
        with pytest.raises(omnistate.InvalidInput):
            await total
        with pytest.raises(omnistate.InvalidInput, match="once"):
            tx.collection(POINTS).add(1)
    assert await total == 1


async def test_watchers_see_each_document_at_its_version(omni: Client) -> None:
    ana = omni.customer("ana")
    seen: list[int] = []

    async def watch() -> None:
        async for change in ana.state(Wallet).watch():
            seen.append(change.value.balance)
            if change.value.balance == 3:
                return

    task = asyncio.create_task(watch())
    while not seen:
        await asyncio.sleep(0.001)
    for balance in (1, 2, 3):
        async with ana.transaction() as tx:
            tx.state(Cart).patch(note=str(balance))
            tx.state(Wallet).patch(balance=balance)
    await asyncio.wait_for(task, 5)
    assert seen == sorted(seen)  # a slow reader may be given several changes as one
    assert seen[-1] == 3


async def test_sums_of_several_fields_are_seen_by_watchers_where_they_belong(omni: Client) -> None:
    ana = omni.customer("ana")
    changes = ana.state(Wallet).watch()
    assert (await anext(changes)).version == 0
    async with ana.transaction() as tx:
        cups, pots = (tx.state(Wallet).increment("spent", key, by=by) for key, by in (("cups", 1), ("pots", 2)))
        balance = tx.state(Wallet).increment("balance", by=-3)
    assert (cups.value, pots.value, balance.value) == (1, 2, -3)
    expected = Wallet(balance=-3, spent={"cups": 1, "pots": 2})
    assert (await anext(changes)).value == expected == await ana.state(Wallet).get()
    await changes.aclose()


async def test_what_follows_a_delete_begins_a_new_document(omni: Client) -> None:
    ana = omni.customer("ana")
    await ana.state(Wallet).set(Wallet(balance=10, spent={"cups": 4}))
    async with ana.transaction() as tx:
        wallet = tx.state(Wallet)
        wallet.delete()
        balance = wallet.increment("balance", by=3)
    assert (balance.value, await ana.state(Wallet).get()) == (3, Wallet(balance=3))
    async with ana.transaction() as tx:
        tx.state(Wallet).delete()
        tx.state(Wallet).put("spent", "pots", 1)
    assert await ana.state(Wallet).get() == Wallet(spent={"pots": 1})


async def test_a_session_ends_once_in_a_block(omni: Client) -> None:
    ana = omni.customer("ana")
    session = await ana.start_session("web")
    before = await ana.position()
    for verb in ("touch", "end", "require"):
        with pytest.raises(omnistate.InvalidInput, match="ended earlier"):
            async with ana.transaction() as tx:
                tx.end(session)
                getattr(tx, verb)(session)
    assert await ana.position() == before


async def test_of_a_queue_nothing_is_claimed_in_a_block(omni: Client) -> None:
    jobs = omnistate.WorkQueue(str, name="jobs")
    await omni.customer("ana").collection(jobs).put("a")
    with pytest.raises(omnistate.InvalidInput, match="before the transaction"):
        async with omni.customer("ana").transaction() as tx:
            await tx.collection(jobs).claim()


async def test_of_a_queue_nothing_is_read_in_a_block(omni: Client) -> None:
    jobs = omnistate.WorkQueue(str, name="jobs")
    await omni.customer("ana").collection(jobs).put("a")
    with pytest.raises(omnistate.InvalidInput, match="WorkQueue"):
        async with omni.customer("ana").transaction() as tx:
            await tx.get_all(jobs)  # type: ignore[call-overload]


async def test_what_a_block_adds_counts_together(omni: Client) -> None:
    ana = omni.customer("ana")
    lists = [omnistate.List(str, name=f"many_{number}") for number in range(1020)]
    await asyncio.gather(*(ana.collection(one).append("x") for one in lists[:960]))
    with pytest.raises(omnistate.QuotaExceeded, match="documents"):
        async with ana.transaction() as tx:
            for one in lists[960:1001]:
                tx.collection(one).append("x")
    async with ana.transaction() as tx:
        for one in lists[960:1000]:
            tx.collection(one).append("x")
    with pytest.raises(omnistate.QuotaExceeded, match="documents"):
        await ana.collection(lists[1000]).append("x")
    texts = ["x" * 60_000] * 100  # almost 6 MB
    large = [omnistate.List(str, name=f"many_{number}", limit=300) for number in range(20)]
    for one in large[:10]:
        await ana.collection(one).append(*texts)
    with pytest.raises(omnistate.QuotaExceeded, match="bytes"):
        async with ana.transaction() as tx:
            tx.collection(large[10]).append(*texts[:60])  # each would have room, both have not
            tx.collection(large[11]).append(*texts[:60])
    async with ana.transaction() as tx:
        tx.collection(large[10]).append(*texts[:60])


async def test_two_classes_of_one_name_are_not_mixed_up_in_a_block(omni: Client) -> None:
    class Other(omnistate.State, name="Wallet"):
        balance: int = 0
        currency: str = "EUR"

    with pytest.raises(omnistate.InvalidInput, match="two classes"):
        async with omni.customer("ana").transaction() as tx:
            await tx.get(Wallet)
            await tx.get(Other)


CODES = omnistate.Map(str, str, name="tx_codes")


@pytest.mark.parametrize("then", ["writes", "clears", "only expects"])
async def test_what_a_block_read_is_no_longer_so_when_an_entry_has_ended(omni: Client, then: str) -> None:
    ana = omni.customer("ana")
    codes = ana.collection(CODES)
    await codes.update({"sms": "1", "lasting": "1"})
    await codes.expire("sms", after=timedelta(milliseconds=30))
    start = await ana.position()

    async def block() -> None:
        async with ana.transaction() as tx:
            held = await tx.get_all(CODES)
            while len(await codes.all()) == len(held) and "sms" in held:
                await asyncio.sleep(0.005)
            if then == "writes":
                tx.collection(CODES).put("copy", held.get("sms", "none"))
            elif then == "clears":
                tx.collection(CODES).clear()
            tx.state(Wallet).patch(balance=1)

    with pytest.raises(omnistate.Conflict):
        await block()
    assert not (await ana.state(Wallet).read()).exists
    async for event in ana.events(after=start):
        assert event.type == "collection.entries_expired"  # known from here on, so the next try is not refused for it
        break
    await block()
    assert await codes.all() == {
        "writes": {"lasting": "1", "copy": "none"}, "clears": {}, "only expects": {"lasting": "1"}
    }[then]  # fmt: skip


@pytest.mark.parametrize("then", ["only expects", "deletes"])
async def test_a_document_that_a_block_expects_is_another_when_an_entry_has_ended(omni: Client, then: str) -> None:
    ana = omni.customer("ana")
    await ana.state(Cart).put("items", "cup", 1, ttl=timedelta(milliseconds=30))
    snapshot = await ana.state(Cart).read()
    while (await ana.state(Cart).get()).items:
        await asyncio.sleep(0.005)
    for expected in (snapshot, None):
        async with contextlib.AsyncExitStack() as stack:
            if expected is not None:
                stack.enter_context(pytest.raises(omnistate.Conflict))
            async with ana.transaction() as tx:
                tx.state(Cart).expect(expected or await ana.state(Cart).read())
                if then == "deletes":
                    tx.state(Cart).delete()
                tx.state(Wallet).patch(balance=1)
    assert (await ana.state(Wallet).get()).balance == 1
