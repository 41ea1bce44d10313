"""Sessions: deadlines, tokens, the list of devices, revocation, rotation, what belongs to them, and how they end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis import Redis

import omnistate
from omnistate import Client, Customer, Session, SessionExpired, SessionRotated
from omnistate.session import session_keys
from omnistate.store import Keyspace

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def age(raw: Redis, tenant: str, session: Session, by: timedelta) -> None:
    """Lets time pass for a session: its record is as it would be so much later, and the agenda too."""
    log = Keyspace(tenant).customer(session.customer_id)
    key = session_keys(log)[0]
    name = session.id.partition(".")[0]
    words = raw.hget(key, name).decode().split(" ")  # type: ignore[union-attr]
    for place, word in enumerate(words):
        if len(word) == 13 and word.isdigit() and word not in ("9999999999999", "0000000000000"):
            words[place] = f"{int(word) - by // timedelta(milliseconds=1):013}"
    raw.hset(key, name, " ".join(words))
    raw.zincrby(log.written[4], -(by // timedelta(milliseconds=1)), log.name)


def now(raw: Redis) -> datetime:
    """By the server's clock."""
    seconds, microseconds = raw.time()  # type: ignore[misc]
    return datetime.fromtimestamp(seconds + microseconds / 1_000_000, UTC)


async def ended(session: Session) -> bool:
    """Whether it has ended, which all verbs must say alike."""
    said = set()
    for verb in (session.load, session.touch, session.rotate, session.reauthenticated):
        try:
            await verb()
        except SessionExpired:
            said.add(True)
        else:
            said.add(False)
            break
    (is_over,) = said
    return is_over


async def test_a_session_is_known_by_its_token_alone(omni: Client, raw: Redis) -> None:
    ana = omni.customer("ana é.{x}")
    started = await ana.start_session(
        "web",
        idle=HOUR,
        absolute=DAY,
        reauthenticate=MINUTE * 10,
        device="ana's phone",
        user_agent="Mozilla/5.0 (X11) é\n",
    )
    session = omni.session(started.token)
    info = await session.load()
    assert (info.id, session.id, info.customer_id) == (started.id, started.id, "ana é.{x}")
    assert (info.channel, info.device, info.user_agent) == ("web", "ana's phone", "Mozilla/5.0 (X11) é\n")
    assert timedelta(0) <= now(raw) - info.started < MINUTE
    assert info.seen == info.started
    assert info.idle_deadline - info.started == HOUR
    assert info.absolute_deadline - info.started == DAY
    assert info.reauthenticate_by is not None
    assert info.reauthenticate_by - info.started == 10 * MINUTE
    assert not info.reauthentication_due
    assert info.merged_into is None


async def test_a_session_lives_while_it_is_touched(omni: Client, raw: Redis, tenant: str) -> None:
    session = await omni.customer("ana").start_session("web", idle=30 * MINUTE)
    for _ in range(4):
        age(raw, tenant, session, 29 * MINUTE)
        deadline = await omni.session(session.token).touch()
        assert timedelta(0) <= now(raw) + 30 * MINUTE - deadline < MINUTE
    info = await session.load()
    assert info.seen - info.started > 100 * MINUTE
    assert await session.end()
    assert not await session.end()
    assert await ended(session)


async def test_a_session_ends_when_it_is_idle(omni: Client, raw: Redis, tenant: str) -> None:
    session = await omni.customer("ana").start_session("web", idle=30 * MINUTE)
    age(raw, tenant, session, 30 * MINUTE)
    assert await ended(session)
    assert not await session.end()
    assert await omni.customer("ana").sessions() == []


async def test_a_session_ends_at_its_absolute_deadline_however_often_it_is_touched(
    omni: Client, raw: Redis, tenant: str
) -> None:
    session = await omni.customer("ana").start_session("web", idle=HOUR, absolute=90 * MINUTE)
    age(raw, tenant, session, 50 * MINUTE)
    deadline = await session.touch()
    assert deadline == (await session.load()).absolute_deadline
    age(raw, tenant, session, 39 * MINUTE)
    assert await session.touch() < now(raw) + 2 * MINUTE
    age(raw, tenant, session, MINUTE)
    assert await ended(session)


async def test_touching_leaves_no_trace_in_the_log_and_revives_nothing(omni: Client, raw: Redis, tenant: str) -> None:
    ana = omni.customer("ana")
    session = await ana.start_session("web")
    before = await ana.position()
    await asyncio.gather(*(session.touch() for _ in range(50)))
    assert await ana.position() == before
    key = session_keys(Keyspace(tenant).customer("ana"))[0]
    touches = [asyncio.create_task(session.touch()) for _ in range(50)]
    await session.end()
    await asyncio.gather(*touches, return_exceptions=True)
    assert raw.hkeys(key) == [b"c"]
    assert await ended(session)


