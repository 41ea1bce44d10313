"""Random identities of random customers against a plain model: a partition of addresses among customers.

Beside the operations: replies are lost, the server is killed in place of replying, a client dies between any two calls of an
operation, two operations race, and claims are hostile: addresses of somebody else, asserted. After every step an address
belongs to whom the model says, and each customer's list names exactly their addresses; only what a dead client left half done
may be behind, until somebody comes with that address again.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import pytest
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

import omnistate
from model import CRASHES, MANY, World
from omnistate import (
    ASSERTED,
    VERIFIED,
    ChannelPolicy,
    Client,
    Confidence,
    CustomerMerged,
    IdentityTaken,
    QuotaExceeded,
)
from omnistate.customer._identity import look

LIMIT = 3
POLICIES = {"crm": ChannelPolicy(limit=LIMIT), "web": ChannelPolicy(priority=9), "number": ChannelPolicy(take="always")}
ADDRESSES = [("crm", "a"), ("crm", "b"), ("crm", "c"), ("crm", "d"), ("web", "x"), ("web", "y"), ("sms", "+447700900123"),
             ("email", "ana@example.com"), ("number", "7")]  # fmt: skip
SPELLED = {("sms", "+447700900123"): ["+44 7700 900123", "+447700900123", "tel:+44-7700-900123"],
           ("email", "ana@example.com"): ["Ana@Example.com", " ana@example.com"]}  # fmt: skip
ADDRESS, WHO, PROOF = st.sampled_from(ADDRESSES), st.integers(0, 5), st.sampled_from([ASSERTED, ASSERTED, VERIFIED])
HOW = st.sampled_from(["plain"] * 5 + ["lost"] * 3 + ["killed"])
CALL = st.integers(1, 7)
Address = tuple[str, str]
_numbers = itertools.count(900_000)


class Refused(Exception):
    def __init__(self, kind: type[Exception]) -> None:
        super().__init__(kind)
        self.kind = kind


class Partition:
    """Whose each address is, how sure that is, and who was merged into whom. `fresh` names who is made by an operation."""

    def __init__(self) -> None:
        self.owners: dict[Address, tuple[str, Confidence]] = {}
        self.into: dict[str, str] = {}

    def own(self, customer: str) -> dict[Address, Confidence]:
        return {address: proof for address, (owner, proof) in self.owners.items() if owner == customer}

    def _alive(self, customer: str) -> None:
        if customer in self.into:
            raise Refused(CustomerMerged)

    def _surer(self, address: Address, proof: Confidence) -> None:
        owner, had = self.owners[address]
        self.owners[address] = owner, VERIFIED if VERIFIED in (had, proof) else ASSERTED

    def identify(self, address: Address, proof: Confidence, fresh: str) -> str:
        self.owners.setdefault(address, (fresh, proof))
        self._surer(address, proof)
        return self.owners[address][0]

    def link(self, customer: str, address: Address, proof: Confidence, take: bool, fresh: str) -> str | None:
        self._alive(customer)
        own = self.own(customer)
        if address not in own and address[0] == "crm" and sum(one[0] == "crm" for one in own) >= LIMIT:
            raise Refused(QuotaExceeded)
        owner, had = self.owners.get(address, (customer, proof))
        if owner == customer:
            self.owners[address] = customer, had
            self._surer(address, proof)
            return None
        by_proof = take and proof == VERIFIED and (had == ASSERTED or address[0] == "number")
        is_known = any(one[0] != "web" and sure == VERIFIED for one, sure in own.items())
        is_shared = address[0] == "web" and is_known and any(one[0] != "web" for one in self.own(owner))
        if not by_proof and not is_shared:
            raise Refused(IdentityTaken)
        self.owners[address] = customer, proof
        return owner

    def unlink(self, customer: str, address: Address, fresh: str) -> bool:
        self._alive(customer)
        if address not in self.own(customer):
            return False
        del self.owners[address]
        return True

    def sign_out(self, customer: str, address: Address, fresh: str) -> str:
        self._alive(customer)
        if address in self.own(customer) or address not in self.owners:
            self.owners[address] = fresh, ASSERTED
        return self.owners[address][0]

    def merge(self, survivor: str, other: str, fresh: str) -> None:
        self._alive(survivor)
        if self.into.get(other, survivor) != survivor:
            raise Refused(CustomerMerged)
        self.into[other] = survivor
        for address, proof in self.own(other).items():
            self.owners[address] = survivor, proof

    def identify_all(self, presented: tuple[tuple[Address, Confidence], ...], fresh: str) -> tuple[str, list[str]]:
        def rank(one: tuple[Address, Confidence]) -> tuple[bool, bool]:
            return one[1] != VERIFIED, one[0][0] == "web"

        ranked = sorted(presented, key=rank)
        deciding = [one for one in ranked if one[1] == VERIFIED] or ranked
        first = next((one for one in deciding if one[0] in self.owners), deciding[0])
        customer = self.identify(*first, fresh)
        elsewhere = []
        for one in ranked:
            if one is not first:
                try:
                    self.link(customer, *one, False, fresh)
                except Refused as refused:
                    if refused.kind is not IdentityTaken:
                        raise
                    elsewhere.append(self.owners[one[0]][0])
        return customer, elsewhere


Operation = tuple[str, tuple[Any, ...]]  # the name of a verb and what it is given


async def perform(client: Client, operation: Operation, spelled: Callable[[Address], Address]) -> Any:
    """The same in the store: ids of customers in the place of customers."""
    verb, given = operation
    match verb:
        case "identify":
            address, proof = given
            return (await client.identify(*spelled(address), proof=proof)).id
        case "identify_all":
            presented = [(*spelled(address), proof) for address, proof in given[0]]
            found, elsewhere = await client.identify_all(presented)
            return found.id, [one.owner for one in elsewhere]
        case "link":
            customer, address, proof, take = given
            return await client.customer(customer).link(*spelled(address), proof=proof, take=take)
        case "unlink":
            return await client.customer(given[0]).unlink(*spelled(given[1]))
        case "sign_out":
            return (await client.customer(given[0]).sign_out(*spelled(given[1]))).id
        case _:
            return await client.customer(given[0]).merge(client.customer(given[1]))


def touched(operation: Operation) -> set[Address]:
    verb, given = operation
    if verb == "identify_all":
        return {address for address, _ in given[0]}
    return {one for one in given if isinstance(one, tuple)}


class IdentityMachine(RuleBasedStateMachine):
    """`behind`: addresses that a dead client may have left half done."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.partition, self.behind, self.crashes = Partition(), set[Address](), 0
        self.number, self.fresh = next(_numbers), itertools.count()
        self.people = [f"{name}-{self.number}" for name in ("ana", "ben", "cy")]
        self.seen = set(self.people)
        self.spellings = itertools.count()
        self.failed = False

    def spelled(self, address: Address) -> Address:
        """One of its spellings. Each example has addresses of its own."""
        channel, text = address
        known = SPELLED.get(address, [text])
        text = known[next(self.spellings) % len(known)]
        if channel == "sms":
            return channel, text.replace("900123", f"{self.number:06d}")
        return channel, text.replace("@", f"{self.number}@") if channel == "email" else f"{self.number}-{text}"

    def who(self, index: int) -> str:
        return self.people[index % len(self.people)]

    @initialize(crashes=CRASHES)
    def may_crash(self, crashes: int) -> None:
        self.crashes = crashes

    def outcome(self, work: Awaitable[Any]) -> Any:
        try:
            return self.world.run(work)
        except omnistate.OmnistateError as error:
            return type(error)

    def expected(self, partition: Partition, operation: Operation) -> Any:
        try:
            return getattr(partition, operation[0])(*operation[1], f"fresh-{next(self.fresh)}")
        except Refused as refused:
            return refused.kind

    def owners(self) -> dict[Address, str]:
        """As the records say."""

        async def ask() -> dict[Address, str]:
            reader, found = self.world.reader, {}
            for address in ADDRESSES:
                key, _ = reader.keyspace.identity(*self.spelled(address))
                found[address] = (await reader.services.link.execute(look(key))).customer
            return {address: owner for address, owner in found.items() if owner}

        return dict(self.world.run(ask()))

    def accept(self, partition: Partition, said: Any, result: Any) -> bool:
        """Whether the store is as this partition, and the result what it said; new customers then have the ids that they got."""
        names: dict[str, str] = {}

        def same(one: Any, other: Any) -> bool:
            if isinstance(one, list | tuple) and isinstance(other, list | tuple):
                return len(one) == len(other) and all(map(same, one, other))
            if isinstance(one, str) and one.startswith("fresh-") and isinstance(other, str):
                return other not in self.seen and names.setdefault(one, other) == other
            return bool(one == other)

        owners = self.owners()
        if owners.keys() != partition.owners.keys() or not same(said, result):
            return False
        if not all(same(partition.owners[address][0], owner) for address, owner in owners.items()):
            return False
        for address, (owner, proof) in partition.owners.items():
            partition.owners[address] = names.get(owner, owner), proof
        for customer in names.values():
            self.seen.add(customer)
            self.people.append(customer)
        self.partition = partition
        return True

    def lose_reply(self, how: str, call: int) -> None:
        if how == "plain":
            return
        self.world.proxy.lose_call = call
        if how == "killed" and self.crashes:
            self.crashes -= 1
            self.world.proxy.on_loss = self.world.server.crash

    def heal(self) -> None:
        self.world.proxy.lose_call, self.world.proxy.on_loss = 0, lambda: None

    def do(self, operation: Operation, how: str = "plain", call: int = 1) -> None:
        self.failed = True
        partition = copy.deepcopy(self.partition)
        said = self.expected(partition, operation)
        self.lose_reply(how, call)
        result = self.outcome(perform(self.world.writer, operation, self.spelled))
        self.heal()
        assert self.accept(partition, said, result), (operation, said, result, self.owners())
        if not isinstance(result, type):
            self.behind -= touched(operation)
        self.failed = False

    @rule(address=ADDRESS, proof=PROOF, how=HOW, call=CALL)
    def identify(self, address: Address, proof: Confidence, how: str, call: int) -> None:
        self.do(("identify", (address, proof)), how, call)

    @rule(who=WHO, address=ADDRESS, proof=PROOF, take=st.booleans(), how=HOW, call=CALL)
    def link(self, who: int, address: Address, proof: Confidence, take: bool, how: str, call: int) -> None:
        self.do(("link", (self.who(who), address, proof, take)), how, call)

    @rule(who=WHO, address=ADDRESS, how=HOW, call=CALL)
    def unlink(self, who: int, address: Address, how: str, call: int) -> None:
        self.do(("unlink", (self.who(who), address)), how, call)

    @rule(who=WHO, address=ADDRESS, how=HOW, call=CALL)
    def sign_out(self, who: int, address: Address, how: str, call: int) -> None:
        self.do(("sign_out", (self.who(who), address)), how, call)

    @rule(who=WHO, other=WHO, how=HOW, call=CALL)
    def merge(self, who: int, other: int, how: str, call: int) -> None:
        if self.who(who) != self.who(other):
            self.do(("merge", (self.who(who), self.who(other))), how, call)

    @rule(
        presented=st.lists(st.tuples(ADDRESS, PROOF), min_size=1, max_size=3, unique_by=lambda one: one[0]),
        how=HOW,
        call=CALL,
    )
    def identify_all(self, presented: list[tuple[Address, Confidence]], how: str, call: int) -> None:
        self.do(("identify_all", (tuple(presented),)), how, call)

    @rule(victim=ADDRESS, own=ADDRESS)
    def a_claim_beside_a_proof(self, victim: Address, own: Address) -> None:
        """Whoever asserts the victim's address beside their own proof gets nothing that is the victim's."""
        before = self.partition.owners.get(victim)
        if victim == own or before is None or self.partition.owners.get(own, ("", ""))[0] == before[0]:
            return
        self.do(("identify_all", (((victim, ASSERTED), (own, VERIFIED)),)))
        assert self.partition.owners[own][0] != before[0] or own[0] == "web"
        if victim[0] != "web":
            assert self.partition.owners[victim] == before

    @rule(data=st.data(), call=st.integers(1, 8), crashes=st.booleans())
    def dies(self, data: st.DataObject, call: int, crashes: bool) -> None:
        """The client is killed at a call, and does not come back."""
        operation = data.draw(self.operations(("identify", "link", "unlink", "sign_out")))
        self.failed = True
        after = copy.deepcopy(self.partition)
        self.expected(after, operation)
        died: list[bool] = []

        async def run() -> None:
            task = asyncio.ensure_future(perform(self.world.other, operation, self.spelled))

            def die() -> None:
                died.append(True)
                if crashes and self.crashes:
                    self.crashes -= 1
                    self.world.server.crash()
                task.cancel()

            self.world.proxy.lose_call, self.world.proxy.on_loss = call, die
            await asyncio.wait([task])
            assert died or task.exception() is None or isinstance(task.exception(), omnistate.OmnistateError)

        self.world.run(run())
        self.heal()
        before = copy.deepcopy(self.partition)
        proofs = self.proofs(operation)
        assert self.accept(after, None, None) or self.accept(before, None, None), (operation, self.owners())
        for address in proofs.keys() & self.partition.owners.keys():  # it may have become surer before it died
            self.partition.owners[address] = self.partition.owners[address][0], proofs[address]
        self.behind |= touched(operation)
        self.failed = False

    def proofs(self, operation: Operation) -> dict[Address, Confidence]:
        async def ask(address: Address) -> Confidence:
            key, _ = self.world.reader.keyspace.identity(*self.spelled(address))
            return (await self.world.reader.services.link.execute(look(key))).confidence

        return {address: self.world.run(ask(address)) for address in touched(operation)}

    def operations(self, verbs: tuple[str, ...]) -> st.SearchStrategy[Operation]:
        people = st.sampled_from(self.people)
        given: dict[str, st.SearchStrategy[Any]] = {
            "identify": st.tuples(ADDRESS, PROOF),
            "link": st.tuples(people, ADDRESS, PROOF, st.booleans()),
            "unlink": st.tuples(people, ADDRESS),
            "sign_out": st.tuples(people, ADDRESS),
            "merge": st.tuples(people, people).filter(lambda pair: pair[0] != pair[1]),
        }
        return st.sampled_from(verbs).flatmap(lambda verb: st.tuples(st.just(verb), given[verb]))

    @rule(data=st.data())
    def race(self, data: st.DataObject) -> None:
        """Two at once are as one after the other, in one order or the other."""
        one = data.draw(self.operations(("identify", "link", "unlink", "sign_out", "merge")))
        verbs = (
            ("identify", "unlink", "sign_out")
            if one[0] in ("link", "merge")
            else ("identify", "link", "unlink", "sign_out")
        )
        other = data.draw(self.operations(verbs))
        self.failed = True

        async def both() -> list[Any]:
            clients = (self.world.writer, self.world.other)
            calls = [perform(client, it, self.spelled) for client, it in zip(clients, (one, other), strict=True)]
            return await asyncio.gather(*calls, return_exceptions=True)

        results = [type(it) if isinstance(it, Exception) else it for it in self.world.run(both())]
        for order in ((0, 1), (1, 0)):
            partition, said = copy.deepcopy(self.partition), [None, None]
            for index in order:
                said[index] = self.expected(partition, (one, other)[index])
            if self.accept(partition, said, results):
                break
        else:
            raise AssertionError((one, other, results, self.owners()))
        for operation, result in zip((one, other), results, strict=True):
            if not isinstance(result, type):
                self.behind -= touched(operation)
        self.failed = False

    @rule()
    @precondition(lambda self: self.crashes)
    def crash(self) -> None:
        self.crashes -= 1
        self.world.server.crash()

    @rule(address=ADDRESS)
    @precondition(lambda self: self.behind)
    def settle(self, address: Address) -> None:
        """Somebody comes with an address that a dead client left."""
        left = sorted(self.behind)
        self.do(("identify", (left[ADDRESSES.index(address) % len(left)], ASSERTED)))

    @invariant()
    def lists_are_as_the_partition(self) -> None:
        """Each customer's list names their addresses and no others, but for what is behind."""
        if self.failed:
            return
        self.failed = True
        spelled = {self.normal(self.spelled(address)): address for address in ADDRESSES}

        async def lists() -> list[Any]:
            return [await self.world.reader.customer(one).identities() for one in self.people]

        for customer, identities in zip(self.people, self.world.run(lists()), strict=True):
            found = {spelled[self.normal((one.channel, one.address))]: one.confidence for one in identities}
            assert len(found) == len(identities)
            held = self.partition.own(customer)
            assert {a: found[a] for a in found.keys() - self.behind} == {a: held[a] for a in held.keys() - self.behind}
        assert all(customer not in self.partition.into for customer, _ in self.partition.owners.values())
        self.failed = False

    def normal(self, address: Address) -> Address:
        spelling = self.world.reader.keyspace.spelling
        assert spelling is not None
        return address[0], spelling.normal(*address)

    def teardown(self) -> None:
        if self.failed:
            return
        for address in sorted(self.behind):
            self.do(("identify", (address, ASSERTED)))
        self.lists_are_as_the_partition()


@pytest.mark.parametrize(("server", "examples"), [("mortal_valkey", 60), ("mortal_redis", 20)])
def test_identities_are_a_partition_whatever_happens(
    request: pytest.FixtureRequest, tenant: str, server: str, examples: int
) -> None:
    world = World(request.getfixturevalue(server), tenant, channels=POLICIES)
    try:
        run_state_machine_as_test(
            type("IdentityMachine", (IdentityMachine,), {"world": world}),
            settings=settings(
                max_examples=examples * MANY,
                stateful_step_count=40,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        world.close()
