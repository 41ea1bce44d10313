"""Erasure: nothing is left of a customer, nothing comes back, and nobody else loses anything."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from redis import Redis

import omnistate
from erasable import (
    CHANNELS,
    COLLECTIONS,
    KEYRING,
    LISTED,
    STATES,
    Canaries,
    Planted,
    content,
    found,
    keys_of_tenant,
    kind_of,
    plant,
    plant_merged,
)
from omnistate import CUSTOMER, Client, Customer, CustomerErased, CustomerMerged
from omnistate.conversation._flows import hand_off_to_queue
from omnistate.customer import _erase
from omnistate.customer._identity import claim, forget, look
from omnistate.customer._linking import Claim, Target, link, settle
from omnistate.ops import Bulk, erase_again, export_all, import_all
from omnistate.store import Keyspace, run
from shop import Cart

# Every kind of key in which a customer can be found. A new one makes the test below fail: is it found by the walk of
# an erasure (it is, when it begins as the customer's keys do), and is it in an export?
WHERE = {
    "agenda",
    "<customer>:meta",
    "<customer>:older",
    "<customer>:log",
    "<customer>:docs",
    "<customer>:identities",
    "<customer>:merged",
    "<customer>:doc:<name>",
    "<customer>:doc:<name>:.history",
    "<customer>:doc:<name>:.due",
    "<customer>:doc:<name>:.ready",
    "<customer>:doc:<name>:.leased",
    "<customer>:doc:<name>:.other",
    "<customer>:doc:<name>:session:<id>",
    "<customer>:doc:<name>:conversation:<id>",
    "<customer>:doc:<name>:conversation:<id>:.history",
    "<customer>:sessions",
    "endings",
    "<customer>:conversation:<id>",
    "<customer>:conversation:<id>:messages",
    "index:<name>",
    "identity",
    "q.<queue>:log",
    "q.<queue>:meta",
    "q.<queue>:waiting",
    "q.<queue>:since",
}
WHO = {"actor": "the operator", "reason": "request 4711"}


@pytest.fixture
async def omni(connect: Connect) -> Any:
    async with connect(keyring=KEYRING, channels=CHANNELS) as client:
        yield client


async def age(raw: Redis, omni: Client, customer: Customer) -> None:
    """Begins a new generation of operation ids, so that there is an old one."""
    meta = omni.keyspace.customer(customer.id).meta
    state, life = (one.decode().split() for one in raw.hmget(meta, "s", "life"))  # type: ignore[union-attr]
    raw.hset(meta, "s", " ".join([state[0][0] + "0" * 13, *state[1:]]))
    raw.hset(meta, "life", f"{life[0]} {life[1]} {int(life[2]) - 95_000_000}")
    await customer.state(Planted).patch(word="aged")


async def test_no_word_is_left_anywhere(omni: Client, raw: Redis, tenant: str) -> None:
    word = Canaries()
    ana = await plant(omni, word)
    await age(raw, omni, ana)
    await plant_merged(omni, word, ana)
    before = found(raw, tenant, word.words)
    assert not [place for place, keys in before.items() if not keys]  # the search finds every one of them
    await ana.erase(**WHO)
    assert {place: keys for place, keys in found(raw, tenant, word.words).items() if keys} == {}


async def test_there_is_no_kind_of_key_that_an_erasure_does_not_know(omni: Client, raw: Redis, tenant: str) -> None:
    word = Canaries()
    ana = await plant(omni, word)
    await age(raw, omni, ana)
    await plant_merged(omni, word, ana)
    named = {key for keys in found(raw, tenant, {"id": ana.id} | word.words).values() for key in keys}
    kinds = {kind_of(key, ana.id) for key in named if f"c.{word('merged-id')}:".encode() not in key}
    kinds |= {kind_of(key, word("merged-id")) for key in named}
    assert {one for one in kinds if "c.canary" not in one} <= WHERE
    assert WHERE - kinds <= {"<customer>:doc:<name>:.other"}  # a key that is there in passing only
    await ana.erase(**WHO)
    left = {key for keys in found(raw, tenant, {"id": ana.id} | word.words).values() for key in keys}
    assert left == set()


async def test_a_key_of_a_kind_that_is_not_known_yet_goes_too(omni: Client, raw: Redis) -> None:
    keys = omni.keyspace.customer("ana")
    await omni.customer("ana").state(Cart).patch(note="x")
    for new in (keys.key("new", "kind"), keys.key("doc", "X", ".new"), keys.key("session", "x", "new")):
        raw.set(new, "x")
    erased = await omni.erase("ana", **WHO)
    assert not list(raw.scan_iter(keys.prefix.replace(b"{", b"?").replace(b"}", b"?") + b"*"))
    assert erased.counts["others"] == 2


async def test_nobody_else_loses_anything(omni: Client, raw: Redis, tenant: str) -> None:
    """Neither customers whose ids begin alike, or are in the same partition, nor who waits in the same queues."""
    partition = omni.keyspace.customer("ana").common
    near = next(f"n{n}" for n in range(10_000) if omni.keyspace.customer(f"n{n}").common == partition)
    words = {name: Canaries() for name in ("ana", "anabel", near)}
    for name, word in words.items():
        word.words["id"] = name
        await plant(omni, word)
    others = {name: word.words for name, word in words.items() if name != "ana"}
    before = [
        found(raw, tenant, {place: one for place, one in word.items() if place != "id"}) for word in others.values()
    ]
    depth = await omni.queue("agents").depth()
    await omni.erase("ana", **WHO)
    after = [
        found(raw, tenant, {place: one for place, one in word.items() if place != "id"}) for word in others.values()
    ]
    assert after == before
    assert await omni.queue("agents").depth() == depth - 1 == 2
    for name in others:
        assert (await omni.customer(name).state(Planted).get()).word == words[name]("value")
        assert len(await omni.customer(name).identities()) == 4
        assert [one.customer_id async for one in omni.query(Planted).where("word", equals=words[name]("value"))] == [
            name
        ]
    assert await omni.queue("agents").claim("maria") is not None


async def test_who_was_merged_goes_too_and_who_was_merged_into_them(omni: Client, raw: Redis, tenant: str) -> None:
    word = Canaries()
    ana = await plant(omni, word)
    ben, cleo = omni.customer(word("ben")), omni.customer(word("cleo"))
    await cleo.start_session(word("cleo-session"))
    await ben.start_session(word("ben-session"))
    await ben.merge(cleo)
    await ana.merge(ben)
    erased = await ana.erase(**WHO)
    assert erased.merged == 2
    assert not any(found(raw, tenant, word.words).values())
    listed = await omni.erasures()
    assert len(listed) == 3
    assert [one.into for one in listed if one.digest == omni.keyspace.tombstone(ben.id)] == [erased.digest]


async def test_who_was_merged_away_is_erased_with_the_survivor(omni: Client) -> None:
    ana, ben = omni.customer("ana"), omni.customer("ben")
    await ben.start_session("web")
    await ana.merge(ben)
    for dry_run in (True, False):
        with pytest.raises(CustomerMerged):
            await ben.erase(**WHO, dry_run=dry_run)
    assert await ana.position()


async def test_a_merge_that_comes_too_late_leaves_somebody_who_can_be_erased(
    omni: Client, connect: Connect, raw: Redis, tenant: str
) -> None:
    word = Canaries()
    ana, ben = omni.customer("ana"), omni.customer(word("ben"))
    await ben.state(Cart).put("items", word("item"), 1)
    await ana.state(Cart).patch(note="x")
    steps = 0

    async def execute(command: Any, **_: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 2:  # ben is about to be frozen
            async with connect() as other:
                await other.erase("ana", **WHO)
        return await link.execute(command)

    class Between:
        timeout = 5.0

        def __init__(self) -> None:
            self.execute = execute

    services = omni.services
    link, services.link = services.link, Between()  # type: ignore[assignment]
    try:
        with pytest.raises(CustomerErased):
            await ana.merge(ben)
    finally:
        services.link = link
    await ben.erase(**WHO)
    assert not any(found(raw, tenant, word.words).values())


Connect = Callable[..., Client]
Verb = Callable[[Client, Customer], Awaitable[Any]]


@pytest.mark.parametrize(
    "verb",
    [
        lambda omni, ana: ana.state(Cart).patch(note="x"),
        lambda omni, ana: ana.state(Cart).set(Cart()),
        lambda omni, ana: ana.state(Cart).update(Cart.add, "cup"),
        lambda omni, ana: ana.state(Cart).update_once("id", Cart.add, "cup"),
        lambda omni, ana: ana.state(Cart).delete(),
        lambda omni, ana: ana.state(Cart).get(),
        lambda omni, ana: ana.update(lambda cart: cart.add("cup"), Cart),
        lambda omni, ana: ana.collection(LISTED).append("x"),
        lambda omni, ana: ana.link("web", "again"),
        lambda omni, ana: ana.start_session("web"),
        lambda omni, ana: ana.start_conversation("web"),
        lambda omni, ana: ana.position(),
        lambda omni, ana: ana.merge(omni.customer("ben")),
        lambda omni, ana: omni.customer("ben").merge(ana),
        lambda omni, ana: anext(ana.state(Cart).watch()),
        lambda omni, ana: anext(ana.events()),
        lambda omni, ana: ana.erase(**WHO, dry_run=True),
    ],
)
async def test_whatever_comes_later_is_refused(omni: Client, raw: Redis, tenant: str, verb: Verb) -> None:
    ana = omni.customer("ana")
    await ana.state(Cart).patch(note="x")
    await omni.customer("ben").position()
    await ana.erase(**WHO)
    with pytest.raises(CustomerErased) as raised:
        await verb(omni, ana)
    assert raised.value.customer == "ana"
    assert not [key for key in keys_of_tenant(raw, tenant) if b"c.ana:" in key]
    assert b"c.ana" not in content(raw, omni.keyspace.customer("ana").written[4])


async def test_what_was_open_before_is_refused(omni: Client) -> None:
    ana = omni.customer("ana")
    session, talk = await ana.start_session("web"), await ana.start_conversation("web")
    with pytest.raises(CustomerErased):
        async with ana.transaction() as tx:
            tx.state(Cart).patch(note="x")
            await ana.erase(**WHO)
    with pytest.raises(omnistate.SessionExpired):
        await session.touch()
    with pytest.raises(CustomerErased):
        await session.end()
    with pytest.raises(CustomerErased):
        await talk.say(CUSTOMER, "x")
    with pytest.raises(omnistate.ConversationNotFound):
        await talk.messages()
    with pytest.raises(CustomerErased):
        await talk.hand_off("agents")
    assert await omni.queue("agents").depth() == 0


async def test_watchers_are_told_and_end(omni: Client, connect: Connect) -> None:
    async with connect() as other:
        ana = other.customer("ana")
        before = await ana.position()
        await ana.state(Cart).patch(note="x")
        carts, events = ana.state(Cart).watch(), ana.events(after=before)
        async with contextlib.aclosing(carts), contextlib.aclosing(events):
            assert (await anext(carts)).value.note == "x"
            assert (await anext(events)).type == "state.changed"  # it listens now
            await omni.erase("ana", **WHO)
            assert (await anext(events)).type == "customer.erased"
            for ended in (events, carts):
                with pytest.raises(CustomerErased):
                    await anext(ended)


async def test_a_watcher_who_missed_the_event_ends_too(omni: Client) -> None:
    ana = omni.customer("ana")
    await ana.state(Cart).patch(note="x")
    position = await ana.position()
    await ana.erase(**WHO)
    with pytest.raises(CustomerErased):
        await anext(ana.state(Cart).watch(after=position))
    with pytest.raises(CustomerErased):
        await anext(ana.events(after=position))


async def test_near_caches_of_other_processes_drop_it(omni: Client, connect: Connect) -> None:
    class Near(omnistate.State, name="EraseNear", near_cache=True):
        word: str = ""

    await omni.customer("ana").state(Near).patch(word="x")
    async with connect() as other:
        near = other.customer("ana").state(Near)
        while other.stats().near_cache.hits == 0:
            assert (await near.get()).word == "x"
        await omni.erase("ana", **WHO)
        async with asyncio.timeout(5):
            with pytest.raises(CustomerErased):
                while True:
                    await near.get()
                    await asyncio.sleep(0.001)
        assert other.stats().near_cache.documents == 0


async def test_the_person_comes_back_as_somebody_new(omni: Client) -> None:
    ana = await omni.identify("web", "ana@example.com")
    await ana.state(Cart).patch(note="x")
    await ana.erase(**WHO)
    new = await omni.identify("web", "ana@example.com")
    assert new.id != ana.id
    assert (await new.state(Cart).get()).note == ""


async def test_an_identity_that_names_somebody_else_stays(omni: Client, raw: Redis) -> None:
    """The customer's own list may name one that has moved on: a merge that died between two steps."""
    ana, ben = omni.customer("ana"), omni.customer("ben")
    await ana.link("web", "moved")
    key, _ = omni.keyspace.identity("web", "moved")
    raw.hset(key, "customer", "ben")
    await ben.position()
    await ana.erase(**WHO)
    assert (await omni.identify("web", "moved")).id == "ben"