async def test_the_key_of_sessions_outlives_them_and_no_more(omni: Client, raw: Redis, tenant: str) -> None:
    ana = omni.customer("ana")
    key = session_keys(Keyspace(tenant).customer("ana"))[0]
    session = await ana.start_session("web", idle=MINUTE)
    assert MINUTE < timedelta(milliseconds=raw.pttl(key)) < 3 * HOUR  # type: ignore[arg-type]
    longer = await ana.start_session("web", idle=DAY)
    assert timedelta(milliseconds=raw.pttl(key)) > DAY  # type: ignore[arg-type]
    age(raw, tenant, longer, 20 * HOUR)
    raw.pexpire(key, 4 * HOUR)
    raw.hset(key, "c", int((now(raw) + 4 * HOUR).timestamp() * 1000))
    await session.touch()
    assert timedelta(milliseconds=raw.pttl(key)) <= 4 * HOUR  # type: ignore[arg-type]
    await longer.touch()
    assert timedelta(milliseconds=raw.pttl(key)) > DAY  # type: ignore[arg-type]


async def test_a_damaged_record_opens_nothing_and_stops_nobody(omni: Client, raw: Redis, tenant: str) -> None:
    ana = omni.customer("ana")
    damaged, other = await ana.start_session("web"), await ana.start_session("web")
    log = Keyspace(tenant).customer("ana")
    name = damaged.id.partition(".")[0]
    for record in (b"", b"x", b"9999999999999 " * 3, (raw.hget(session_keys(log)[0], name) or b"")[:60]):  # type: ignore[operator]
        raw.hset(session_keys(log)[0], name, record)
        assert await ended(damaged)
        assert not await damaged.end()
        await other.touch()
        assert [one.id for one in await ana.sessions()] == [other.id]
        raw.zadd(log.written[4], {log.name: 0})
        assert await omni.sweep() == 0
        await (await ana.start_session("web")).end()
    await ana.revoke_sessions()
    assert await ended(other)
    assert await omni.sweep() == 1


async def test_reauthentication_falls_due_and_is_moved(omni: Client, raw: Redis, tenant: str) -> None:
    ana = omni.customer("ana")
    session = await ana.start_session("web", idle=DAY, reauthenticate=15 * MINUTE)
    age(raw, tenant, session, 15 * MINUTE)
    assert (await session.load()).reauthentication_due  # and it lives
    due = await session.reauthenticated()
    assert due is not None
    assert timedelta(0) <= now(raw) + 15 * MINUTE - due < MINUTE
    info = await session.load()
    assert (info.reauthenticate_by, info.reauthentication_due) == (due, False)
    assert await (await ana.start_session("web")).reauthenticated() is None


@pytest.mark.parametrize(
    "token",
    ["", "x", "ana." + "a" * 43, "{}." + "a" * 16 + ".1." + "b" * 43, "ana." + "a" * 16 + ".1." + "b" * 43 + "\r\n",
     "ana." + "a" * 16 + ".0." + "b" * 43, "a%2." + "a" * 16 + ".1." + "b" * 43, "%FF." + "a" * 16 + ".1." + "b" * 43,
     "x" * 5000, None, 7, "absent", "foreign", "altered", "of another customer", "of another number"],
)  # fmt: skip
async def test_what_is_no_token_of_a_session_is_answered_alike(omni: Client, connect: Any, token: Any) -> None:
    session = await omni.customer("ana").start_session("web")
    match token:
        case "absent":
            token = "ana." + "a" * 16 + ".1." + "b" * 43
        case "foreign":
            async with connect(tenant="t-other") as other:
                token = (await other.customer("ana").start_session("web")).token
        case "altered":
            token = session.token[:-1] + ("A" if session.token[-1] != "A" else "B")
        case "of another customer":
            token = session.token.replace("ana", "ben", 1)
        case "of another number":
            token = session.token.replace(".1.", ".2.", 1)
    given = omni.session(token)
    said = set()
    for verb in (given.load, given.touch, given.rotate, given.reauthenticated):
        with pytest.raises(SessionExpired) as raised:
            await verb()
        said.add(str(raised.value))
    assert len(said) == 1
    assert not await given.end()
    assert len(await omni.customer("ana").sessions()) == 1
    assert not (await omni.customer("-").sessions())


