"""Random logins, touches, rotations, revocations and ends of a customer's sessions, against a plain model: see `model`.

A token that was ever given is tried after each step, so what has ended is seen not to come back; every end is told exactly
once in the log, and once more in the list of the partition.
"""

from __future__ import annotations

import itertools
import json
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

import omnistate
from model import Machine, World, play
from omnistate import Session, SessionExpired, SessionPolicy, SessionRotated, TooManySessions

MINUTE = timedelta(minutes=1)
GRACE = 5  # minutes: less than the clock is ever stepped by, and more than an example takes
ABSOLUTE, DUE = 60, 20
IDLE = st.sampled_from([10, 30, 30, 200])  # the last is cut by the absolute deadline
CHANNELS = st.sampled_from(["web", "web", "my app"])
DEVICES = st.sampled_from([None, "phone", "é x"])
POLICIES = st.sampled_from(
    [None, None, SessionPolicy(at_most=1), SessionPolicy(at_most=2), SessionPolicy(at_most=2, when_full="refuse")]
)
SINGLE = st.sampled_from(["plain"] * 6 + ["lost", "killed"])  # no verb takes an operation id
TRIED = 12  # tokens, of those that were given: the last ones


class Draft(omnistate.State, name="ModelDraft", ttl=timedelta(days=30)):
    count: int = 0


class Login:
    """One session. `gone`: its record was removed; `said`: its end was told, and its last token's grace is left of it."""

    def __init__(self, place: int, channel: str, device: str | None, idle: int, now: float) -> None:
        self.place, self.channel, self.device, self.idle, self.started = place, channel, device, idle, now
        self.absolute, self.due = now + ABSOLUTE, now + DUE
        self.number, self.rotated = 1, -1000.0
        self.revoked = self.gone = self.said = False
        self.count = 0  # in the document that belongs to it; 0: there is none
        self.see(now)

    def see(self, now: float) -> None:
        self.seen, self.ends = now, min(now + self.idle, self.absolute)

    def lives(self, now: float) -> bool:
        return not self.gone and not self.revoked and self.ends > now

    @property
    def reason(self) -> str:
        """Why it is over where nobody ended it."""
        return "revoked" if self.revoked else "absolute" if self.ends == self.absolute else "idle"


