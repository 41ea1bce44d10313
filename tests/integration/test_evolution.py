"""Classes that change: documents follow, old and new processes live side by side, nothing is lost."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from redis import Redis

import omnistate
from omnistate import Client, migrate
from omnistate.store import Keyspace


class CartV1(omnistate.State, name="Trolley"):
    items: dict[str, int] = {}
    note: str = ""
    visits: int = 0


class Line(omnistate.State, name="Unused"):
    quantity: int = 0
    price: int = 0


def to_lines(fields: dict[str, Any]) -> None:
    fields["lines"] = {sku: {"quantity": count, "price": 0} for sku, count in fields.pop("items", {}).items()}


def to_items(fields: dict[str, Any]) -> None:
    fields["items"] = {sku: line["quantity"] for sku, line in fields.pop("lines", {}).items()}


class CartV2(omnistate.State, name="Trolley", version=2):
    lines: dict[str, dict[str, int]] = {}
    note: str = ""
    visits: int = 0

    up = migrate(1, 2)(to_lines)


class CartV2WritesV1(omnistate.State, name="Trolley", version=2, writes=1):
    lines: dict[str, dict[str, int]] = {}
    note: str = ""
    visits: int = 0

    up = migrate(1, 2)(to_lines)
    down = migrate(2, 1, mappings={"items"})(to_items)


class CartV3(omnistate.State, name="Trolley", version=3):
    lines: dict[str, dict[str, int]] = {}
    remark: str = ""
    visits: int = 0

    up = migrate(1, 2)(to_lines)

    @migrate(2, 3)
    def rename_the_note(fields: dict[str, Any]) -> dict[str, Any]:  # noqa: N805
        return {("remark" if name == "note" else name): value for name, value in fields.items()}


def header(raw: Redis, tenant: str, name: str = "Trolley") -> list[str]:
    return raw.hget(Keyspace(tenant).customer("ana").meta, f"doc:{name}").decode().split(" ")  # type: ignore[union-attr]


@pytest.fixture
async def old(omni: Client) -> omnistate.StateHandle[CartV1]:
    cart = omni.customer("ana").state(CartV1)
    await cart.set(CartV1(items={"cup": 2}, note="gift", visits=7))
    return cart


async def test_an_old_document_is_read_as_the_new_class_and_written_back_with_the_next_change(
    omni: Client, raw: Redis, tenant: str, old: Any
) -> None:
    cart = omni.customer("ana").state(CartV3)
    expected = CartV3(lines={"cup": {"quantity": 2, "price": 0}}, remark="gift", visits=7)
    assert await cart.get() == expected
    assert header(raw, tenant)[6] == "1"  # reading writes nothing
    await cart.update(lambda value: value.lines.update(pot={"quantity": 1, "price": 9}))
    expected.lines["pot"] = {"quantity": 1, "price": 9}
    assert await cart.get() == expected
    assert header(raw, tenant)[6] == "3"
    with pytest.raises(omnistate.SchemaMismatch, match="writes="):
        await old.get()
    with pytest.raises(omnistate.SchemaMismatch):
        await old.update(lambda value: setattr(value, "note", "old code"))
    assert await cart.get() == expected


@pytest.mark.parametrize("verb", ["patch", "put", "remove", "increment", "expire", "set", "delete"])
async def test_an_operation_on_an_old_document_brings_it_over(
    omni: Client, raw: Redis, tenant: str, old: Any, verb: str
) -> None:
    cart = omni.customer("ana").state(CartV2)
    expected = CartV2(lines={"cup": {"quantity": 2, "price": 0}}, note="gift", visits=7)
    if verb == "patch":
        await cart.patch(note="new")
        expected.note = "new"
    elif verb == "put":
        await cart.put("lines", "pot", {"quantity": 1})
        expected.lines["pot"] = {"quantity": 1}
    elif verb == "remove":
        await cart.remove("lines", "cup")
        expected.lines = {}
    elif verb == "increment":
        assert await cart.increment("visits", by=2) == 9
        expected.visits = 9
    elif verb == "expire":
        await cart.expire("note", after=None)
    elif verb == "set":
        expected = CartV2(note="all new")
        await cart.set(expected)
    else:
        assert await cart.delete()
        assert await cart.get() == CartV2()
        return
    assert await cart.get() == expected
    assert header(raw, tenant)[6] == "2"


async def test_while_a_deployment_is_replaced_both_read_and_write(
    omni: Client, raw: Redis, tenant: str, old: Any
) -> None:
    new = omni.customer("ana").state(CartV2WritesV1)
    assert (await new.get()).lines == {"cup": {"quantity": 2, "price": 0}}

    async def by_the_new(number: int) -> None:
        await new.update(lambda value: value.lines.update({f"new-{number}": {"quantity": number, "price": 0}}))
        await new.increment("visits")

    async def by_the_old(number: int) -> None:
        await old.update(lambda value: value.items.update({f"old-{number}": number}))
        await old.increment("visits")
        await old.put("items", f"put-{number}", number)

    await asyncio.gather(*(one(number) for number in range(10) for one in (by_the_new, by_the_old)))
    expected = {"cup": 2} | {f"{who}-{n}": n for n in range(10) for who in ("new", "old", "put")}
    assert await old.get() == CartV1(items=expected, note="gift", visits=27)
    assert {sku: line["quantity"] for sku, line in (await new.get()).lines.items()} == expected
    assert header(raw, tenant)[6] == "1"
    last = omni.customer("ana").state(CartV2)  # the deployment is over
    await last.put("lines", "pot", {"quantity": 1, "price": 5})
    assert header(raw, tenant)[6] == "2"
    assert (await last.get()).lines["pot"]["price"] == 5


@pytest.mark.parametrize("first", ["nobody", "old", "new"])
async def test_old_code_operates_on_what_new_code_wrote_and_the_other_way_round(
    omni: Client, raw: Redis, tenant: str, first: str
) -> None:
    before, after = omni.customer("ana").state(CartV1), omni.customer("ana").state(CartV2WritesV1)
    if first == "old":
        await before.put("items", "cup", 0)
    elif first == "new":
        await after.put("lines", "cup", {"quantity": 0, "price": 0})

    async def by_the_old(number: int) -> None:
        await before.increment("items", "cup")
        await before.put("items", f"gone-{number}", 1)
        await before.remove("items", f"gone-{number}")
        await before.put("items", f"old-{number}", number)

    async def by_the_new(number: int) -> None:
        await after.increment("visits")
        await after.put("lines", f"new-{number}", {"quantity": number, "price": 0})
        await after.put("lines", f"away-{number}", {"quantity": 1, "price": 0})
        await after.remove("lines", f"away-{number}")

    await asyncio.gather(*(one(number) for number in range(8) for one in (by_the_old, by_the_new)))
    expected = {"cup": 8} | {f"{who}-{n}": n for n in range(8) for who in ("old", "new")}
    assert await before.get() == CartV1(items=expected, visits=8)
    assert {sku: line["quantity"] for sku, line in (await after.get()).lines.items()} == expected
    stored = raw.hgetall(Keyspace(tenant).customer("ana").key("doc", "Trolley"))
    assert stored.keys() == {b"visits"} | {f"items:{sku}".encode() for sku in expected}  # type: ignore[union-attr]


async def test_a_step_down_that_does_not_say_what_is_a_mapping_is_refused_before_it_writes(
    omni: Client, raw: Redis, tenant: str
) -> None:
    class Unsaid(omnistate.State, name="Trolley", version=2, writes=1):
        lines: dict[str, dict[str, int]] = {}

        up = migrate(1, 2)(to_lines)
        down = migrate(2, 1)(to_items)

    with pytest.raises(omnistate.InvalidDeclaration, match=r"@migrate\(2, 1, mappings=\{'items'\}\)"):
        await omni.customer("ana").state(Unsaid).put("lines", "cup", {"quantity": 1})
    assert raw.exists(Keyspace(tenant).customer("ana").key("doc", "Trolley")) == 0


async def test_watchers_follow_over_a_change_of_the_class(omni: Client, old: Any) -> None:
    new = omni.customer("ana").state(CartV2)
    seen: list[CartV2] = []

    async def watch() -> None:
        async for change in new.watch():
            seen.append(change.value)
            if change.value.note == "end":
                return

    task = asyncio.create_task(watch())
    while not seen:
        await asyncio.sleep(0.001)
    await old.put("items", "pot", 3)
    await new.put("lines", "pan", {"quantity": 4, "price": 1})
    await new.patch(note="end")
    await asyncio.wait_for(task, 5)
    assert seen[0].lines == {"cup": {"quantity": 2, "price": 0}}
    assert seen[-1] == await new.get()
    assert seen[-1].lines.keys() == {"cup", "pot", "pan"}


async def test_fields_of_a_newer_class_stay_also_when_the_document_is_rewritten(
    omni: Client, raw: Redis, tenant: str, old: Any
) -> None:
    key = Keyspace(tenant).customer("ana").key("doc", "Trolley")
    raw.hset(key, "loyalty", '"gold"')
    await old.update(lambda value: value.items.update(x=1))
    await omni.customer("ana").state(CartV2).patch(note="y")
    assert raw.hget(key, "loyalty") == b'"gold"'


async def test_a_field_that_no_longer_fits_is_told_and_the_others_are_read(
    omni: Client, raw: Redis, tenant: str, old: Any
) -> None:
    class Other(omnistate.State, name="Trolley"):
        items: dict[str, int] = {}
        note: int = 0
        visits: int = 0

    handle, key = omni.customer("ana").state(Other), Keyspace(tenant).customer("ana").key("doc", "Trolley")
    before = raw.hgetall(key)
    with pytest.raises(omnistate.SchemaMismatch) as refused:
        await handle.get()
    assert refused.value.fields.keys() == {"note"}
    with pytest.raises(omnistate.SchemaMismatch):
        await handle.update(lambda value: value.items.clear())
    snapshot = await handle.read(partial=True)
    assert (snapshot.value, snapshot.unreadable.keys()) == (Other(items={"cup": 2}, visits=7), {"note"})
    assert raw.hgetall(key) == before
    await handle.increment("visits")  # other fields are written as ever
    assert raw.hget(key, "note") == b'"gift"'


async def test_a_migration_that_fails_leaves_the_document_as_it_was(
    omni: Client, raw: Redis, tenant: str, old: Any
) -> None:
    class Broken(omnistate.State, name="Trolley", version=2):
        note: str = ""

        @migrate(1, 2)
        def fail(fields: dict[str, Any]) -> None:  # noqa: N805
            fields["note"] = fields["no such field"]

    class Unknown(omnistate.State, name="Trolley", version=5):
        note: str = ""

    key = Keyspace(tenant).customer("ana").key("doc", "Trolley")
    before = raw.hgetall(key)
    for kind, word in ((Broken, "KeyError"), (Unknown, r"@migrate\(1, 5\)")):
        with pytest.raises(omnistate.SchemaMismatch, match=word):
            await omni.customer("ana").state(kind).get()
        with pytest.raises(omnistate.SchemaMismatch):
            await omni.customer("ana").state(kind).patch(note="x")
    assert raw.hgetall(key) == before


async def test_a_rewritten_document_keeps_its_life_and_the_deadlines_of_its_entries(
    omni: Client, raw: Redis, tenant: str, old: Any
) -> None:
    from datetime import timedelta

    await old.put("items", "held", 1, ttl=timedelta(hours=1))

    class Same(omnistate.State, name="Trolley", version=2):
        items: dict[str, int] = {}
        note: str = ""
        visits: int = 0

        @migrate(1, 2)
        def nothing(fields: dict[str, Any]) -> None:  # noqa: N805
            """Nothing to do."""

    await omni.customer("ana").state(Same).patch(note="rewritten")
    fields = raw.hgetall(Keyspace(tenant).customer("ana").key("doc", "Trolley"))
    assert b"!items:held" in fields
    assert any(word.startswith("next=") for word in header(raw, tenant))


def test_a_migration_names_two_versions() -> None:
    for bad in ((1, 1), (0, 1), ("1", 2)):
        with pytest.raises(omnistate.InvalidDeclaration):
            migrate(*bad)  # type: ignore[arg-type]


class TrolleyV1(omnistate.State, name="Trolley"):
    items: dict[str, int] = {}
    note: str = ""
    visits: int = 0


class Renamed(omnistate.State, name="Trolley", version=2, indexes={"visits"}):
    items: dict[str, int] = {}
    remark: str = ""
    visits: int = 0

    @migrate(1, 2)
    def up(fields: dict[str, Any]) -> None:  # noqa: N805
        fields["remark"] = fields.pop("note", "")

    @migrate(2, 1)
    def down(fields: dict[str, Any]) -> None:  # noqa: N805
        fields["note"] = fields.pop("remark", "")


class RenamedWritesV1(Renamed, name="Trolley", version=2, writes=1, indexes={"visits"}):
    pass


@pytest.fixture
async def trolley(omni: Client) -> omnistate.StateHandle[TrolleyV1]:
    handle = omni.customer("ana").state(TrolleyV1)
    await handle.set(TrolleyV1(items={"cup": 2}, note="gift", visits=7))
    return handle


@pytest.mark.parametrize("kind", [Renamed, RenamedWritesV1])
@pytest.mark.parametrize("verb", ["patch", "put", "remove", "increment", "expire", "set", "delete", "anew", "get"])
async def test_a_transaction_brings_an_old_document_over(
    omni: Client, raw: Redis, tenant: str, trolley: Any, verb: str, kind: type[Renamed]
) -> None:
    ana = omni.customer("ana")
    expected = kind(items={"cup": 2}, remark="gift", visits=7)
    async with ana.transaction(operation_id="once") as tx:
        cart = tx.state(kind)
        if verb == "patch":
            cart.patch(remark="new")
            expected.remark = "new"
        elif verb == "put":
            cart.put("items", "pot", 1)
            expected.items["pot"] = 1
        elif verb == "remove":
            cart.remove("items", "cup")
            expected.items = {}
        elif verb == "increment":
            total = cart.increment("visits", by=2)
            expected.visits = 9
        elif verb == "expire":
            cart.expire("items", "cup", after=timedelta(hours=1))
        elif verb == "set":
            cart.set(kind(remark="all new"))
            expected = kind(remark="all new")
        elif verb == "delete":
            cart.delete()
            expected = kind()
        elif verb == "anew":
            cart.delete()
            cart.increment("visits", by=3)
            cart.patch(remark="anew")
            expected = kind(visits=3, remark="anew")
        else:
            value = await tx.get(kind)
            value.remark, value.items["pot"] = "read", 4
            expected.remark, expected.items["pot"] = "read", 4
    assert await ana.state(kind).get() == expected
    if verb == "increment":
        assert total.value == 9
        async with ana.transaction(operation_id="once") as tx:
            total = tx.state(kind).increment("visits", by=2)
        assert (total.value, tx.repeated, (await ana.state(kind).get()).visits) == (9, True, 9)
    if verb != "delete":
        assert header(raw, tenant, "Trolley")[6] == str(kind.__omnistate__.options.writes)
        assert [one.value async for one in omni.query(kind).where("visits", equals=expected.visits)] == [expected]
    if kind is RenamedWritesV1:
        assert (await trolley.get()).note == expected.remark


async def test_a_transaction_reads_again_when_another_writer_was_first(connect: Any, trolley: Any) -> None:
    async with connect() as one, connect() as other:

        async def write(client: Client, sku: str, times: int) -> None:
            for _ in range(times):
                async with client.customer("ana").transaction() as tx:
                    tx.state(RenamedWritesV1).increment("items", sku)
                    tx.state(RenamedWritesV1).increment("visits")

        await asyncio.gather(write(one, "a", 30), write(other, "b", 30), write(other, "c", 30))
        found = await one.customer("ana").state(RenamedWritesV1).get()
        assert found == RenamedWritesV1(items={"cup": 2, "a": 30, "b": 30, "c": 30}, remark="gift", visits=97)


async def test_update_of_several_documents_brings_them_over(omni: Client, trolley: Any) -> None:
    done = await omni.customer("ana").update(lambda cart: setattr(cart, "remark", "new"), Renamed)
    assert done.position is not None
    assert (await omni.customer("ana").state(Renamed).get()).remark == "new"


async def test_what_a_class_does_not_know_stays_through_many_updates_that_write_an_older_version(omni: Client) -> None:
    class Other(omnistate.State, name="Trolley"):
        note: str = ""
        colour: str = ""

    await omni.customer("ana").state(Other).patch(note="gift", colour="red")
    cart = omni.customer("ana").state(RenamedWritesV1)
    for visits in (1, 2, 3):
        await cart.update(lambda value, visits=visits: setattr(value, "visits", visits))
    assert (await omni.customer("ana").state(Other).get()).colour == "red"


async def test_a_sum_in_an_older_version_is_remembered_under_its_operation_id(omni: Client, trolley: Any) -> None:
    cart = omni.customer("ana").state(RenamedWritesV1)
    assert [await cart.increment("visits", by=2, operation_id="once") for _ in range(2)] == [9, 9]
    assert (await cart.get()).visits == 9