async def test_the_secret_of_a_session_is_not_in_the_store(omni: Client, connect: Any, raw: Redis, tenant: str) -> None:
    session = await omni.customer("ana").start_session("web")
    session = await session.rotate()
    secret = session.token.rpartition(".")[2]
    assert len(secret) == 43
    info = await session.load()
    assert secret not in repr(session) + repr(info) + str(info) + session.id
    for key in raw.scan_iter(f"omni:{tenant}:*"):
        assert secret.encode() not in raw.dump(key) + key
    async with connect(identity_secret=b"another") as other:  # the hash is keyed
        assert await ended(other.session(session.token))
    assert not await ended(session)


def test_no_two_tokens_are_alike() -> None:
    from omnistate.session._model import Token

    made = [Token.new("ana") for _ in range(100_000)]
    assert len({one.name for one in made}) == len({one.secret for one in made}) == len(made)


async def test_bad_input_is_refused_before_anything_is_sent(omni: Client) -> None:
    ana: Any = omni.customer("ana")
    for wrong in (
        {"idle": 3}, {"idle": timedelta(0)}, {"absolute": DAY * 401}, {"absolute": None}, {"reauthenticate": 5},
        {"device": ""}, {"policy": 3},
    ):  # fmt: skip
        with pytest.raises(omnistate.InvalidInput):
            await ana.start_session("web", **wrong)
    with pytest.raises(omnistate.InvalidInput):
        await ana.start_session("")
    for call in (
        lambda: ana.revoke_session("x"),
        lambda: ana.revoke_session(None),
        lambda: ana.revoke_sessions(channel=""),
        lambda: ana.revoke_sessions(keep="x"),
        lambda: omni.session_endings(after="x"),
        lambda: omni.session_endings(after=7),  # type: ignore[arg-type]
    ):
        with pytest.raises(omnistate.InvalidInput):
            await call()
    assert await ana.sessions() == []


async def test_a_list_of_devices_shows_what_is_known_and_no_token(omni: Client, raw: Redis, tenant: str) -> None:
    ana = omni.customer("ana")
    laptop = await ana.start_session("web", device="laptop", user_agent="Firefox")
    age(raw, tenant, laptop, 5 * MINUTE)
    phone = await ana.start_session("mobile", device="phone")
    old = await ana.start_session("web", idle=MINUTE)
    gone = await ana.start_session("web")
    age(raw, tenant, old, MINUTE)
    await gone.end()
    await laptop.touch()
    found = await ana.sessions()
    assert [(one.id, one.channel, one.device, one.user_agent) for one in found] == [
        (laptop.id, "web", "laptop", "Firefox"),
        (phone.id, "mobile", "phone", None),
    ]
    assert found[0].seen - found[0].started >= 5 * MINUTE
    assert found[0] == await laptop.load()
    assert all(one.token.rpartition(".")[2] not in str(found) for one in (laptop, phone))


async def test_all_sessions_are_revoked_at_once(omni: Client, connect: Any) -> None:
    ana = omni.customer("ana")
    many = [await ana.start_session(channel) for channel in ("web", "mobile", "web")]
    other = await omni.customer("ben").start_session("web")
    await ana.revoke_sessions()
    async with connect() as elsewhere:
        for session in many:
            assert await ended(elsewhere.session(session.token))
    assert await ana.sessions() == []
    assert not await ended(other)
    new = await ana.start_session("web")
    await new.touch()
    assert [one.id for one in await ana.sessions()] == [new.id]


async def test_all_sessions_but_this_one_are_revoked(omni: Client) -> None:
    ana = omni.customer("ana")
    mine, other = await ana.start_session("web"), await ana.start_session("mobile")
    for _ in range(3):
        await ana.revoke_sessions(keep=mine)
        await mine.touch()
        assert [one.id for one in await ana.sessions()] == [mine.id]
    assert await ended(other)
    mine = await mine.rotate()
    await ana.revoke_sessions(keep=omni.session(mine.token))
    assert not await ended(mine)


async def test_a_session_that_has_ended_is_not_kept(omni: Client) -> None:
    ana = omni.customer("ana")
    mine, other = await ana.start_session("web"), await ana.start_session("mobile")
    await mine.end()
    await ana.revoke_sessions(keep=mine)
    assert await ended(mine)
    assert await ended(other)
    stranger = await omni.customer("ben").start_session("web")
    with pytest.raises(omnistate.InvalidInput, match="of this customer"):
        await ana.revoke_sessions(keep=stranger)


async def test_sessions_of_a_channel_or_a_device_are_revoked(omni: Client) -> None:
    ana = omni.customer("ana")
    places = [("web", "my laptop"), ("web", None), ("mobile", "my laptop"), ("mobile", "phone")]
    of = {place: await ana.start_session(place[0], device=place[1]) for place in places}
    await ana.revoke_sessions(channel="web", device="my laptop")
    assert [await ended(one) for one in of.values()] == [True, False, False, False]


