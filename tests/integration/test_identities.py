"""Identities: how sure they are, unlinking, taking, devices, guards, and what other tenants see of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis import Redis

import omnistate
from omnistate import ASSERTED, VERIFIED, ChannelPolicy, Client, Customer, Position
from shop import Cart

Connect = Callable[..., Client]


async def known(customer: Customer) -> dict[tuple[str, str], omnistate.Confidence]:
    return {(one.channel, one.address): one.confidence for one in await customer.identities()}


async def events(customer: Customer, after: Position) -> list[tuple[str, str, str | None]]:
    """Type, channel and confidence of what happened since."""
    end, found = await customer.position(), []
    while len(found) < end.offset - after.offset:
        async for event in customer.events(after=after):
            assert event.data.keys() <= {"type", "channel", "confidence", "time"}
            found.append((event.type, event.data["channel"], event.data.get("confidence")))
            if event.position == end:
                break
    return found


async def test_an_identity_is_asserted_until_it_is_verified_and_stays_verified(omni: Client) -> None:
    ana = await omni.identify("crm", "17")
    [identity] = await ana.identities()
    assert identity.confidence is ASSERTED
    assert identity.linked is not None
    assert abs(datetime.now(UTC) - identity.linked) < timedelta(minutes=1)
    assert (await omni.identify("crm", "17", proof=VERIFIED)).id == ana.id
    for _ in range(2):
        await omni.identify("crm", "17")
        await ana.link("crm", "17", proof=ASSERTED)
    assert [*await ana.identities()] == [omnistate.Identity("crm", "17", VERIFIED, identity.linked)]


async def test_linking_says_how_sure_it_is(omni: Client) -> None:
    ana = await omni.identify("web", "ana")
    await ana.link("crm", "17", proof=VERIFIED)
    await ana.link("shop", "ana")
    assert await known(ana) == {("web", "ana"): ASSERTED, ("crm", "17"): VERIFIED, ("shop", "ana"): ASSERTED}
    await ana.link("shop", "ana", proof=VERIFIED)
    assert (await known(ana))["shop", "ana"] == VERIFIED


async def test_proof_of_somebody_elses_identity_does_not_make_the_owner_surer(omni: Client) -> None:
    ana, ben = await omni.identify("crm", "17"), await omni.identify("crm", "18")
    with pytest.raises(omnistate.IdentityTaken):
        await ben.link("crm", "17", proof=VERIFIED)
    assert await known(ana) == {("crm", "17"): ASSERTED}


@pytest.mark.parametrize("proof", ["certain", None, 1, True])
async def test_what_is_no_confidence_is_refused(omni: Client, proof: Any) -> None:
    with pytest.raises(omnistate.InvalidInput, match="VERIFIED"):
        await omni.identify("crm", "17", proof=proof)


async def test_an_unlinked_identity_leads_to_somebody_new(omni: Client) -> None:
    ana = await omni.identify("web", "ana")
    await ana.link("crm", "17", proof=VERIFIED)
    assert await ana.unlink("crm", "17")
    assert await known(ana) == {("web", "ana"): ASSERTED}
    other = await omni.identify("crm", "17")
    assert other.id != ana.id
    assert await known(other) == {("crm", "17"): ASSERTED}  # its proof went with it
    await other.unlink("crm", "17")
    await ana.link("crm", "17")  # and may come back
    assert await known(ana) == {("web", "ana"): ASSERTED, ("crm", "17"): ASSERTED}


async def test_unlinking_what_is_nobodys_and_what_is_somebody_elses_looks_alike(omni: Client) -> None:
    ana, ben = await omni.identify("web", "ana"), await omni.identify("web", "ben")
    assert not await ana.unlink("web", "nobody")
    assert not await ana.unlink("web", "ben")
    assert (await omni.identify("web", "ben")).id == ben.id
    assert await ana.unlink("web", "ana")
    assert not await ana.unlink("web", "ana")


async def test_what_happens_to_identities_is_told_without_their_addresses(omni: Client) -> None:
    ana = await omni.identify("web", "visitor-0815")
    start = await ana.position()
    await ana.link("crm", "17")
    await ana.link("crm", "17", proof=VERIFIED)
    await ana.link("crm", "17", proof=VERIFIED)
    await ana.unlink("crm", "17")
    await ana.unlink("web", "visitor-0815")
    assert await events(ana, start) == [
        ("identity.linked", "crm", "asserted"),
        ("identity.verified", "crm", "verified"),
        ("identity.unlinked", "crm", "verified"),
        ("identity.unlinked", "web", "asserted"),
    ]


async def test_a_merge_keeps_how_sure_identities_are_and_since_when(omni: Client) -> None:
    ana, ben = await omni.identify("web", "ana"), await omni.identify("web", "ben")
    await ben.link("crm", "17", proof=VERIFIED)
    before = {one.channel + one.address: one for one in [*await ana.identities(), *await ben.identities()]}
    await ana.merge(ben)
    assert {one.channel + one.address: one for one in await ana.identities()} == before
    for call in (ben.link("web", "new"), ben.unlink("crm", "17")):
        with pytest.raises(omnistate.CustomerMerged):
            await call
    assert await ana.unlink("crm", "17")


async def test_unlinking_against_identifying_leaves_one_owner(omni: Client) -> None:
    for number in range(1, 11):
        address = f"{number}"
        ana = await omni.identify("crm", address)
        found = await asyncio.gather(
            ana.unlink("crm", address), *(omni.identify("crm", address) for _ in range(5)), ana.unlink("crm", address)
        )
        owner = await omni.identify("crm", address)
        assert {one.id for one in found[1:-1]} <= {ana.id, owner.id}
        assert owner.id != ana.id
        assert await known(owner) == {("crm", address): ASSERTED}
        assert await known(ana) == {}


async def test_linking_against_linking_has_one_winner(omni: Client) -> None:
    for number in range(1, 11):
        people = [omni.customer(f"{name}-{number}") for name in ("ana", "ben", "cy")]
        calls = [one.link("crm", f"{number}") for one in people]
        results = await asyncio.gather(*calls, return_exceptions=True)
        refused = [one for one in results if one is not None]
        owner = await omni.identify("crm", f"{number}")
        assert len(refused) == 2
        assert {(type(one), one.owner) for one in refused} == {(omnistate.IdentityTaken, owner.id)}  # type: ignore[union-attr]
        assert [one.id for one in people if await known(one)] == [owner.id]


async def test_taking_needs_proof_and_takes_only_what_was_asserted(omni: Client) -> None:
    ana, ben = await omni.identify("crm", "17"), await omni.identify("shop", "ben")
    start, his = await ana.position(), await ben.position()
    for options in ({}, {"proof": VERIFIED}, {"take": True}):
        with pytest.raises(omnistate.IdentityTaken):
            await ben.link("crm", "17", **options)
    assert await ben.link("crm", "17", proof=VERIFIED, take=True) == ana.id
    assert (await omni.identify("crm", "17")).id == ben.id
    assert (await known(ana), await known(ben)) == ({}, {("shop", "ben"): ASSERTED, ("crm", "17"): VERIFIED})
    assert await events(ana, start) == [("identity.unlinked", "crm", "asserted")]
    assert await events(ben, his) == [("identity.linked", "crm", "verified")]
    assert await ben.link("crm", "17", proof=VERIFIED, take=True) is None
    with pytest.raises(omnistate.IdentityTaken):  # one proof against another is for people to decide
        await ana.link("crm", "17", proof=VERIFIED, take=True)


@pytest.mark.parametrize(("take", "taken"), [("never", False), ("asserted", False), ("always", True)])
async def test_the_policy_says_what_may_be_taken(connect: Connect, take: Any, taken: bool) -> None:
    async with connect(channels={"crm": ChannelPolicy(take=take)}) as omni:
        ana, ben = await omni.identify("crm", "17", proof=VERIFIED), omni.customer("ben")
        if taken:  # a number that was given to somebody new
            assert await ben.link("crm", "17", proof=VERIFIED, take=True) == ana.id
        else:
            with pytest.raises(omnistate.IdentityTaken) as refused:
                await ben.link("crm", "17", proof=VERIFIED, take=True)
            assert refused.value.owner == ana.id


async def test_the_number_of_identities_on_a_channel_is_limited(connect: Connect) -> None:
    async with connect(channels={"crm": ChannelPolicy(limit=3)}) as omni:
        ana = omni.customer("ana")
        results = await asyncio.gather(
            *(ana.link("crm", f"{number}") for number in range(1, 9)), return_exceptions=True
        )
        refused = [one for one in results if one is not None]
        assert len(refused) == 5
        assert {type(one) for one in refused} == {omnistate.QuotaExceeded}
        assert refused[0].limit == 3  # type: ignore[union-attr]
        held = await known(ana)
        assert len(held) == 3
        await ana.link("shop", "ana")
        for number in range(1, 9):  # what was refused is nobody's
            owner = await omni.identify("crm", f"{number}")
            assert (owner.id == ana.id) == (("crm", f"{number}") in held)
        await ana.unlink(*next(iter(held)))
        await ana.link("crm", "9")


async def test_blocked_values_are_refused_everywhere(omni: Client) -> None:
    ana = omni.customer("ana")
    calls = [omni.identify("crm", "null"), ana.link("crm", "NULL"), ana.sign_out("web", "0000")]
    calls += [omni.identify_all([("crm", "17"), ("web", "undefined")])]  # type: ignore[list-item]
    for call in calls:
        with pytest.raises(omnistate.IdentityBlocked):
            await call
    assert await known(ana) == {}


async def test_spellings_of_one_address_are_one_identity_shown_as_it_was_given(omni: Client) -> None:
    ana = await omni.identify("sms", " +44 7700 900123")
    assert (await omni.identify("sms", "tel:+44-7700-900123")).id == ana.id
    await ana.link("email", "Ana@Example.com")
    await ana.link("email", "ana@example.com")
    assert {one.address for one in await ana.identities()} == {" +44 7700 900123", "Ana@Example.com"}
    ben = omni.customer("ben")
    await ben.merge(ana)
    assert (await omni.identify("sms", "+447700900123")).id == "ben"
    assert {one.address for one in await ben.identities()} == {" +44 7700 900123", "Ana@Example.com"}
    assert await ben.unlink("email", "ANA@example.com")


async def person(omni: Client, name: str) -> Customer:
    return await omni.identify("crm", name, proof=VERIFIED)


async def test_a_device_that_two_people_use_goes_from_one_to_the_other_and_nobody_is_merged(omni: Client) -> None:
    ana, ben = await person(omni, "ana"), await person(omni, "ben")
    await ana.link("web", "tablet")
    assert await ben.link("web", "tablet") == ana.id
    assert (await omni.identify("web", "tablet")).id == ben.id
    assert (await known(ana), await known(ben)) == (
        {("crm", "ana"): VERIFIED},
        {("crm", "ben"): VERIFIED, ("web", "tablet"): ASSERTED},
    )


async def test_a_device_stays_where_it_is_unless_both_are_known(omni: Client) -> None:
    """What an anonymous visitor has collected would be lost; and who has proven nothing takes nothing."""
    visitor, ben = await omni.identify("web", "tablet"), await person(omni, "ben")
    with pytest.raises(omnistate.IdentityTaken) as refused:
        await ben.link("web", "tablet")
    assert refused.value.owner == visitor.id
    await ben.merge(visitor)
    cy = await omni.identify("crm", "cy")
    with pytest.raises(omnistate.IdentityTaken):
        await cy.link("web", "tablet")
    assert (await omni.identify("web", "tablet")).id == ben.id


async def test_signing_out_gives_the_device_to_somebody_new_who_sees_nothing(omni: Client) -> None:
    ana = await person(omni, "ana")
    await ana.link("web", "tablet")
    await ana.state(Cart).update(Cart.add, "cup")
    fresh = await ana.sign_out("web", "tablet")
    assert fresh.id != ana.id
    assert (await omni.identify("web", "tablet")).id == fresh.id
    assert not (await fresh.state(Cart).read()).exists
    assert (await known(ana), await known(fresh)) == ({("crm", "ana"): VERIFIED}, {("web", "tablet"): ASSERTED})
    assert (await ana.sign_out("web", "tablet")).id == fresh.id
    new = await ana.sign_out("web", "another")
    assert new.id not in (ana.id, fresh.id)
    assert (await omni.identify("web", "another")).id == new.id


async def test_signing_out_at_once_makes_one_new_customer(omni: Client) -> None:
    ana = await person(omni, "ana")
    await ana.link("web", "tablet")
    people = await asyncio.gather(*(ana.sign_out("web", "tablet") for _ in range(10)))
    assert len({one.id for one in people}) == 1
    assert await known(people[0]) == {("web", "tablet"): ASSERTED}


async def test_signing_out_never_gives_the_survivor_of_a_merge(omni: Client) -> None:
    for number in range(1, 11):
        ana, ben = await person(omni, f"ana-{number}"), await person(omni, f"ben-{number}")
        await ana.link("web", f"tablet-{number}")
        signed_out, merged = await asyncio.gather(
            ana.sign_out("web", f"tablet-{number}"), ben.merge(ana), return_exceptions=True
        )
        assert merged is None
        owner = await omni.identify("web", f"tablet-{number}")
        if isinstance(signed_out, BaseException):
            assert isinstance(signed_out, omnistate.CustomerMerged)
            assert (signed_out.into, owner.id) == (ben.id, ben.id)
        else:
            assert owner.id == signed_out.id != ben.id
        holders = [one for one in (ben, owner) if ("web", f"tablet-{number}") in await known(one)]
        assert {one.id for one in holders} == {owner.id}


async def test_of_several_identities_the_surest_decides(connect: Connect) -> None:
    async with connect(channels={"shop": ChannelPolicy(priority=5)}) as omni:
        ana, ben = await omni.identify("crm", "ana"), await omni.identify("shop", "ben")
        found, elsewhere = await omni.identify_all([("crm", "ana"), ("shop", "ben"), ("web", "tablet")])
        assert found.id == ben.id
        assert [(one.channel, one.owner) for one in elsewhere] == [("crm", ana.id)]
        assert ("web", "tablet") in await known(ben)
        found, elsewhere = await omni.identify_all([("shop", "ben"), ("crm", "ana", VERIFIED)])
        assert found.id == ana.id
        assert [(one.channel, one.owner) for one in elsewhere] == [("shop", ben.id)]


async def test_a_claim_beside_a_proof_gives_nobody_access(omni: Client) -> None:
    """Somebody says the victim's address, and proves their own."""
    victim = await omni.identify("email", "victim@example.com", proof=VERIFIED)
    found, elsewhere = await omni.identify_all([("email", "victim@example.com"), ("crm", "thief", VERIFIED)])
    assert found.id != victim.id
    assert [(one.channel, one.owner) for one in elsewhere] == [("email", victim.id)]
    assert await known(victim) == {("email", "victim@example.com"): VERIFIED}
    assert await known(found) == {("crm", "thief"): VERIFIED}


