"""Random operations against a plain Python model: what the state machines of documents, collections and transactions share.

Hypothesis chooses the operations and shows the shortest run that fails. After every step a reader holds what the model
holds; at the end a watcher that saw only events does too. Beside the operations,

- a call is repeated under its operation id, at once or after anything else;
- a reply is lost on the way, or the server is killed in place of replying (`HOW`), or killed between two steps;
- the server's clock is stepped, ahead and back.

What is promised when the clock goes back: an end of which there is an event is final. Until then nobody reads or changes
what has ended, but a clock that goes back before the deadline finds it as it was. A write or the sweeper makes the event.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any, ClassVar, cast

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

import omnistate
from machine import Server, SteppedServer
from omnistate.ops import Sweeper
from omnistate.store import Keyspace
from proxy import Proxy

HOUR = timedelta(hours=1)
MANY = int(os.environ.get("OMNISTATE_EXAMPLES", "1"))  # times as many examples
HOW = st.sampled_from(["plain"] * 6 + ["repeated"] * 3 + ["lost", "killed"])
# Minutes by which the server's clock is ahead. Of what is written at one of these, no deadline after 10, 60 or 70 minutes
# is at another; and no deadline is ever over for as long as the server keeps the key of what nobody has ended.
MOMENTS = st.sampled_from([-29, 0, 23, 45, 80])
CRASHES = st.sampled_from([0, 0, 0, 0, 0, 0, 1, 2])  # of an example: each takes as long as many operations
BESIDE = ("due", "ready", "leased")  # keys of collections beside their own
_numbers = itertools.count()


class World:
    """The clients of one test: two behind a proxy that loses replies, and one that reads and watches."""

    def __init__(self, server: Server, tenant: str, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.server, self.tenant = server, tenant
        self.raw = Redis(port=server.port)
        self.proxy = Proxy(server.port)
        self.run(self.proxy.__aenter__())
        self.writer, self.other, self.reader = (
            self.run(omnistate.connect(url, tenant=tenant, timeout=timedelta(seconds=10), **options).__aenter__())
            for url in (self.proxy.url, self.proxy.url, server.url)
        )

    def run(self, work: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(cast("Any", work))

    @property
    def has_clock(self) -> bool:
        return isinstance(self.server, SteppedServer)

    @property
    def now(self) -> float:
        """Minutes."""
        return self.server.ahead / timedelta(minutes=1) if isinstance(self.server, SteppedServer) else 0

    def set_clock(self, minutes: float) -> None:
        if isinstance(self.server, SteppedServer) and minutes != self.now:
            self.server.set_clock(timedelta(minutes=minutes))

    def close(self) -> None:
        self.set_clock(0)
        for client in (self.writer, self.other, self.reader):
            self.run(client.__aexit__(None, None, None))
        self.run(self.proxy.__aexit__())
        self.loop.close()
        self.raw.close()


class Follower:
    """A watcher that sees only events."""

    def __init__(self, world: World, changes: AsyncIterator[Any]) -> None:
        self.world, self.seen = world, cast("list[Any]", [])
        self.task = world.loop.create_task(self._follow(changes))
        world.run(self.until(lambda: bool(self.seen)))

    async def _follow(self, changes: AsyncIterator[Any]) -> None:
        async for change in changes:
            self.seen.append(change)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not holds():
                assert not self.task.done(), self.task
                await asyncio.sleep(0.001)

    def check(self, version: int, value: Any) -> None:
        """It ends at this value, and never went back."""
        self.world.run(self.until(lambda: self.seen[-1].version == version))
        assert self.seen[-1].value == value
        positions = [change.position.offset for change in self.seen]
        assert positions == sorted(positions)

    def stop(self) -> None:
        self.task.cancel()
        self.world.run(asyncio.wait([self.task]))


class Machine(RuleBasedStateMachine):
    """What all machines do. `failed`: something is not as it should be, so nothing more is looked at."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.world.set_clock(0)
        self.failed, self.crashes, self.highest = False, 0, 0
        self.name = f"customer-{next(_numbers)}"
        self.keyspace = Keyspace(self.world.tenant)
        self.log = self.keyspace.customer(self.name)
        self.customer = self.world.writer.customer(self.name)
        self.reader = self.world.reader.customer(self.name)
        self.ids = itertools.count()
        self.known: list[tuple[Callable[[], Awaitable[Any]], Any]] = []  # applied under an id, and with what result
        self.followers: list[Follower] = []

    def follow(self, changes: AsyncIterator[Any]) -> Follower:
        self.followers.append(Follower(self.world, changes))
        return self.followers[-1]

    @initialize(crashes=CRASHES)
    def may_crash(self, crashes: int) -> None:
        self.crashes = crashes

    def lose_reply(self, how: str) -> None:
        """The next call is applied and not answered."""
        if how not in ("lost", "killed"):
            return
        self.world.proxy.lose_call = 1
        if how == "killed" and self.crashes:
            self.crashes -= 1
            self.world.proxy.on_loss = self.world.server.crash

    def outcome(self, work: Awaitable[Any]) -> Any:
        """What comes of it, or the class of its error."""
        try:
            return self.world.run(work)
        except omnistate.OmnistateError as error:
            return type(error)

    def call(self, how: str, operation: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Any:
        """The result of an operation, which is the same when it is repeated, or the class of its error."""
        self.failed = True  # until it is known to be right
        if how == "repeated":
            options["operation_id"] = f"op-{next(self.ids)}"
        self.lose_reply(how)
        results = [self.outcome(operation(*arguments, **options)) for _ in range(3 if how == "repeated" else 1)]
        self.world.proxy.lose_call, self.world.proxy.on_loss = 0, lambda: None
        assert all(result == results[0] for result in results)
        if how == "repeated" and not isinstance(results[0], type):
            self.remember(lambda: operation(*arguments, **options), results[0])
        return results[0]

    def remember(self, operation: Callable[[], Awaitable[Any]], result: Any) -> None:
        if self.offset() > self.highest:  # else nothing was changed, and nothing is remembered
            self.known.append((operation, result))

    def offset(self) -> int:
        state = cast("bytes | None", self.world.raw.hget(self.log.meta, "s"))
        return int(state.split(b" ")[1]) if state else 0

    @rule(data=st.data(), how=st.sampled_from(["plain", "lost", "killed"]))
    @precondition(lambda self: self.known)
    def again(self, data: st.DataObject, how: str) -> None:
        """The operation is known, whatever was since."""
        operation, result = data.draw(st.sampled_from(self.known))
        self.failed, before = True, self.offset()
        self.lose_reply(how)
        assert self.outcome(operation()) == result
        self.world.proxy.lose_call, self.world.proxy.on_loss = 0, lambda: None
        assert self.offset() == before

    @rule()
    @precondition(lambda self: self.crashes)
    def crash(self) -> None:
        self.crashes -= 1
        self.world.server.crash()

    @rule(minutes=MOMENTS)
    @precondition(lambda self: self.world.has_clock)
    def set_clock(self, minutes: float) -> None:
        self.failed = True
        self.world.set_clock(minutes)
        for entry in cast("set[bytes]", self.world.raw.smembers(self.log.written[3])):
            name = entry.decode().removeprefix("doc:")
            keys = [self.log.key("doc", name), *(self.log.key("doc", name, "." + one) for one in BESIDE)]
            self.world.raw.exists(*keys)  # what the server is going to remove it removes now
        self.on_time()

    @rule(minutes=MOMENTS)
    @precondition(lambda self: self.world.has_clock)
    def set_clock_and_back(self, minutes: int) -> None:
        now = self.world.now
        for moment in (minutes, now):
            self.set_clock(moment)
            self.agree()

    @rule()
    @precondition(lambda self: self.world.has_clock)
    def sweep(self) -> None:
        self.failed = True
        sweeper = Sweeper(self.world.reader.services, self.keyspace)
        assert self.world.run(sweeper._end(self.log.name)) == self.swept()

    def on_time(self) -> None:
        """The clock was stepped."""

    def swept(self) -> int:
        """What has ended is ended for good: the number of events."""
        raise NotImplementedError

    def agree(self) -> None:
        """A reader reads what the model holds."""
        raise NotImplementedError

    def finish(self) -> None:
        """What the followers hold at the end."""
        raise NotImplementedError

    @invariant()
    def is_right(self) -> None:
        self.failed = True
        offset = self.offset()
        assert offset >= self.highest
        self.highest = offset
        self.agree()
        self.failed = False

    def teardown(self) -> None:
        try:
            if not self.failed:
                self.finish()
                assert self.world.raw.llen(self.log.written[1]) == self.offset()  # the log is dense
        finally:
            for follower in self.followers:
                follower.stop()


def play(machine: type[Machine], world: World, *, examples: int, **attributes: Any) -> None:
    """Runs a machine in a world, with fewer examples where there is less to happen."""
    made = type(machine.__name__, (machine,), {"world": world, **attributes})
    run_state_machine_as_test(
        cast("Any", made),
        settings=settings(
            max_examples=(examples if world.has_clock else examples // 3) * MANY,
            stateful_step_count=50,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