async def test_one_session_is_revoked_by_its_id_whichever_token_it_has_by_now(omni: Client) -> None:
    ana = omni.customer("ana")
    seen, other = await ana.start_session("web"), await ana.start_session("web")
    shown = (await ana.sessions())[0].id
    new = await seen.rotate()
    assert await ana.revoke_session(shown)
    assert not await ana.revoke_session(shown)
    assert not await ana.revoke_session(new.id)
    assert await ended(new)
    assert await ended(seen)
    assert not await ended(other)
    assert not await omni.customer("ben").revoke_session(other.id)


async def test_a_rotated_session_goes_on_under_another_token(omni: Client, raw: Redis, tenant: str) -> None:
    ana = omni.customer("ana")
    old = await ana.start_session("web", idle=HOUR, absolute=DAY, reauthenticate=10 * MINUTE, device="laptop")
    age(raw, tenant, old, 11 * MINUTE)
    before = await old.load()
    new = await old.rotate()
    assert new.token != old.token
    assert new.id != old.id
    assert new.id.partition(".")[0] == old.id.partition(".")[0]
    after = await omni.session(new.token).load()
    assert (after.started, after.absolute_deadline, after.device) == (
        before.started,
        before.absolute_deadline,
        "laptop",
    )
    assert after.reauthentication_due  # to rotate is no proof
    assert after.seen > before.seen
    assert [one.id for one in await ana.sessions()] == [new.id]


async def test_the_former_token_answers_for_its_grace_and_may_do_less(omni: Client, raw: Redis, tenant: str) -> None:
    old = await omni.customer("ana").start_session("web")
    new = await old.rotate(grace=MINUTE)
    await old.touch()
    assert (await old.load()).id == new.id
    for verb in (old.rotate, old.reauthenticated):
        with pytest.raises(SessionRotated):
            await verb()
    age(raw, tenant, new, 59 * timedelta(seconds=1))
    await old.touch()
    age(raw, tenant, new, timedelta(seconds=1))
    assert await ended(old)
    assert not await old.end()
    assert not await ended(new)
    last = await new.rotate(grace=timedelta(0))
    assert await ended(new)
    assert not await ended(last)


async def test_logging_out_with_the_former_token_ends_the_session(omni: Client) -> None:
    old = await omni.customer("ana").start_session("web")
    new = await old.rotate()
    assert await old.end()
    assert await ended(new)


async def test_of_those_who_rotate_at_once_one_wins(omni: Client, connect: Any) -> None:
    session = await omni.customer("ana").start_session("web")
    async with connect() as other:
        handles = [client.session(session.token) for client in (omni, other) for _ in range(10)]
        results = await asyncio.gather(*(one.rotate() for one in handles), return_exceptions=True)
    (winner,) = [one for one in results if isinstance(one, Session)]
    assert sum(isinstance(one, SessionRotated) for one in results) == 19
    await winner.touch()
    assert [one.id for one in await omni.customer("ana").sessions()] == [winner.id]


async def test_a_session_goes_on_as_another_customers(omni: Client) -> None:
    visitor, ana = omni.customer("visitor"), omni.customer("ana")
    old = await visitor.start_session("web", idle=HOUR, absolute=DAY, device="laptop", user_agent="Firefox")
    await ana.merge(visitor)
    assert (await old.load()).merged_into == "ana"
    await old.touch()
    with pytest.raises(omnistate.CustomerMerged):
        await visitor.start_session("web")
    new = await old.rotate(to="ana")
    info = await omni.session(new.token).load()
    assert (info.customer_id, info.channel, info.device, info.user_agent) == ("ana", "web", "laptop", "Firefox")
    assert (info.idle_deadline - info.seen, info.absolute_deadline - info.started) == (HOUR, DAY)
    assert await visitor.sessions() == []
    await old.touch()  # a request that was under way
    for verb in (old.rotate, lambda: old.rotate(to="ana"), old.reauthenticated):
        with pytest.raises(SessionRotated):
            await verb()
    assert [one.id for one in await ana.sessions()] == [new.id]
    assert await old.end()  # nothing is left to tell
    assert await ended(old)


async def test_of_those_who_go_on_as_another_customer_at_once_one_wins(omni: Client) -> None:
    session = await omni.customer("visitor").start_session("web")
    handles = [omni.session(session.token) for _ in range(10)]
    results = await asyncio.gather(*(one.rotate(to="ana") for one in handles), return_exceptions=True)
    (winner,) = [one for one in results if isinstance(one, Session)]
    assert sum(isinstance(one, SessionRotated) for one in results) == 9
    assert [one.id for one in await omni.customer("ana").sessions()] == [winner.id]