@pytest.mark.parametrize(
    "presented", [[], [("web", f"{n}") for n in range(1, 22)], [("web",)], ["web"], [("web", "a", "sure")]]
)
async def test_what_cannot_be_presented_is_refused(omni: Client, presented: Any) -> None:
    with pytest.raises(omnistate.InvalidInput):
        await omni.identify_all(presented)


async def test_an_identity_that_nobody_comes_with_ends_and_leaves_nothing(
    connect: Connect, raw: Redis, tenant: str
) -> None:
    async with connect(channels={"web": ChannelPolicy(ttl=timedelta(days=10))}) as omni:
        visitor = await omni.identify("web", "tablet")
        key, digest = omni.keyspace.identity("web", "tablet")
        listed = visitor._log.key("identities")
        day = 86_400_000
        now = int(raw.pexpiretime(key)) - 10 * day
        assert now + 29 * day < int(raw.pexpiretime(listed)) <= now + 30 * day
        assert 0 < raw.pexpiretime(visitor._log.meta) <= now + 35 * day
        await ended(raw, key, listed, digest, days=4)
        assert (await omni.identify("web", "tablet")).id == visitor.id
        assert int(raw.pexpiretime(key)) < now + 7 * day  # half of it is not over
        await ended(raw, key, listed, digest, days=2)
        assert (await omni.identify("web", "tablet")).id == visitor.id
        assert now + 10 * day <= int(raw.pexpiretime(key)) < now + 11 * day
        assert int(raw.pexpiretime(listed)) > now + 29 * day
        raw.delete(key)  # the server's own expiry
        await ended(raw, key, listed, digest, days=11)
        assert await visitor.identities() == []
        other = await omni.identify("web", "tablet")
        assert other.id != visitor.id
        await visitor.link("crm", "17")
        assert (raw.pexpiretime(listed), raw.hlen(listed)) == (-1, 2)
        await ended(raw, key, listed, digest, days=20)
        await visitor.link("shop", "ana")
        assert raw.hlen(listed) == 2  # what is gone was removed