class SessionMachine(Machine):
    """`given` has every token, with its login and the number of the token."""

    def __init__(self) -> None:
        super().__init__()
        self.logins: list[Login] = []
        self.given: list[tuple[Login, int, Session]] = []
        self.told: list[tuple[str, str]] = []
        self.places = itertools.count()

    # What the model does.

    def is_of(self, login: Login, number: int) -> str | None:
        now = self.world.now
        if not login.lives(now):
            return None
        if number == login.number and not login.said:
            return "now"
        last = login.number if login.said else login.number - 1
        return "before" if number == last and login.rotated == now else None

    def id_of(self, login: Login) -> str:
        return next(session.id for one, number, session in self.given if one is login and number == login.number)

    def living(self) -> list[Login]:
        found = [one for one in self.logins if one.lives(self.world.now) and not one.said]
        return sorted(found, key=lambda one: (one.started, one.place))

    def finish_one(self, login: Login, reason: str) -> int:
        login.gone = True
        if login.said:
            return 0
        self.told.append((self.id_of(login), reason))
        return 1

    def sort_out(self) -> int:
        """What is over is ended for good."""
        over = [one for one in self.logins if not one.gone and not one.lives(self.world.now)]
        return sum(self.finish_one(one, one.reason) for one in over)

    def swept(self) -> int:
        events = self.sort_out()
        for login in self.logins:
            if login.gone and login.count:
                login.count, events = 0, events + 1
        return events

    def agree(self) -> None:
        listed = self.world.run(self.reader.sessions())
        assert [one.id for one in listed] == [self.id_of(one) for one in self.living()]
        for info, login in zip(listed, self.living(), strict=True):
            assert (info.channel, info.device) == (login.channel, login.device)
            assert info.reauthentication_due == (login.due <= self.world.now)
            assert abs(info.idle_deadline - info.started - (login.seen + login.idle - login.started) * MINUTE) < MINUTE
            assert info.absolute_deadline - info.started == ABSOLUTE * MINUTE
        for login, number, session in self.given[-TRIED:]:
            found = self.outcome(self.world.reader.session(session.token).load())
            assert (found is not SessionExpired) == (self.is_of(login, number) is not None)
        assert sorted(self.events()) == sorted(self.told)

    def events(self) -> list[tuple[str, str]]:
        log = [json.loads(event) for event in self.world.raw.lrange(self.log.written[1], 0, -1)]  # type: ignore[union-attr]
        return [(one["session"], one["reason"]) for one in log if one["type"] == "session.ended"]

    def finish(self) -> None:
        endings, cursor = [], None
        while (page := self.world.run(self.world.reader.session_endings(after=cursor))).endings:
            endings += [(one.id, one.reason) for one in page.endings if one.customer_id == self.name]
            cursor = page.cursor
        assert sorted(endings) == sorted(self.events())
        assert len({session for session, _ in endings}) == len(endings)

    def draw(self, data: st.DataObject) -> tuple[Login, Session, str | None]:
        login, number, session = data.draw(st.sampled_from(self.given[-TRIED:]))
        return login, session, self.is_of(login, number)

    # What is done.

    @rule(channel=CHANNELS, device=DEVICES, idle=IDLE, policy=POLICIES, how=SINGLE)
    def start(self, channel: str, device: str | None, idle: int, policy: SessionPolicy | None, how: str) -> None:
        got = self.call(
            how,
            self.customer.start_session,
            channel,
            idle=idle * MINUTE,
            absolute=ABSOLUTE * MINUTE,
            reauthenticate=DUE * MINUTE,
            device=device,
            policy=policy,
        )
        same = [one for one in self.living() if one.channel == channel]
        if policy is not None and policy.when_full == "refuse" and len(same) >= policy.at_most:
            assert got is TooManySessions
            return
        self.sort_out()
        if policy is not None:
            for login in same[: max(len(same) - policy.at_most + 1, 0)]:
                self.finish_one(login, "evicted")
        login = Login(next(self.places), channel, device, idle, self.world.now)
        self.logins.append(login)
        self.given.append((login, 1, got))

    @rule(data=st.data(), how=SINGLE)
    @precondition(lambda self: self.given)
    def touch(self, data: st.DataObject, how: str) -> None:
        login, session, which = self.draw(data)
        got = self.call(how, session.touch)
        assert (got is SessionExpired) == (which is None)
        if which is not None and not login.said:
            login.see(self.world.now)

    @rule(data=st.data(), how=SINGLE)
    @precondition(lambda self: self.given)
    def end(self, data: st.DataObject, how: str) -> None:
        login, session, which = self.draw(data)
        assert self.call(how, session.end) == (which is not None)
        if which is not None:
            self.finish_one(login, "logout")

    @rule(data=st.data(), how=SINGLE)
    @precondition(lambda self: self.given)
    def rotate(self, data: st.DataObject, how: str) -> None:
        login, session, which = self.draw(data)
        got = self.call(how, session.rotate, grace=GRACE * MINUTE)
        if which != "now":
            assert got is (SessionExpired if which is None else SessionRotated)
            return
        self.told.append((session.id, "rotated"))
        login.number, login.rotated = login.number + 1, self.world.now
        login.see(self.world.now)
        self.given.append((login, login.number, got))

    @rule(data=st.data(), call=st.sampled_from([0, 0, 1, 2, 3]), killed=st.booleans())
    @precondition(lambda self: self.given)
    def go_on_as_another_customer(self, data: st.DataObject, call: int, killed: bool) -> None:
        login, session, which = self.draw(data)
        self.failed = True
        self.lose_reply("killed" if killed and call else "plain")
        self.world.proxy.lose_call = call
        got = self.outcome(session.rotate(to=self.name + "-other", grace=GRACE * MINUTE))
        self.world.proxy.lose_call, self.world.proxy.on_loss = 0, lambda: None
        if which != "now":
            assert got is (SessionExpired if which is None else SessionRotated)
            return
        self.told.append((session.id, "merged"))
        login.said, login.rotated = True, self.world.now
        login.ends = min(login.ends, self.world.now + GRACE)
        self.world.run(got.touch())

    @rule(data=st.data(), how=SINGLE)
    @precondition(lambda self: self.given)
    def reauthenticate(self, data: st.DataObject, how: str) -> None:
        login, session, which = self.draw(data)
        got = self.call(how, session.reauthenticated)
        if which != "now":
            assert got is (SessionExpired if which is None else SessionRotated)
            return
        login.due = self.world.now + DUE

    @rule(data=st.data(), how=SINGLE)
    @precondition(lambda self: self.given)
    def revoke_one(self, data: st.DataObject, how: str) -> None:
        login, session, _ = self.draw(data)
        lives = login.lives(self.world.now)
        assert self.call(how, self.customer.revoke_session, session.id) == lives
        if lives:
            self.finish_one(login, "revoked")

    @rule(data=st.data(), keeps=st.booleans(), how=SINGLE)
    @precondition(lambda self: self.given)
    def revoke_all(self, data: st.DataObject, keeps: bool, how: str) -> None:
        login, session, which = self.draw(data)
        self.call(how, self.customer.revoke_sessions, keep=session if keeps else None)
        for one in self.logins:
            if not (keeps and which is not None and one is login):
                one.revoked = True

    @rule(channel=CHANNELS, device=DEVICES, how=SINGLE)
    def revoke_some(self, channel: str, device: str | None, how: str) -> None:
        self.call(how, self.customer.revoke_sessions, channel=channel, device=device)
        for one in self.logins:
            if one.lives(self.world.now) and one.channel == channel and device in (None, one.device):
                self.finish_one(one, "revoked")

    @rule(data=st.data(), how=SINGLE)
    @precondition(lambda self: self.given)
    def write(self, data: st.DataObject, how: str) -> None:
        login, session, which = self.draw(data)
        got = self.call(how, session.state(Draft).increment, "count")
        if which is None:
            assert got is SessionExpired
            return
        login.count += 1
        assert got == login.count

    @rule(data=st.data())
    @precondition(lambda self: self.given)
    def read(self, data: st.DataObject) -> None:
        login, session, which = self.draw(data)
        got: Any = self.outcome(self.world.reader.session(session.token).state(Draft).get())
        assert got == (SessionExpired if which is None else Draft(count=login.count))

    @rule(data=st.data(), verb=st.sampled_from(["require", "touch", "end"]), how=SINGLE)
    @precondition(lambda self: self.given)
    def change_with_others(self, data: st.DataObject, verb: str, how: str) -> None:
        login, session, which = self.draw(data)

        async def change() -> None:
            async with self.customer.transaction() as tx:
                getattr(tx, verb)(session)
                tx.state(Draft).increment("count")

        got = self.call(how, change)
        assert got is (SessionExpired if which is None else None)
        if which is not None and verb == "end":
            self.finish_one(login, "logout")
        elif which is not None and verb == "touch" and not login.said:
            login.see(self.world.now)


def test_every_session_does_what_the_model_does(world: World) -> None:
    play(SessionMachine, world, examples=50)