# How they end.


class Draft(omnistate.State, name="SessionDraft", ttl=DAY):
    text: str = ""
    lines: dict[str, int] = {}


class Visit(omnistate.State, name="SessionVisit", ttl=DAY, outlives_session=True):
    pages: int = 0
    shown = omnistate.List(str)


VIEWED = omnistate.Map(str, int, name="session_viewed", ttl=DAY)


async def endings_in_log(customer: Customer, after: omnistate.Position) -> list[tuple[str, str]]:
    """Those that there are now."""
    found, end = [], await customer.position()
    if end == after:
        return []
    async for event in customer.events(after=after):
        if event.type == "session.ended":
            found.append((event.data["session"], event.data["reason"]))
        if event.position == end:
            break
    return found


async def endings_of_tenant(omni: Client) -> list[tuple[str, str]]:
    return [(one.id, one.reason) for one in (await omni.session_endings()).endings]


async def test_every_end_is_told_with_its_reason_in_the_log_and_to_the_tenant(
    omni: Client, raw: Redis, tenant: str
) -> None:
    ana = omni.customer("ana")
    before = await ana.position()
    out, other, rotated, revoked = [await ana.start_session("web", device="laptop") for _ in range(4)]
    idle = await ana.start_session("web", idle=MINUTE)
    absolute = await ana.start_session("web", idle=HOUR, absolute=MINUTE)
    await out.end()
    await other.end(reason="fraud")
    going_on = await rotated.rotate()
    moved = await (await ana.start_session("web")).rotate(to="ben")
    age(raw, tenant, idle, MINUTE)
    age(raw, tenant, absolute, MINUTE)
    await omni.sweep()
    await ana.revoke_session(revoked.id)
    await ana.revoke_sessions()  # what goes on, and what was moved has ended already
    await omni.sweep()
    wanted = {
        (out.id, "logout"), (other.id, "fraud"), (rotated.id, "rotated"), (idle.id, "idle"), (absolute.id, "absolute"),
        (revoked.id, "revoked"), (going_on.id, "revoked"),
    }  # fmt: skip
    in_log = await endings_in_log(ana, before)
    merged = [one for one in in_log if one[1] == "merged"]
    assert len(merged) == 1
    assert {*in_log} == wanted | {*merged}
    assert len(in_log) == len(wanted) + 1
    assert sorted(await endings_of_tenant(omni)) == sorted(in_log)
    ending = next(one for one in (await omni.session_endings()).endings if one.id == rotated.id)
    assert (ending.customer_id, ending.channel, ending.device, ending.next) == ("ana", "web", "laptop", going_on.id)
    assert timedelta(0) <= now(raw) - ending.ended < MINUTE
    await moved.touch()


async def test_an_end_that_nobody_was_there_to_see_is_found_later_and_once(
    omni: Client, connect: Any, raw: Redis, tenant: str
) -> None:
    customers = [omni.customer(f"customer-{number}") for number in range(20)]
    sessions = [await one.start_session("web", idle=MINUTE) for one in customers for _ in range(3)]
    for session in sessions:
        age(raw, tenant, session, HOUR)
    assert await endings_of_tenant(omni) == []
    async with connect() as second, connect() as third:
        counts = await asyncio.gather(*(one.sweep() for one in (omni, second, third) for _ in range(2)))
    assert sum(counts) == len(sessions)
    assert sorted(await endings_of_tenant(omni)) == sorted((one.id, "idle") for one in sessions)
    assert await omni.sweep() == 0
    for customer in customers:
        assert raw.hkeys(session_keys(Keyspace(tenant).customer(customer.id))[0]) == [b"c"]


async def test_a_touched_session_is_not_ended_by_the_sweeper_that_comes_for_it(
    omni: Client, raw: Redis, tenant: str
) -> None:
    session = await omni.customer("ana").start_session("web", idle=HOUR)
    log = Keyspace(tenant).customer("ana")
    raw.zadd(log.written[4], {log.name: 0})
    deadline = await session.touch()
    assert await omni.sweep() == 0
    assert raw.zscore(log.written[4], log.name) == deadline.timestamp() * 1000
    await session.touch()


async def test_a_start_ends_what_is_over_where_nobody_sweeps(omni: Client, raw: Redis, tenant: str) -> None:
    ana = omni.customer("ana")
    idle = await ana.start_session("web", idle=MINUTE)
    revoked = await ana.start_session("web")
    await ana.revoke_sessions()
    new = await ana.start_session("web")
    wanted = [(idle.id, "revoked"), (revoked.id, "revoked")]
    assert await endings_of_tenant(omni) == wanted
    assert await omni.sweep() == 0
    assert len(raw.hkeys(session_keys(Keyspace(tenant).customer("ana"))[0])) == 3  # new, and two fields of the key
    await new.touch()