async def ended(raw: Redis, key: bytes, listed: bytes, digest: str, *, days: int) -> None:
    """Moves the ends as if these days had passed."""
    passed = days * 86_400_000
    if raw.exists(key):
        ends = int(raw.hget(key, "ends")) - passed  # type: ignore[arg-type]
        raw.hset(key, "ends", str(ends))
        raw.pexpireat(key, ends)
    entry = raw.hget(listed, digest)
    assert entry is not None
    tenure, proof, linked, ends_at, gone, rest = entry.split(b" ", 5)
    moved = (b"%d" % (int(one) - passed) for one in (ends_at, gone))
    raw.hset(listed, digest, b" ".join([tenure, proof, linked, *moved, rest]))


async def test_an_identity_that_stays_is_not_shortened_by_a_policy_with_an_end(connect: Connect, raw: Redis) -> None:
    async with connect() as omni:
        visitor = await omni.identify("web", "tablet")
        key, _ = omni.keyspace.identity("web", "tablet")
    async with connect(channels={"web": ChannelPolicy(ttl=timedelta(days=1))}) as omni:
        assert (await omni.identify("web", "tablet")).id == visitor.id
        assert raw.pttl(key) == -1
        await omni.identify("web", "phone")
        key, _ = omni.keyspace.identity("web", "phone")
        assert raw.pttl(key) > 0
    async with connect() as omni:
        other = await omni.identify("web", "phone")
        assert (raw.pttl(key), raw.pttl(other._log.key("identities"))) == (-1, -1)


