"""An identity as a value, and the commands on identities' records and on customers' lists of them. No IO."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import msgspec

from omnistate.errors import InvalidInput
from omnistate.store import Command, LogKeys, OwnOperationId, encode_id, merged_error, opening

MOST_IDENTITIES = 1000  # of a customer: the list is read as a whole
NO_LIMIT = 1_000_000_000


class Confidence(StrEnum):
    """How sure it is that an address belongs to a customer."""

    ASSERTED = "asserted"  # somebody said so
    VERIFIED = "verified"  # it was proven: a login, a code that came back, a signed webhook of the channel


ASSERTED, VERIFIED = Confidence.ASSERTED, Confidence.VERIFIED


def confidence_of(proof: object) -> Confidence:
    """Raises `InvalidInput` for what is no confidence."""
    try:
        return Confidence(proof)  # type: ignore[arg-type]
    except ValueError:
        raise InvalidInput(f"proof must be omnistate.ASSERTED or omnistate.VERIFIED, not {proof!r}") from None


class Identity(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a customer is known on one channel: the address as it was given, how sure that is, and since when it is so."""

    channel: str
    address: str
    confidence: Confidence = ASSERTED
    linked: datetime | None = None

    def __repr__(self) -> str:  # an address is personal data
        return f"Identity(channel={self.channel!r}, address=..., confidence={self.confidence.value!r})"


class _Given(msgspec.Struct, frozen=True):
    """What a customer's list keeps of an identity as JSON."""

    channel: str
    address: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Given).decode


def identity_of(entry: bytes) -> Identity:
    """An identity as a customer's list has it."""
    _, proof, linked, _, _, _, given = entry.split(b" ", 6)
    said, since = _decode(given), datetime.fromtimestamp(int(linked) / 1000, UTC)
    return Identity(said.channel, said.address, VERIFIED if proof == b"1" else ASSERTED, since)


def identities_key(log: LogKeys) -> bytes:
    return log.key("identities")


@dataclass(frozen=True, slots=True)
class Facts:
    """What an identity's record says. `customer` is empty when it belongs to nobody; see functions.lua."""

    customer: str
    confirmed: str
    tenure: str
    proof: str
    linked: str
    ends: str
    left: str
    left_tenure: str

    @property
    def is_settled(self) -> bool:
        """Every list is as the record says."""
        return not self.left and (not self.customer or self.confirmed == "1")

    @property
    def confidence(self) -> Confidence:
        return VERIFIED if self.proof == "1" else ASSERTED


def _facts(reply: list[bytes]) -> Facts:
    return Facts(*(one.decode() for one in reply))


def _named(what: str, tenure: str) -> OwnOperationId:
    """Changes of a record name the tenure that they rest on, which makes a retry harmless. The id says that they are writes:
    they are waited for where that is asked, with all that was written there before, and a lost answer is told as one.
    """
    return OwnOperationId("identity", what, tenure)


def proof_word(proof: Confidence) -> str:
    return "1" if proof == VERIFIED else "0"


def claim(
    key: bytes,
    candidate: str,
    tenure: str = "first",
    proof: Confidence = ASSERTED,
    *,
    lifetime: int = 0,
    only: str = "",
    linked: datetime | None = None,
) -> Command[Facts]:
    """It belongs to `candidate` if it was nobody's. More proof and a later end count for all owners, or `only` this one."""
    since = "" if linked is None else f"{linked.timestamp() * 1000:.0f}"
    arguments = (candidate, tenure, proof_word(proof), str(lifetime), only, since)
    return Command("identity_claim", (key,), arguments, _facts)


def move(key: bytes, before: str, tenure: str, after: str, new_tenure: str, *, leaves: bool) -> Command[Facts]:
    """It belongs to `after`, as it did to `before` (under this tenure; '' for any), or to nobody when that is ''.

    Nothing has happened when the facts that come back have another tenure. `leaves`: the list of `before` names it still.
    """
    arguments = (before, tenure, after, new_tenure, "", "0", "1" if leaves else "", "")
    return Command("identity_move", (key,), arguments, _facts, _named("moved", new_tenure))