async def test_endings_are_read_on_from_a_cursor(omni: Client) -> None:
    async def end_some(count: int) -> list[str]:
        sessions = [await omni.customer(f"c{number}").start_session("web") for number in range(count)]
        for session in sessions:
            await session.end()
        return [one.id for one in sessions]

    nothing = await omni.session_endings()
    assert (nothing.endings, nothing.cursor) == ([], "")
    first = await end_some(5)
    page = await omni.session_endings(after=nothing.cursor)
    assert {one.id for one in page.endings} == {*first}
    again = await omni.session_endings(after=nothing.cursor)
    assert again == page
    second = await end_some(5)
    rest = await omni.session_endings(after=page.cursor)
    assert {one.id for one in rest.endings} == {*second}
    last = await omni.session_endings(after=rest.cursor)
    assert (last.endings, last.cursor) == ([], rest.cursor)


async def test_endings_of_one_partition_come_in_pages(omni: Client) -> None:
    ana = omni.customer("ana")
    ids = []
    for _ in range(4):
        sessions = [await ana.start_session("web") for _ in range(100)]
        ids += [one.id for one in sessions]
        await ana.revoke_sessions(channel="web")
    found, cursor = [], None
    while (page := await omni.session_endings(after=cursor)).endings:
        assert len(page.endings) <= 200
        found += [one.id for one in page.endings]
        cursor = page.cursor
    assert found == ids


@pytest.mark.parametrize("loss", ["trimmed", "gone", "another server's"])
async def test_a_reader_that_missed_endings_is_told_so(omni: Client, raw: Redis, tenant: str, loss: str) -> None:
    ana = omni.customer("ana")
    key = session_keys(Keyspace(tenant).customer("ana"))[1]
    await (await ana.start_session("web")).end()
    cursor = (await omni.session_endings()).cursor
    for _ in range(3):
        await (await ana.start_session("web")).end()
    if loss == "trimmed":
        raw.ltrim(key, 2, -1)
    elif loss == "gone":
        raw.delete(key)
    else:
        entries = raw.lrange(key, 0, -1)
        raw.delete(key)
        raw.rpush(key, *(b" ".join([one.split()[0], b"5f3a", *one.split(b" ", 2)[2:]]) for one in entries))  # type: ignore[union-attr]
    with pytest.raises(omnistate.PositionLost):
        await omni.session_endings(after=cursor)
    left = {"trimmed": 2, "gone": 0, "another server's": 4}[loss]
    assert len((await omni.session_endings()).endings) == left


async def test_endings_are_bounded(omni: Client, raw: Redis, tenant: str) -> None:
    key = session_keys(Keyspace(tenant).customer("ana"))[1]
    line = b" 5f3a c.ana " + b'{"type":"session.ended","session":"x","channel":"web","reason":"r","time":1}'
    for first in range(1, 4096, 1000):
        raw.rpush(key, *(b"%d" % number + line for number in range(first, min(first + 1000, 4096))))
    await (await omni.customer("ana").start_session("web")).end()
    assert raw.llen(key) == 4000
    assert DAY * 29 < timedelta(milliseconds=raw.pttl(key)) <= DAY * 30  # type: ignore[arg-type]


# What belongs to them.


async def refused(session: Session) -> None:
    """Nothing of what belongs to a session is read or written through it."""
    draft, viewed = session.state(Draft), session.collection(VIEWED)
    for verb in (
        draft.get, draft.read, lambda: draft.patch(text="late"), lambda: draft.put("lines", "a", 1),
        lambda: draft.update(lambda value: value.lines.update(b=1)), lambda: draft.set(Draft()), draft.delete,
        lambda: draft.increment("lines", "c"), viewed.all, lambda: viewed.put("late", 1), viewed.clear,
        lambda: viewed.get("a"), viewed.size, session.state(Visit).get,
    ):  # fmt: skip
        with pytest.raises(SessionExpired):
            await verb()
    with pytest.raises(SessionExpired):
        async for _ in draft.watch():
            pass


async def write_all(session: Session) -> None:
    await session.state(Draft).patch(text="x")
    await session.state(Draft).update(lambda value: value.lines.update(a=1))
    await session.collection(VIEWED).put("a", 1)
    await session.state(Visit).increment("pages")
    await session.collection(Visit.shown).append("home")


