"""One customer out of several identities that are presented together. Steps that `_linking` makes safe; no step of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from omnistate.customer._identity import ASSERTED, VERIFIED, Confidence, confidence_of, look
from omnistate.customer._linking import Claim, Target, find_or_create, link, new_customer_id, settle
from omnistate.errors import IdentityTaken, InvalidInput
from omnistate.store import Flow, Keyspace, call

Presented: TypeAlias = tuple[str, str] | tuple[str, str, Confidence]  # channel, address, and proof
MOST_PRESENTED = 20


@dataclass(frozen=True, slots=True)
class _One:
    target: Target
    proof: Confidence

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """The lowest decides: proof before claims, persons before devices, then the channel's priority."""
        return self.proof != VERIFIED, bool(self.target.policy.device), -self.target.policy.priority


def recognise(keyspace: Keyspace, identities: Iterable[Presented]) -> Flow[tuple[str, list[IdentityTaken]]]:
    """The customer's id, and what is somebody else's. When anything is verified, what is only asserted decides nothing.

    Killed in between, some are linked and others not yet; called again with the same ones it finds the same customer.
    """
    ranked = sorted((_presented(keyspace, one) for one in identities), key=lambda one: one.rank)
    if not 1 <= len(ranked) <= MOST_PRESENTED:
        raise InvalidInput(f"identify_all takes 1 to {MOST_PRESENTED} identities: [('web', 'visitor-1'), ...]")
    deciding = [one for one in ranked if one.proof == VERIFIED] or ranked
    first = deciding[0]
    for one in deciding:
        if (yield from settle(one.target, (yield from call(look(one.target.key))))).customer:
            first = one
            break
    customer = yield from find_or_create(first.target, new_customer_id(), first.proof)
    elsewhere = []
    for one in ranked:
        if one is not first:
            try:
                yield from link(one.target, customer, Claim(one.proof))
            except IdentityTaken as taken:
                elsewhere.append(taken)
    return customer, elsewhere


def _presented(keyspace: Keyspace, said: object) -> _One:
    if not isinstance(said, tuple) or len(said) not in (2, 3):
        raise InvalidInput(
            "identify_all takes tuples of channel, address and perhaps proof: ('email', address, VERIFIED)"
        )
    proof = confidence_of(said[2]) if len(said) == 3 else ASSERTED
    return _One(Target.wanted(keyspace, said[0], said[1]), proof)
