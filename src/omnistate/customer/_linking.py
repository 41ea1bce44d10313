"""Finding, linking, moving and unlinking identities: several calls, since an identity lives in another slot than its customer.

The identity's record alone decides whose it is, in one call. Each period of belonging to somebody has a name, its tenure.
What the record says is then carried to the customers' own lists, and the record notes that this is done (`settle`):

1. the list of the customer who was left drops the identity, 2. the record forgets whom it left,
3. the list of the new customer names it, 4. the record is confirmed.

- Killed between any two: whoever calls next about this identity finds the record unsettled and does the rest first. Nobody
  moves it on before, so a list is never more than one step behind.
- A lost reply: 1 and 3 have operation ids that are made of the tenure, so each happens once, however late it arrives; the
  changes of the record name the tenure that they rest on, so a second time they change nothing.
- Two callers: one call on the record wins. The other is shown the facts as they are and judges anew; both settle.
- Merged meanwhile (3 is refused): the record follows to the survivor, and 3 is done there.
- Erased meanwhile (1 or 3 is refused): the record forgets the customer, and belongs to nobody if it was theirs. Whoever
  identifies then gets somebody new; `link` finds at its next look that its customer was erased, and says so.
- The clock decides about `ends` alone: one that goes ahead ends identities that have an end early, as it does all keys.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime

from omnistate.customer._identity import (
    ASSERTED,
    MOST_IDENTITIES,
    NO_LIMIT,
    VERIFIED,
    Confidence,
    Facts,
    Identity,
    claim,
    drop,
    forget,
    give,
    listed,
    look,
    move,
    note,
    settle_left,
    settle_named,
    strengthen,
)
from omnistate.customer._policy import ChannelPolicy, policies_of
from omnistate.errors import Conflict, CustomerErased, CustomerMerged, IdentityTaken, QuotaExceeded
from omnistate.store import Flow, Keyspace, call, new_operation_id

_TRIES = 100  # lost races, each of which somebody else has won
_LET_IN = "in."  # tenures that begin so do not count against the limit


def new_customer_id() -> str:
    return f"cus_{secrets.token_hex(12)}"


@dataclass(frozen=True, slots=True)
class Target:
    """The identity that a flow is about."""

    keyspace: Keyspace
    given: Identity
    key: bytes
    digest: str
    policy: ChannelPolicy

    @classmethod
    def of(cls, keyspace: Keyspace, channel: str, address: str) -> Target:
        """Raises `InvalidInput`."""
        key, digest = keyspace.identity(channel, address)
        return cls(keyspace, Identity(channel, address), key, digest, policies_of(keyspace).of(channel))

    @classmethod
    def wanted(cls, keyspace: Keyspace, channel: str, address: str) -> Target:
        """One that may be given to somebody. Raises `IdentityBlocked` too."""
        target = cls.of(keyspace, channel, address)
        policies_of(keyspace).check(channel, address)
        return target


def settle(target: Target, facts: Facts) -> Flow[Facts]:
    """Carries what the record says to the lists. No round trip when that is done, two for each list that is behind."""
    while not facts.is_settled:
        if facts.left:
            log = target.keyspace.customer(facts.left)
            try:
                yield from call(drop(log, target.digest, target.given.channel, facts.left_tenure))
                facts = yield from call(settle_left(target.key, facts))
            except CustomerErased as erased:
                facts = yield from call(forget(target.key, erased.customer))
        else:
            facts = yield from _name(target, facts)
    return facts


def _name(target: Target, facts: Facts) -> Flow[Facts]:
    """The owner's list names the identity; or it follows a merge; or it is nobody's: the list is full, or they were erased."""
    log, said = target.keyspace.customer(facts.customer), ("", "")
    try:
        if facts.confirmed == "0":
            noted = yield from call(note(log, target.digest, target.given, facts, most=_room(target, facts)))
            if noted is None:
                after = move(target.key, facts.customer, facts.tenure, "", new_operation_id(), leaves=False)
                return (yield from call(after))
            said = noted
        if said != (facts.proof, facts.ends):
            yield from call(strengthen(log, target.digest, target.given.channel, facts))
    except CustomerMerged as merged:
        tenure = _LET_IN + new_operation_id()
        after = move(target.key, facts.customer, facts.tenure, merged.into, tenure, leaves=False)
        return (yield from call(after))
    except CustomerErased as erased:
        return (yield from call(forget(target.key, erased.customer)))
    return (yield from call(settle_named(target.key, facts)))


def _room(target: Target, facts: Facts) -> int:
    """How many there may be. What comes by a merge, or was taken, has been let in before, and must not be lost now."""
    return NO_LIMIT if facts.tenure.startswith(_LET_IN) else target.policy.limit


def find_or_create(target: Target, candidate: str, proof: Confidence) -> Flow[str]:
    """The customer's id. One round trip when known, three the first time, two more when there is more proof."""
    for _ in range(_TRIES):
        claimed = claim(target.key, candidate, new_operation_id(), proof, lifetime=target.policy.lifetime)
        facts = yield from call(claimed)
        facts = yield from settle(target, facts)
        if facts.customer:
            return facts.customer
    raise _raced(target)


@dataclass(frozen=True, slots=True)
class Claim:
    """What is said of an identity that is to be linked. `take`: also when it is somebody else's, as the policy allows."""

    proof: Confidence
    take: bool = False
    since: datetime | None = None