@pytest.mark.parametrize("how", ["end", "idle", "revoked", "all revoked", "rotated", "evicted", "moved"])
async def test_what_belongs_to_a_session_is_out_of_reach_once_it_ended_and_then_gone(
    omni: Client, raw: Redis, tenant: str, how: str
) -> None:
    ana = omni.customer("ana")
    session, other = await ana.start_session("web", idle=MINUTE), await ana.start_session("mobile")
    await write_all(session)
    await write_all(other)
    assert await session.state(Draft).get() == Draft(text="x", lines={"a": 1})
    assert await session.collection(VIEWED).all() == {"a": 1}
    match how:
        case "end":
            await session.end()
        case "idle":
            age(raw, tenant, session, MINUTE)
        case "revoked":
            await ana.revoke_session(session.id)
        case "all revoked":
            await ana.revoke_sessions(keep=other)
        case "rotated":
            new = await session.rotate(grace=timedelta(0))
            assert await new.state(Draft).get() == Draft(text="x", lines={"a": 1})
            await refused(session)
            await new.end()
        case "evicted":
            await ana.start_session("web", policy=omnistate.SessionPolicy(at_most=1))
        case "moved":
            new = await session.rotate(to="ben", grace=timedelta(0))
            assert await new.state(Draft).get() == Draft()
    await refused(session)
    before = await ana.position()
    await omni.sweep()
    await refused(session)
    name = session.id.partition(".")[0].encode()
    left = {key.rpartition(b":doc:")[2] for key in raw.scan_iter(f"omni:{tenant}:*") if name in key}
    assert {entry.partition(b":")[0] for entry in left} == {b"SessionVisit", b"SessionVisit.shown"}
    told = {(event["type"], event["owner"]) for event in await since(ana, before) if "owner" in event}
    assert told == {(f"{what}.expired", f"session:{name.decode()}") for what in ("state", "collection")}
    kept = ana.of_session(session.id)
    assert (await kept.state(Visit).get()).pages == 1
    assert await kept.collection(Visit.shown).all() == ["home"]
    assert await other.state(Draft).get() == Draft(text="x", lines={"a": 1})
    assert await other.collection(VIEWED).all() == {"a": 1}


async def since(customer: Customer, after: omnistate.Position) -> list[dict[str, Any]]:
    found, end = [], await customer.position()
    async for event in customer.events(after=after):
        found.append(event.data)
        if event.position == end:
            break
    return found


async def test_a_write_on_its_way_when_the_session_ends_leaves_nothing(omni: Client, raw: Redis, tenant: str) -> None:
    ana = omni.customer("ana")
    session = await ana.start_session("web")
    draft = session.state(Draft)
    writes = [asyncio.create_task(draft.put("lines", str(number), number)) for number in range(50)]
    writes += [asyncio.create_task(session.end())]  # type: ignore[list-item]
    writes += [asyncio.create_task(draft.put("lines", str(number), number)) for number in range(50, 100)]
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert any(isinstance(one, SessionExpired) for one in results)
    await omni.sweep()
    assert not [key for key in raw.scan_iter(f"omni:{tenant}:*") if b"SessionDraft" in key]


async def test_only_what_outlives_a_session_is_reached_without_its_token(omni: Client) -> None:
    ana = omni.customer("ana")
    session = await ana.start_session("web")
    kept = ana.of_session(session.id)
    with pytest.raises(omnistate.InvalidDeclaration, match="outlives_session"):
        kept.state(Draft)
    with pytest.raises(omnistate.InvalidDeclaration, match="outlives_session"):
        kept.collection(VIEWED)
    with pytest.raises(omnistate.InvalidInput):
        ana.of_session("x")
    for endless in (
        type("Endless", (omnistate.State,), {}, outlives_session=True),
        type("Other", (omnistate.State,), {}),
    ):
        with pytest.raises(omnistate.InvalidDeclaration, match="ttl"):
            session.state(endless)
    with pytest.raises(omnistate.InvalidDeclaration, match="outlives_session"):
        type("Wrong", (omnistate.State,), {}, outlives_session=1)
    await session.state(Visit).increment("pages")
    assert (await kept.state(Visit).get()).pages == 1
    assert Visit.shown.outlives_session
    assert not VIEWED.outlives_session


async def test_a_transaction_on_what_belongs_to_a_session_needs_that_it_lives(omni: Client) -> None:
    ana = omni.customer("ana")
    session = await ana.start_session("web")
    draft = session.state(Draft)
    async with ana.transaction() as tx:
        tx.state(draft).patch(text="x")
        tx.state(Draft).patch(text="ana")
    async with ana.transaction() as tx:
        (await tx.get(draft)).text += "y"
    assert (await draft.get()).text == "xy"
    with pytest.raises(SessionExpired):
        async with ana.transaction() as tx:
            (await tx.get(draft)).text += "z"
            tx.state(Draft).patch(text="late")
            await session.end()
    assert (await ana.state(Draft).get()).text == "ana"
    with pytest.raises(SessionExpired):
        async with ana.transaction() as tx:
            tx.state(draft).patch(text="late")
    with pytest.raises(SessionExpired):
        async with ana.transaction() as tx:
            await tx.get(draft)


