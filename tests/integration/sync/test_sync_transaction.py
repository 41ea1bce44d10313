"""Several changes of one customer: all of them or none, in one call."""

# Written by tools/unasync.py from tests/integration/test_transaction.py: change that one.

from __future__ import annotations

from datetime import timedelta

import pytest

import omnistate.sync as omnistate
from omnistate.sync import ABSENT, Client
from shop import Cart, Profile


class Wallet(omnistate.State):
    balance: int = 0
    spent: dict[str, int] = {}


ORDERS = omnistate.List(str, name="orders", limit=100)
POINTS = omnistate.Counter(name="points", least=0)
STOCK = omnistate.Counter(name="stock", least=0)


def _until(customer: omnistate.Customer, after: omnistate.Position, count: int):  # type: ignore[no-untyped-def]
    for event in customer.events(after=after):
        yield event
        count -= 1
        if not count:
            return


@pytest.mark.parametrize("culprit", ["sum", "bounds", "size", "version", "absent", "session", "full"])
def test_nothing_is_applied_when_one_part_is_refused(omni: Client, culprit: str) -> None:
    ana = omni.customer("ana")
    ana.state(Wallet).patch(balance=2**53 - 1)
    ana.state(Profile).patch(name="Ana")
    tags = omnistate.Set(str, name="tags", limit=1)
    ana.collection(tags).add("x")
    session = ana.start_session("web")
    session.end()
    stale = ana.state(Profile).read()
    ana.state(Profile).patch(name="Anna")
    before = ana.position()
    errors = {"sum": omnistate.InvalidValue, "bounds": omnistate.OutOfBounds, "size": omnistate.ValueTooLarge,
              "version": omnistate.Conflict, "absent": omnistate.Conflict, "session": omnistate.SessionExpired,
              "full": omnistate.CollectionFull}  # fmt: skip
    with pytest.raises(errors[culprit]):
        with ana.transaction() as tx:
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
    assert ana.position() == before
    assert not (ana.state(Cart).read()).exists
    assert ana.collection(ORDERS).all() == []
    with pytest.raises(omnistate.InvalidInput):
        _ = tx.collection(ORDERS).append("late")


def test_an_error_in_the_block_leaves_everything_as_it_was(omni: Client) -> None:
    ana = omni.customer("ana")
    with pytest.raises(ZeroDivisionError):
        with ana.transaction() as tx:
            tx.state(Cart).patch(note="never")
            _ = 1 // 0
    assert not (ana.state(Cart).read()).exists


def test_what_was_read_inside_must_still_be_so(omni: Client) -> None:
    ana = omni.customer("ana")
    ana.state(Wallet).patch(balance=10)
    with pytest.raises(omnistate.Conflict):
        with ana.transaction() as tx:
            wallet = tx.get(Wallet)
            ana.state(Wallet).increment("balance", by=-10)
            wallet.balance -= 8
            tx.state(Cart).patch(note="paid")
    assert (ana.state(Wallet).get()).balance == 0
    with ana.transaction() as tx:
        assert (tx.get(Wallet)).balance == 0  # only read, and still a precondition
        tx.state(Cart).patch(note="nothing left")
    assert (ana.state(Cart).get()).note == "nothing left"


def test_a_session_is_touched_and_ended_with_the_rest(omni: Client) -> None:
    ana = omni.customer("ana")
    session = ana.start_session("web", idle=timedelta(minutes=5))
    with ana.transaction() as tx:
        tx.touch(session)
        tx.state(Cart).patch(note="x")
    with ana.transaction() as tx:
        tx.end(session, reason="checked out")
        tx.state(Cart).delete()
    assert not (ana.state(Cart).read()).exists
    with pytest.raises(omnistate.SessionExpired):
        session.touch()
    ben = omni.customer("ben").start_session("web")
    with pytest.raises(omnistate.InvalidInput, match="another customer"):
        with ana.transaction() as tx:
            tx.require(ben)
    with pytest.raises(omnistate.InvalidInput, match="another customer"):
        with ana.transaction() as tx:
            tx.state(omni.customer("ben").state(Cart)).patch(note="x")