async def test_two_tenants_do_not_see_each_other(connect: Connect, tenant: str) -> None:
    async with connect() as omni, connect(tenant=tenant + "-2") as other:
        ana = await omni.identify("crm", "17", proof=VERIFIED)
        theirs = await other.identify("crm", "17")
        assert theirs.id != ana.id
        assert await known(theirs) == {("crm", "17"): ASSERTED}
        start = await ana.position()
        for stranger in (other.customer(ana.id), other.customer("nobody")):  # foreign and absent answer alike
            assert await stranger.identities() == []
            assert not await stranger.unlink("crm", "17")
            with pytest.raises(omnistate.IdentityTaken) as refused:
                await stranger.link("crm", "17", proof=VERIFIED)
            assert refused.value.owner == theirs.id
            assert (await stranger.sign_out("crm", "17")).id == theirs.id
            assert await stranger.outcome("anything") is False
        assert await theirs.unlink("crm", "17")
        found, elsewhere = await other.identify_all([("crm", "17", VERIFIED), ("web", "tablet")])
        assert (found.id != ana.id, elsewhere) == (True, [])
        assert await known(ana) == {("crm", "17"): VERIFIED}
        assert (await omni.identify("crm", "17")).id == ana.id
        assert await events(ana, start) == []


@contextlib.contextmanager
def before(omni: Client, function: str, work: Callable[[], Awaitable[object]]) -> Iterator[list[Any]]:
    """Something else happens before this client's next call of a function; gives the commands of that function."""
    link, seen = omni.services.link, list[Any]()
    execute = link.execute

    async def interrupted(command: Any, **options: Any) -> Any:
        if command.function == function:
            seen.append(command)
            if len(seen) == 1:
                await work()
        return await execute(command, **options)

    link.execute = interrupted  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        link.execute = execute  # type: ignore[method-assign]
    assert seen