async def test_the_past_of_what_belongs_to_a_session_is_guarded_too(omni: Client) -> None:
    class Noted(omnistate.State, name="SessionNoted", ttl=DAY, history=5):
        text: str = ""

    session = await omni.customer("ana").start_session("web")
    noted = session.state(Noted)
    await noted.patch(text="x")
    await noted.patch(text="y")
    assert len(await noted.history()) == 2
    await session.end()
    with pytest.raises(SessionExpired):
        await noted.history()


async def test_a_watcher_of_a_sessions_state_sees_it_end(omni: Client) -> None:
    session = await omni.customer("ana").start_session("web")
    await session.state(Draft).patch(text="x")
    changes = session.state(Draft).watch()
    assert (await anext(changes)).value.text == "x"
    await session.end()
    await omni.sweep()
    async with asyncio.timeout(5):
        assert not (await anext(changes)).exists
    await changes.aclose()


# Policies.


@pytest.mark.parametrize("most", [1, 3])
async def test_the_oldest_session_of_a_channel_makes_room_for_the_newest(omni: Client, most: int) -> None:
    ana, policy = omni.customer("ana"), omnistate.SessionPolicy(at_most=most)
    phone = await ana.start_session("mobile")
    sessions = [await ana.start_session("web", policy=policy) for _ in range(5)]
    assert [one.id for one in await ana.sessions()] == [phone.id, *(one.id for one in sessions[-most:])]
    assert await endings_of_tenant(omni) == [(one.id, "evicted") for one in sessions[:-most]]
    assert [await ended(one) for one in sessions[:-most]] == [True] * (5 - most)


async def test_a_session_too_many_is_refused(omni: Client, raw: Redis, tenant: str) -> None:
    ana, policy = omni.customer("ana"), omnistate.SessionPolicy(at_most=2, when_full="refuse")
    first, second = [await ana.start_session("web", idle=MINUTE, policy=policy) for _ in range(2)]
    before = await ana.position()
    with pytest.raises(omnistate.TooManySessions) as raised:
        await ana.start_session("web", policy=policy)
    assert (raised.value.channel, raised.value.limit) == ("web", 2)
    assert "web" in str(raised.value)
    assert await ana.position() == before
    await ana.start_session("mobile", policy=policy)
    age(raw, tenant, first, MINUTE)  # it does not count any more, swept or not
    third = await ana.start_session("web", policy=policy)
    await second.end()
    await ana.start_session("web", policy=policy)
    assert not await ended(third)


async def test_a_rotated_session_counts_once(omni: Client) -> None:
    ana, policy = omni.customer("ana"), omnistate.SessionPolicy(at_most=2)
    first = await ana.start_session("web", policy=policy)
    first = await (await first.rotate()).rotate()
    second = await ana.start_session("web", policy=policy)
    assert [one.id for one in await ana.sessions()] == [first.id, second.id]


async def test_of_many_who_begin_at_once_no_more_are_let_in_than_may_be(omni: Client) -> None:
    ana = omni.customer("ana")
    for when_full in ("refuse", "end_oldest"):
        policy: Any = omnistate.SessionPolicy(at_most=3, when_full=when_full)  # type: ignore[arg-type]
        await asyncio.gather(*(ana.start_session("web", policy=policy) for _ in range(20)), return_exceptions=True)
        assert len(await ana.sessions()) == 3


async def test_a_customer_has_two_hundred_sessions_and_not_more(omni: Client, raw: Redis, tenant: str) -> None:
    ana = omni.customer("ana")
    first = await ana.start_session("web")
    others = [await ana.start_session("web") for _ in range(200)]
    assert await ended(first)
    assert len(await ana.sessions()) == 200
    assert not await ended(others[0])
    assert raw.hlen(session_keys(Keyspace(tenant).customer("ana"))[0]) == 201


@pytest.mark.parametrize(
    "wrong", [{"at_most": 0}, {"at_most": 101}, {"at_most": 2.0}, {"at_most": 1, "when_full": "x"}]
)
def test_a_policy_that_cannot_be_is_refused(wrong: Any) -> None:
    with pytest.raises(omnistate.InvalidInput):
        omnistate.SessionPolicy(**wrong)