def link(target: Target, customer: str, said: Claim) -> Flow[str | None]:
    """From whom it was taken, if from somebody. Raises `IdentityTaken`, `QuotaExceeded`, `CustomerMerged`, `CustomerErased`.

    Four round trips the first time, then two; seven or eight when it is taken from somebody.
    """
    log, lifetime, key = target.keyspace.customer(customer), target.policy.lifetime, target.key
    for _ in range(_TRIES):
        own = yield from call(listed(log))  # not for a customer who was merged away
        _check_room(target, own)
        theirs = claim(
            key, customer, new_operation_id(), said.proof, lifetime=lifetime, only=customer, linked=said.since
        )
        facts = yield from settle(target, (yield from call(theirs)))
        owner, tenure = facts.customer, _LET_IN + new_operation_id()
        if owner == customer:
            return None
        if not owner:
            continue
        if not (yield from _may_take(target, own, facts, said)):
            yield from call(listed(log))  # merged in between: it belongs to the survivor, which is not somebody else
            raise IdentityTaken(target.given.channel, owner=owner)
        facts = yield from call(give(key, facts, customer, tenure, said.proof, lifetime=lifetime))
        was_taken = facts.tenure == tenure
        settled = yield from settle(target, facts)
        if was_taken:
            if not settled.customer:
                yield from call(listed(log))  # erased in between
            return owner
    raise _raced(target)


def _may_take(target: Target, own: dict[str, Identity], facts: Facts, said: Claim) -> Flow[bool]:
    """By proof; or it is a device that was a known person's, and another one, who has proven who they are, uses it now."""
    policy = target.policy
    by_proof = said.take and said.proof == VERIFIED and policy.take != "never"
    if by_proof and (policy.take == "always" or facts.confidence == ASSERTED):
        return True
    if not policy.device or not any(one.confidence == VERIFIED for one in _people(target.keyspace, own)):
        return False
    try:
        theirs = yield from call(listed(target.keyspace.customer(facts.customer)))
    except (CustomerMerged, CustomerErased):  # a merge or an erasure that is not finished yet: it decides first
        return False
    return bool(_people(target.keyspace, theirs))


def _people(keyspace: Keyspace, identities: dict[str, Identity]) -> list[Identity]:
    """Those that are no devices."""
    policies = policies_of(keyspace)
    return [one for one in identities.values() if not policies.of(one.channel).device]


def _check_room(target: Target, own: dict[str, Identity]) -> None:
    channel, most = target.given.channel, target.policy.limit
    if target.digest not in own and sum(one.channel == channel for one in own.values()) >= most:
        raise QuotaExceeded(f"{channel} identities", limit=most)
    if target.digest not in own and len(own) >= MOST_IDENTITIES:
        raise QuotaExceeded("identities", limit=MOST_IDENTITIES)


def unlink(target: Target, customer: str) -> Flow[bool]:
    """False when it is not the customer's, whoever else's it may be. Raises `CustomerMerged`.

    Two round trips when there is nothing to do, else five. Called again after it died half-way it does the rest.
    """
    yield from call(listed(target.keyspace.customer(customer)))
    for _ in range(_TRIES):
        facts = yield from settle(target, (yield from call(look(target.key))))
        if facts.customer != customer:
            return False
        tenure = facts.tenure
        facts = yield from call(move(target.key, customer, tenure, "", new_operation_id(), leaves=True))
        has_left = facts.left_tenure == tenure
        yield from settle(target, facts)
        if has_left:
            return True
    raise _raced(target)


def sign_out(target: Target, customer: str, fresh: str) -> Flow[str]:
    """The customer whose identity it is instead: `fresh`, or whose it has become meanwhile. Raises `CustomerMerged`.

    Killed before the record is moved, it is still the old customer's; after that, the fresh one's, in one call. Called again it
    finds that it is no longer the old one's, and gives the same customer. Against a merge of the old customer: whichever is
    first at the record; who finds it at the survivor looks whether there was a merge, and says so.
    """
    log, lifetime = target.keyspace.customer(customer), target.policy.lifetime
    yield from call(listed(log))
    for _ in range(_TRIES):
        facts = yield from settle(target, (yield from call(look(target.key))))
        if facts.customer == customer:
            facts = yield from call(give(target.key, facts, fresh, new_operation_id(), ASSERTED, lifetime=lifetime))
        elif not facts.customer:
            facts = yield from call(claim(target.key, fresh, new_operation_id(), lifetime=lifetime))
        else:
            yield from call(listed(log))  # the survivor of a merge is not somebody new
            return facts.customer
        facts = yield from settle(target, facts)
        if facts.customer == fresh:
            return fresh
    raise _raced(target)


def follow(keyspace: Keyspace, digest: str, given: Identity, before: str, after: str) -> Flow[None]:
    """For merges: an identity that is `before`'s is `after`'s from now on, as sure as it was; the list of `before` is left
    as it is. Nothing happens when it is no longer `before`'s. Three round trips; safe to repeat.
    """
    policy = policies_of(keyspace).of(given.channel)
    target = Target(keyspace, given, keyspace.identity_of(digest), digest, policy)
    for _ in range(_TRIES):
        tenure = _LET_IN + new_operation_id()
        facts = yield from call(move(target.key, before, "", after, tenure, leaves=False))
        facts = yield from settle(target, facts)
        if facts.customer != before:
            return
    raise _raced(target)


def _raced(target: Target) -> Conflict:
    return Conflict(f"this {target.given.channel} identity was moved by others {_TRIES} times: call again")