async def test_what_was_proven_while_somebody_judged_is_not_taken(connect: Connect) -> None:
    async with connect() as omni, connect() as other:
        ana, ben = await omni.identify("crm", "17"), omni.customer("ben")
        proves = before(omni, "identity_move", lambda: other.identify("crm", "17", proof=VERIFIED))
        with proves, pytest.raises(omnistate.IdentityTaken):
            await ben.link("crm", "17", proof=VERIFIED, take=True)
        assert await known(ana) == {("crm", "17"): VERIFIED}


async def test_a_merge_while_somebody_signs_out_is_told(connect: Connect) -> None:
    async with connect() as omni, connect() as other:
        ana, ben = await person(omni, "ana"), await person(omni, "ben")
        await ana.link("web", "tablet")
        merges = before(omni, "identity_look", lambda: other.customer(ben.id).merge(other.customer(ana.id)))
        with merges, pytest.raises(omnistate.CustomerMerged) as told:
            await ana.sign_out("web", "tablet")
        assert told.value.into == ben.id
        assert (await omni.identify("web", "tablet")).id == ben.id


async def test_a_merge_while_somebody_links_takes_the_identity_along(connect: Connect) -> None:
    for function in ("identity_claim", "customer_note", "identity_settle"):
        async with connect() as omni, connect() as other:
            ana, ben = await omni.identify("crm", f"ana-{function}"), await omni.identify("crm", f"ben-{function}")
            merges = before(omni, function, lambda a=ana, b=ben: other.customer(b.id).merge(other.customer(a.id)))  # type: ignore[misc]
            with merges, contextlib.suppress(omnistate.CustomerMerged):
                await ana.link("shop", function)
            assert (await omni.identify("shop", function)).id == ben.id
            assert ("shop", function) in await known(ben)


async def test_what_arrives_late_brings_nothing_back(connect: Connect) -> None:
    """A caller's second step, which arrives long after others have finished it and undone it again."""
    async with connect() as omni, connect() as other:
        ana = omni.customer("ana")

        async def finish_and_undo(*, proof: omnistate.Confidence) -> None:
            await other.identify("crm", "17", proof=proof)
            assert await other.customer("ana").unlink("crm", "17")
            raise ZeroDivisionError  # the caller dies

        for function, proof in (("customer_note", ASSERTED), ("customer_strengthen", VERIFIED)):
            if proof == VERIFIED:
                await ana.link("crm", "17")
            dies = before(omni, function, lambda proof=proof: finish_and_undo(proof=proof))  # type: ignore[misc]
            with dies as late, pytest.raises(ZeroDivisionError):
                await ana.link("crm", "17", proof=proof)
            await omni.services.link.execute(late[0])
            assert await known(ana) == {}
        assert (await omni.identify("crm", "17")).id != "ana"