def test_an_update_of_several_states_under_an_operation_id_runs_once(omni: Client) -> None:
    ana = omni.customer("ana")

    def buy(cart: Cart, wallet: Wallet) -> None:
        cart.add("cup")
        wallet.balance -= 1

    first = ana.update(buy, Cart, Wallet, operation_id="once")
    assert not first.repeated
    again = ana.update(buy, Cart, Wallet, operation_id="once")
    assert again.repeated
    assert (ana.state(Wallet).get()).balance == -1


def test_fields_that_are_set_and_counted_in_one_transaction_end_as_written(omni: Client) -> None:
    ana = omni.customer("ana")
    ana.state(Cart).patch(note="old", visits=9)
    with ana.transaction() as tx:
        cart = tx.state(Cart)
        cart.patch(visits=1)
        sum_ = cart.increment("visits", by=4)
        cart.put("items", "a", 1)
        cart.remove("items", "a")
        cart.remove("items", "b")
        cart.put("items", "b", 2)
        other = cart.increment("items", "b", by=5)
    assert (sum_.value, other.value) == (5, 7)
    assert ana.state(Cart).get() == Cart(items={"b": 7}, note="old", visits=5)
    with ana.transaction() as tx:
        tx.state(Cart).set(Cart(note="new"))
        fresh = tx.state(Cart).increment("visits")
    assert fresh.value == 1
    assert ana.state(Cart).get() == Cart(note="new", visits=1)


def test_sums_of_several_fields_are_seen_by_watchers_where_they_belong(omni: Client) -> None:
    ana = omni.customer("ana")
    changes = ana.state(Wallet).watch()
    assert (next(changes)).version == 0
    with ana.transaction() as tx:
        cups, pots = (tx.state(Wallet).increment("spent", key, by=by) for key, by in (("cups", 1), ("pots", 2)))
        balance = tx.state(Wallet).increment("balance", by=-3)
    assert (cups.value, pots.value, balance.value) == (1, 2, -3)
    expected = Wallet(balance=-3, spent={"cups": 1, "pots": 2})
    assert (next(changes)).value == expected == ana.state(Wallet).get()
    changes.close()


def test_what_follows_a_delete_begins_a_new_document(omni: Client) -> None:
    ana = omni.customer("ana")
    ana.state(Wallet).set(Wallet(balance=10, spent={"cups": 4}))
    with ana.transaction() as tx:
        wallet = tx.state(Wallet)
        wallet.delete()
        balance = wallet.increment("balance", by=3)
    assert (balance.value, ana.state(Wallet).get()) == (3, Wallet(balance=3))
    with ana.transaction() as tx:
        tx.state(Wallet).delete()
        tx.state(Wallet).put("spent", "pots", 1)
    assert ana.state(Wallet).get() == Wallet(spent={"pots": 1})


def test_a_session_ends_once_in_a_block(omni: Client) -> None:
    ana = omni.customer("ana")
    session = ana.start_session("web")
    before = ana.position()
    for verb in ("touch", "end", "require"):
        with pytest.raises(omnistate.InvalidInput, match="ended earlier"):
            with ana.transaction() as tx:
                tx.end(session)
                getattr(tx, verb)(session)
    assert ana.position() == before


def test_of_a_queue_nothing_is_claimed_in_a_block(omni: Client) -> None:
    jobs = omnistate.WorkQueue(str, name="jobs")
    omni.customer("ana").collection(jobs).put("a")
    with pytest.raises(omnistate.InvalidInput, match="before the transaction"):
        with omni.customer("ana").transaction() as tx:
            tx.collection(jobs).claim()


def test_of_a_queue_nothing_is_read_in_a_block(omni: Client) -> None:
    jobs = omnistate.WorkQueue(str, name="jobs")
    omni.customer("ana").collection(jobs).put("a")
    with pytest.raises(omnistate.InvalidInput, match="WorkQueue"):
        with omni.customer("ana").transaction() as tx:
            tx.get_all(jobs)  # type: ignore[call-overload]


def test_two_classes_of_one_name_are_not_mixed_up_in_a_block(omni: Client) -> None:
    class Other(omnistate.State, name="Wallet"):
        balance: int = 0
        currency: str = "EUR"

    with pytest.raises(omnistate.InvalidInput, match="two classes"):
        with omni.customer("ana").transaction() as tx:
            tx.get(Wallet)
            tx.get(Other)


CODES = omnistate.Map(str, str, name="tx_codes")