def give(key: bytes, facts: Facts, after: str, tenure: str, proof: Confidence, *, lifetime: int) -> Command[Facts]:
    """It belongs to `after` if the facts are still so, with this proof, linked now; its owner's list names it still."""
    arguments = (facts.customer, facts.tenure, after, tenure, proof_word(proof), str(lifetime), "1", facts.proof)
    return Command("identity_move", (key,), arguments, _facts, _named("moved", tenure))


def settle_named(key: bytes, facts: Facts) -> Command[Facts]:
    """The owner's list says what the facts say."""
    arguments = (facts.tenure, facts.proof, facts.ends, "")
    return Command("identity_settle", (key,), arguments, _facts, _named("settled", facts.tenure))


def settle_left(key: bytes, facts: Facts) -> Command[Facts]:
    """The list of who was left no longer names it."""
    arguments = ("", "", "", facts.left_tenure)
    return Command("identity_settle", (key,), arguments, _facts, _named("left", facts.left_tenure))


def look(key: bytes) -> Command[Facts]:
    return Command("identity_look", (key,), (), _facts)


def _event(kind: str, channel: str, confidence: Confidence | None) -> bytes:
    """An address never gets into an event."""
    said = b'{"type":"identity.%b","channel":%b,"confidence":' % (kind.encode(), _encode(channel))
    return said + (_encode(confidence) if confidence else b"")


def _raise_if_merged(log: LogKeys, reply: Any) -> None:
    if type(reply) is list and reply[0] == b"merged":
        raise merged_error(log, reply[1])


def note(log: LogKeys, digest: str, given: Identity, facts: Facts, *, most: int) -> Command[tuple[str, str] | None]:
    """The customer's list names it: with which proof and end. None: there are as many as there may be."""
    operation_id = _named("linked", facts.tenure)

    def parse(reply: Any) -> tuple[str, str] | None:
        _raise_if_merged(log, reply)
        said = (reply[1] if type(reply) is list else reply).decode()
        proof, _, ends = said.partition(" ")
        return None if said == "full" else (proof, ends)

    arguments = (
        *opening(operation_id),
        *(digest, facts.tenure, facts.proof, facts.linked, facts.ends, encode_id(given.channel)),
        *(most, max(most, MOST_IDENTITIES), _encode(_Given(given.channel, given.address))),
        _event("linked", given.channel, facts.confidence),
    )
    return Command("customer_note", (*log.written, identities_key(log)), arguments, parse, operation_id)


def strengthen(log: LogKeys, digest: str, channel: str, facts: Facts) -> Command[None]:
    """The customer's list has the proof and the end of the facts, if it names this tenure."""
    operation_id = OwnOperationId("identity", "strengthened", facts.tenure, facts.proof, facts.ends)
    event = _event("verified", channel, VERIFIED)
    arguments = (*opening(operation_id), digest, facts.tenure, facts.proof, facts.ends, event)
    keys = (*log.written, identities_key(log))
    return Command("customer_strengthen", keys, arguments, lambda reply: _raise_if_merged(log, reply), operation_id)


def drop(log: LogKeys, digest: str, channel: str, tenure: str) -> Command[None]:
    """The customer's list no longer names it under this tenure."""
    operation_id = _named("unlinked", tenure)
    arguments = (*opening(operation_id), digest, tenure, _event("unlinked", channel, None))
    return Command("customer_drop", (*log.written, identities_key(log)), arguments, lambda _: None, operation_id)


def forget(key: bytes, customer: str) -> Command[Facts]:
    """The record names this customer, who was erased, no more. Safe to repeat."""
    return Command("identity_forget", (key,), (customer,), _facts, OwnOperationId("identity", "forgotten", customer))


def listed(log: LogKeys) -> Command[dict[str, Identity]]:
    """The customer's identities by digest. Raises `CustomerMerged`, `CustomerErased`."""

    def parse(reply: list[Any]) -> dict[str, Identity]:
        if reply[0]:
            raise merged_error(log, reply[0])
        pairs = zip(reply[1::2], reply[2::2], strict=True)
        return {digest.decode(): identity_of(entry) for digest, entry in pairs}

    return Command("customer_read", (log.meta, identities_key(log), log.written[4]), (), parse)