async def test_an_identity_that_was_being_linked_is_given_up(omni: Client, raw: Redis) -> None:
    """Claimed just before the erasure, and its process killed: the customer's list does not name it."""
    ana = omni.customer("ana")
    await ana.position()
    key, _ = omni.keyspace.identity("web", "half")
    claimed = await omni.services.link.execute(claim(key, "ana"))
    assert (claimed.customer, claimed.is_settled) == ("ana", False)
    await ana.erase(**WHO)
    new = await omni.identify("web", "half")
    assert new.id != "ana"
    assert [one.address for one in await new.identities()] == ["half"]


async def test_an_identity_that_is_confirmed_too_late_names_nobody(omni: Client, raw: Redis, tenant: str) -> None:
    """The customer's list names it, then the customer is erased, then the third step comes."""
    ana = omni.customer("ana")
    await ana.position()
    flow, steps = link(Target.of(omni.keyspace, "web", "late"), "ana", Claim(omnistate.ASSERTED)), 0

    async def execute(command: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 4:
            await ana.erase(**WHO)
        return await omni.services.link.execute(command)

    with pytest.raises(CustomerErased):
        await run(flow, execute)
    assert steps == 5  # and a look at the customer
    assert not any(found(raw, tenant, {"id": "c.ana:", "identity": "identity"}).values())
    assert (await omni.identify("web", "late")).id != "ana"


async def test_an_identity_that_was_being_taken_from_them_is_the_others(omni: Client, raw: Redis, tenant: str) -> None:
    """Its record has moved to ben and remembers ana, whose list names it still; ana is erased before that is put right."""
    ana, ben = omni.customer("ana"), omni.customer("ben")
    await ana.link("crm", "7")
    flow, erased = link(Target.of(omni.keyspace, "crm", "7"), "ben", Claim(omnistate.VERIFIED, take=True)), []

    async def execute(command: Any) -> Any:
        if command.function == "customer_drop":
            erased.append(await ana.erase(**WHO))
        return await omni.services.link.execute(command)

    assert await run(flow, execute) == "ana"
    assert len(erased) == 1
    assert (await omni.identify("crm", "7")).id == "ben"
    assert [one.address for one in await ben.identities()] == ["7"]
    assert not any(found(raw, tenant, {"id": "c.ana", "left": "left_tenure"}).values())


async def test_a_record_that_remembers_someone_erased_is_put_right(omni: Client, raw: Redis, tenant: str) -> None:
    """The list of ana was put right, the record was not, and the process is gone; then ana was erased."""
    ana, target = omni.customer("ana"), Target.of(omni.keyspace, "crm", "7")
    await ana.link("crm", "7")
    await ana.unlink("crm", "7")
    raw.hset(target.key, mapping={"left": "ana", "left_tenure": "first"})
    await ana.erase(**WHO)
    new = await omni.identify("crm", "7")
    assert new.id != "ana"
    assert not any(found(raw, tenant, {"left": "left_tenure"}).values())
    assert (await omni.services.link.execute(look(target.key))).customer == new.id


async def test_who_takes_an_identity_and_is_erased_meanwhile_does_not_get_it(omni: Client) -> None:
    ana, ben = omni.customer("ana"), omni.customer("ben")
    await ben.link("crm", "7")
    await ana.position()
    flow = link(Target.of(omni.keyspace, "crm", "7"), "ana", Claim(omnistate.VERIFIED, take=True))

    async def execute(command: Any) -> Any:
        if command.function == "customer_drop":
            await ana.erase(**WHO)
        return await omni.services.link.execute(command)

    with pytest.raises(CustomerErased):
        await run(flow, execute)
    assert (await omni.identify("crm", "7")).id not in ("ana", "ben")


async def test_what_is_forgotten_is_only_what_names_the_erased(omni: Client, raw: Redis) -> None:
    """Twice is once, and the list of whom the identity had been taken from is still put right."""
    ben, target = omni.customer("ben"), Target.of(omni.keyspace, "crm", "7")
    await ben.link("crm", "7")
    tenure = (await omni.services.link.execute(look(target.key))).tenure
    raw.hset(
        target.key, mapping={"customer": "ana", "tenure": "x", "confirmed": "0", "left": "ben", "left_tenure": tenure}
    )
    for _ in range(2):
        facts = await omni.services.link.execute(forget(target.key, "ana"))
        assert (facts.customer, facts.tenure, facts.left, facts.left_tenure) == ("", "", "ben", tenure)
    assert (await omni.services.link.execute(forget(target.key, "somebody"))).left == "ben"
    await run(settle(target, facts), omni.services.link.execute)
    assert await ben.identities() == []
    assert not raw.exists(target.key)


async def test_every_verb_on_identities_refuses_who_was_erased(omni: Client, raw: Redis, tenant: str) -> None:
    await omni.erase("ana", **WHO)
    ana = omni.customer("ana")
    for verb in (ana.link("crm", "7"), ana.link("crm", "7", take=True, proof=omnistate.VERIFIED), ana.unlink("crm", "7"),
                 ana.sign_out("web", "7")):  # fmt: skip
        with pytest.raises(CustomerErased):
            await verb
    assert not any(key.endswith(b":identity") for key in keys_of_tenant(raw, tenant))


async def test_sessions_end_with_the_first_step(omni: Client, raw: Redis, tenant: str) -> None:
    """Whoever holds a token: it opens nothing from then on, also when the process that erases dies at once."""
    ana = omni.customer("ana")
    session = await ana.start_session("web")
    await session.state(Cart).patch(note="x")
    flow = _erase.erase_customer(omni.keyspace, "ana", **WHO)
    await omni.services.link.execute(flow.send(None))
    flow.close()
    for verb in (session.load(), session.touch(), session.state(Cart).get(), session.state(Cart).patch(note="y")):
        with pytest.raises(omnistate.SessionExpired):
            await verb
    for verb in (session.rotate(), session.reauthenticated(), ana.revoke_sessions()):
        with pytest.raises(CustomerErased):
            await verb
    assert (await omni.erase("ana", **WHO)).counts["sessions"] == 1
    assert not any(found(raw, tenant, {"id": "c.ana"}).values())


async def test_readers_of_endings_miss_nobody_else(omni: Client, raw: Redis) -> None:
    """Also whoever is in the middle of them, and when all of a page was of somebody erased."""
    keys = omni.keyspace.customer("ana")
    near = next(f"n{n}" for n in range(10_000) if omni.keyspace.customer(f"n{n}").common == keys.common)
    ana, ben = omni.customer("ana"), omni.customer(near)

    async def end_one(customer: Customer) -> str:
        session = await customer.start_session("web")
        await session.end()
        return session.id

    first, *_ = [await end_one(one) for one in (ben, ana)]
    cursor = (await omni.session_endings()).cursor
    session = await ana.start_session("web")
    for _ in range(220):  # more than a page
        session = await session.rotate()
    second = await end_one(ben)
    life, numbers = raw.pexpiretime(keys.endings), [one.split()[:2] for one in raw.lrange(keys.endings, 0, -1)]  # type: ignore[union-attr]
    await ana.erase(**WHO)
    assert [one.split()[:2] for one in raw.lrange(keys.endings, 0, -1)] == numbers  # type: ignore[union-attr]
    assert raw.pexpiretime(keys.endings) == life
    page = await omni.session_endings(after=cursor)
    assert [one.id for one in page.endings] == [second]
    third = await end_one(ben)
    page = await omni.session_endings(after=page.cursor)
    assert [one.id for one in page.endings] == [third]
    assert (await omni.session_endings(after=page.cursor)).endings == []
    from_start = await omni.session_endings()
    assert [one.id for one in from_start.endings] == [first]  # and then a page of those that are gone
    assert [one.id for one in (await omni.session_endings(after=from_start.cursor)).endings] == [second, third]


async def test_what_a_hand_off_left_in_a_queue_is_taken_back(omni: Client, raw: Redis, tenant: str) -> None:
    word = Canaries()
    ana = omni.customer(word("id"))
    talk = await ana.start_conversation("web")
    flow = hand_off_to_queue(
        talk._keys, omni.keyspace.queue("agents"), "agents", reason=word("reason"), by=None, channel=None
    )
    steps = 0

    async def execute(command: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 2:
            await ana.erase(**WHO)
        return await omni.services.link.execute(command)

    with pytest.raises(CustomerErased):
        await run(flow, execute)
    assert not any(found(raw, tenant, word.words).values())


async def test_what_a_hand_off_that_died_left_in_a_queue_is_taken_out_by_the_next_claim(
    omni: Client, raw: Redis, tenant: str
) -> None:
    word = Canaries()
    ana = omni.customer(word("id"))
    talk = await ana.start_conversation("web")
    keys, queue = talk._keys, omni.keyspace.queue("agents")
    await ana.erase(**WHO)
    flow = hand_off_to_queue(keys, queue, "agents", reason=word("reason"), by=None, channel=None)
    await omni.services.link.execute(flow.send(None))  # it is in the queue, and the process is killed
    flow.close()
    assert all(found(raw, tenant, word.words).values())
    assert await omni.queue("agents").claim("maria") is None
    assert not any(found(raw, tenant, word.words).values())


async def test_it_is_written_down_who_did_it_and_why(omni: Client) -> None:
    ana = await plant(omni, Canaries())
    planned = await ana.erase(**WHO, dry_run=True)
    assert await omni.erasures() == []
    done = await ana.erase(**WHO)
    assert (done.counts, done.merged, done.digest) == (planned.counts, 0, planned.digest)
    assert done.counts == {
        "documents": 13, "changes": 8, "events": done.counts["events"], "identities": 4, "sessions": 1, "conversations": 2,
        "messages": 1, "waiting": 1, "index_entries": 5,
    }  # fmt: skip
    again = await ana.erase(actor="another", reason="another request")
    assert again.repeated
    assert msgspec.structs.replace(again, repeated=False) == done
    assert await omni.erasures() == [msgspec.structs.replace(done, customer="")]
    assert (done.actor, done.reason) == tuple(WHO.values())


@pytest.mark.parametrize("said", [{"actor": ""}, {"reason": "  "}, {"reason": "x" * 501}, {"actor": None}])
async def test_who_and_why_must_be_said(omni: Client, said: dict[str, Any]) -> None:
    await omni.customer("ana").position()
    with pytest.raises(omnistate.InvalidInput):
        await omni.erase("ana", **(WHO | said))
    assert await omni.customer("ana").position()


async def test_a_customer_who_was_never_seen_is_refused_from_then_on(omni: Client) -> None:
    assert (await omni.erase("nobody", **WHO)).counts == {}
    with pytest.raises(CustomerErased):
        await omni.customer("nobody").state(Cart).patch(note="x")


async def test_an_import_does_not_bring_them_back(omni: Client, raw: Redis, tenant: str) -> None:
    word = Canaries()
    ana = await plant(omni, word)
    await omni.customer("ben").state(Planted).patch(word="stays")
    kinds, collections = {one.__name__: one for one in STATES}, {one.name: one for one in COLLECTIONS}
    kinds = {"ErasePlanted": Planted}
    bulk = Bulk(omni.services, omni.keyspace)
    with tempfile.TemporaryFile() as file:
        report = await export_all(bulk, file, kinds, collections)
        assert report.customers == 2
        await ana.erase(**WHO)
        await omni.customer("ben").state(Planted).delete()
        file.seek(0)
        assert word("value").encode() in file.read()
        file.seek(0)
        report = await import_all(bulk, file, kinds, collections)
    assert (report.customers, report.erased, report.failures) == (1, 1, 0)
    assert not any(found(raw, tenant, word.words).values())
    assert (await omni.customer("ben").state(Planted).get()).word == "stays"


async def test_tenants_do_not_see_each_other(omni: Client, connect: Connect, raw: Redis, tenant: str) -> None:
    async with connect(tenant=tenant + "-2", keyring=KEYRING, channels=CHANNELS) as other:
        mine, theirs = Canaries(), Canaries()
        mine.words["id"] = theirs.words["id"] = "ana"
        await plant(omni, mine)
        await plant(other, theirs)
        before = found(raw, tenant + "-2", theirs.words)
        await omni.erase("ana", **WHO)
        assert found(raw, tenant + "-2", theirs.words) == before
        assert (await other.customer("ana").state(Planted).get()).word == theirs("value")
        assert await other.erasures() == []
        assert omni.keyspace.tombstone("ana") != other.keyspace.tombstone("ana")


async def test_what_is_left_of_the_id_is_a_keyed_hash(omni: Client, connect: Connect, raw: Redis, tenant: str) -> None:
    erased = await omni.erase("ana", **WHO)
    agenda = dict(raw.zrange(omni.keyspace.customer("ana").written[4], 0, -1, withscores=True))  # type: ignore[arg-type]
    key = omni.keyspace.erasure_key.encode()
    assert set(agenda) == {key, f"x.{erased.digest}".encode()}
    assert agenda[f"x.{erased.digest}".encode()] == 2**52 + erased.at.timestamp() * 1000
    assert erased.digest == omni.keyspace.tombstone("ana")
    assert Keyspace(tenant, identity_secret=b"another").tombstone("ana") != erased.digest


async def test_a_partition_with_erasures_is_counted_and_listed_as_before(omni: Client) -> None:
    for name in ("ana", "ben"):
        await omni.customer(name).state(Cart).patch(note="x")
        await (await omni.customer(name).start_conversation("web")).hand_off("agents")
    await omni.erase("ana", **WHO)
    assert [one async for one in omni.customers()] == ["ben"]
    assert await Bulk(omni.services, omni.keyspace).count() == 1
    assert await omni.sweep() == 0


def test_a_walk_that_two_servers_have_answered_counts_as_none() -> None:
    """A slot that moves, or a primary that is replaced, in the middle of it."""
    log = Keyspace("t").customer("ana")
    walk = _erase._walk(log, only_count=False)
    pages = [[b"1", b"one"], [b"0", b"another"]]
    command: Any = walk.send(None)
    with pytest.raises(StopIteration) as ended:
        for page in pages:
            command = walk.send(command.parse(page))
    assert ended.value.value is None


async def test_a_restore_does_not_bring_them_back_once_they_are_erased_again(
    omni: Client, raw: Redis, tenant: str
) -> None:
    word, late = Canaries(), Canaries()
    ana = await plant(omni, word)
    await plant_merged(omni, word, ana)
    await omni.customer("ben").state(Planted).patch(word="stays")
    backup = {key: raw.dump(key) for key in keys_of_tenant(raw, tenant)}
    new = await plant(omni, late)
    await ana.erase(**WHO)
    await new.erase(**WHO)  # who came after the backup
    listed = await omni.erasures()
    for key in keys_of_tenant(raw, tenant):
        raw.delete(key)
    for key, dumped in backup.items():
        raw.restore(key, 0, dumped)  # type: ignore[arg-type]
    assert any(found(raw, tenant, word.words).values())
    bulk = Bulk(omni.services, omni.keyspace)
    done = await erase_again(bulk, listed)
    assert not any(found(raw, tenant, word.words).values())
    assert ana.id in {one.customer for one in done}
    for one in (ana, new):
        with pytest.raises(CustomerErased):
            await one.state(Planted).patch(word="x")
    assert (await omni.customer("ben").state(Planted).get()).word == "stays"
    assert {(one.digest, one.actor) for one in await omni.erasures()} == {(one.digest, one.actor) for one in listed}
    assert await erase_again(bulk, listed) == []
