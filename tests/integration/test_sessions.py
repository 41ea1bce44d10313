"""Sessions: deadlines, tokens, the list of devices, revocation, rotation, what belongs to them, and how they end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis import Redis

import omnistate
from omnistate import Client, Session, SessionExpired, SessionRotated
from omnistate.session import session_keys
from omnistate.store import Keyspace

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def age(raw: Redis, tenant: str, session: Session, by: timedelta) -> None:
    """Lets time pass for a session: its record is as it would be so much later."""
    key = session_keys(Keyspace(tenant).customer(session.customer_id))[0]
    name = session.id.partition(".")[0]
    words = raw.hget(key, name).decode().split(" ")  # type: ignore[union-attr]
    for place, word in enumerate(words):
        if len(word) == 13 and word.isdigit() and word not in ("9999999999999", "0000000000000"):
            words[place] = f"{int(word) - by // timedelta(milliseconds=1):013}"
    raw.hset(key, name, " ".join(words))


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
