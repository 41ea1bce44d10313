"""Erasing a customer: several calls, since identities and queues live in other slots.

(1) In the customer's slot, in one call: a tombstone, which refuses every later write for this id; a journal; an event, which
ends watches and empties near caches; the log is gone, with the headers of all documents, so nothing is found any more; the
sessions are gone, and what the partition's endings said of them. (2) Identities that point to the customer are removed. (3)
The customer's conversations are taken out of all queues. (4) Who was merged into the customer is erased in the same way. (5)
The keys of the customer are looked for by name and removed, and the entries in the partition's indexes, until a whole walk
over the server finds nothing. (6) The tenant's list of erasures gets an entry. (7) The journal is removed.

- Killed anywhere: `erase` again goes on, and the sweeper does after a minute: what is not finished is in the agenda. Each
  step finds what the one before it left: identities, conversations and the list of merged ones are removed in step 5 only.
- Replies lost: every step done twice is done once. What was removed is counted in the call that removes it.
- Two at once, or one beside a sweeper: they do the same. The first that ends the journal ends it for both.
- Somebody writes meanwhile: refused from step 1 on, whatever it was: an erased customer has no log, a write that finds
  no log looks for a tombstone, in the same call. What was put into another slot just before (an identity, a queue's entry) is
  taken back by whoever put it there and is then refused, or else by whoever finds it.
- A merge into the customer at the same time: it is refused at its next write. The other customer, if frozen by then, can be
  erased as one who was merged into somebody erased.
- A slot moves, or a primary is replaced, during step 5: a walk that two servers have answered counts as no walk.
- Clocks: the time of the erasure is said; nothing rests on it.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import msgspec

from omnistate.conversation import forget_in_queue, queues_of
from omnistate.customer import _erase_commands as commands
from omnistate.customer._commands import read
from omnistate.customer._erase_commands import Begun, NotErased
from omnistate.customer._identity import forget
from omnistate.errors import CustomerErased, CustomerMerged, InvalidInput
from omnistate.store import PARTITIONS, Flow, Keyspace, LogKeys, call, partition_of

_AT_ONCE = 200  # keys of one call
_MOST_TEXT = 500  # characters of a reason or an actor


class Erasure(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an erasure removed, or would remove: numbers, never content.

    `customer` is "" in the tenant's list, where `digest`, a keyed hash, stands for the id. `merged`: how many customers who had
    been merged into this one were erased with it; `into` is the digest of the one whom such a customer had been merged into.
    `counts` say how much there was of each kind, `partition` where the hash of the id is kept.
    `repeated`: it had been erased before, and this is what was done then.
    """

    at: datetime
    actor: str
    reason: str
    counts: dict[str, int]
    digest: str
    merged: int = 0
    into: str = ""
    customer: str = ""
    partition: int = 0
    repeated: bool = False
    dry_run: bool = False


_decode = msgspec.json.Decoder(Erasure).decode


def check_said(actor: str, reason: str) -> None:
    """Raises `InvalidInput` unless it is said who erases, and why."""
    for what, text in (("actor", actor), ("reason", reason)):
        if not isinstance(text, str) or not text.strip() or len(text) > _MOST_TEXT:
            raise InvalidInput(
                f"an erasure is written down: say {what}=, 1 to {_MOST_TEXT} characters, and nothing about the customer"
            )


def erase_customer(keyspace: Keyspace, customer: str, *, actor: str, reason: str) -> Flow[Erasure]:
    """Erases, or finishes it. Raises `CustomerMerged`: erase the one that it was merged into."""
    begun = yield from call(_begin(keyspace, customer, "", actor, reason))
    if isinstance(begun, NotErased):
        into = begun.into
        if not (yield from call(commands.check(keyspace.customer(into)))):
            raise CustomerMerged(customer, into=into)
        begun = yield from call(_begin(keyspace, customer, into, actor, reason))
        if isinstance(begun, NotErased):
            raise CustomerMerged(customer, into=begun.into)
    return (yield from _finish(keyspace, customer, begun))


def resume_erasure(keyspace: Keyspace, customer: str) -> Flow[Erasure | None]:
    """For the sweeper: finishes what was begun. None: it was not."""
    if not (yield from call(commands.check(keyspace.customer(customer)))):
        return None
    begun = yield from call(_begin(keyspace, customer, "", "", ""))
    return None if isinstance(begun, NotErased) else (yield from _finish(keyspace, customer, begun))


def preview_erasure(keyspace: Keyspace, customer: str, *, actor: str, reason: str) -> Flow[Erasure]:
    """What would be removed. Raises `CustomerErased`, `CustomerMerged`."""
    log = keyspace.customer(customer)
    if (yield from call(commands.check(log))):
        raise CustomerErased(customer)
    into, _ = yield from call(read(log))
    if into is not None:
        raise CustomerMerged(customer, into=into)
    counts, merged = yield from _count(keyspace, customer)
    found = {kind: number for kind, number in counts.items() if number}
    digest = keyspace.tombstone(customer)
    return Erasure(datetime.now(UTC), actor, reason, found, digest, merged, customer=customer, dry_run=True)


def list_erasures(keyspace: Keyspace) -> Flow[list[Erasure]]:
    """The tenant's list, oldest first."""
    found: dict[str, bytes] = {}
    cursor, page = yield from call(commands.list_erasures(keyspace, b"0"))
    found.update(page)
    while cursor != b"0":
        cursor, page = yield from call(commands.list_erasures(keyspace, cursor))
        found.update(page)
    return sorted(map(_decode, found.values()), key=lambda one: one.at)


def refuse_again(keyspace: Keyspace, erasure: Erasure) -> Flow[None]:
    """For a store that was restored from before an erasure: the id is refused again, and listed. Safe to repeat."""
    milliseconds = round(erasure.at.timestamp() * 1000)
    yield from call(commands.refuse(keyspace, erasure.partition, erasure.digest, milliseconds))
    plain = msgspec.structs.replace(erasure, customer="", repeated=False)
    yield from call(commands.record(keyspace, erasure.digest, msgspec.json.encode(plain)))


def _begin(keyspace: Keyspace, customer: str, into: str, actor: str, reason: str) -> commands.Beginning:
    return commands.begin(keyspace, keyspace.customer(customer), into=into, actor=actor, reason=reason)


def _finish(keyspace: Keyspace, customer: str, begun: Begun) -> Flow[Erasure]:
    log, merged = keyspace.customer(customer), 0
    if not begun.is_over:
        others, identities = yield from call(commands.read_others(log))
        for digest in identities:
            yield from call(forget(keyspace.identity_of(digest), customer))
        yield from _leave_queues(keyspace, customer)
        for other in others:
            merged += yield from _erase_merged(keyspace, other, customer, begun)
        yield from _clear(log)
        latest = yield from call(_begin(keyspace, customer, begun.into, begun.actor, begun.reason))
        assert isinstance(latest, Begun)  # it has a tombstone
        begun = begun if latest.is_over else latest
    return (yield from _write_down(keyspace, customer, begun, merged))


def _write_down(keyspace: Keyspace, customer: str, begun: Begun, merged: int) -> Flow[Erasure]:
    """The last two steps. What had been written down before stays."""
    into = keyspace.tombstone(begun.into) if begun.into else ""
    at = datetime.fromtimestamp(begun.time / 1000, UTC)
    entry = Erasure(at, begun.actor, begun.reason, begun.counts, begun.digest, merged, into)
    entry = msgspec.structs.replace(entry, partition=partition_of(keyspace.customer(customer).name))
    held = _decode((yield from call(commands.record(keyspace, begun.digest, msgspec.json.encode(entry)))))
    if not begun.is_over:
        yield from call(commands.end(keyspace.customer(customer)))
    return msgspec.structs.replace(held, customer=customer, repeated=begun.is_over)


def _leave_queues(keyspace: Keyspace, customer: str) -> Flow[None]:
    for partition in range(PARTITIONS):
        for queue in (yield from call(queues_of(keyspace, partition))):
            yield from forget_in_queue(queue, customer)


def _erase_merged(keyspace: Keyspace, other: str, customer: str, by: Begun) -> Flow[int]:
    """Erases who was merged into the customer; how many that were. A merge that was never made leaves `other` alone."""
    begun = yield from call(_begin(keyspace, other, customer, by.actor, by.reason))
    if isinstance(begun, NotErased):
        return 0
    done = yield from _finish(keyspace, other, begun)
    return 1 + done.merged


def _clear(log: LogKeys) -> Flow[None]:
    """Removes all keys of the customer but the journal, and the entries in indexes."""
    while True:
        found = yield from _walk(log, only_count=False)
        if found is not None and not found.total():
            return


def _count(keyspace: Keyspace, customer: str) -> Flow[tuple[Counter[str], int]]:
    log = keyspace.customer(customer)
    counts = None
    while counts is None:
        counts = yield from _walk(log, only_count=True)
    others, _ = yield from call(commands.read_others(log))
    merged = 0
    for other in others:
        into, _ = yield from call(read(keyspace.customer(other)))
        if into == customer:
            theirs, more = yield from _count(keyspace, other)
            counts, merged = counts + theirs, merged + 1 + more
    return counts, merged


def _walk(log: LogKeys, *, only_count: bool) -> Flow[Counter[str] | None]:
    """What was removed, or is there, by kind; keys that are not counted as "". None: several servers have answered."""
    counts: Counter[str] = Counter()
    seen, servers, cursor = {commands.journal_key(log)}, set[bytes](), b"0"
    while True:
        names = yield from call(commands.find_keys(log, cursor))
        cursor = names.cursor
        servers.add(names.server)
        own = [key for key in dict.fromkeys(names.own) if key not in seen]
        for first in range(0, len(own), _AT_ONCE):
            some = own[first : first + _AT_ONCE]
            found = yield from call(commands.erase_keys(log, some, only_count=only_count))
            if found is None:
                return Counter()
            counts.update(found)
            counts[""] += 0 if only_count else len(some)
        for index in names.indexes:
            if index not in seen:
                counts["index_entries"] += yield from _leave_index(log, index, only_count=only_count)
        seen.update(names.own, names.indexes)
        if cursor == b"0":
            return counts if len(servers) == 1 else None


def _leave_index(log: LogKeys, index: bytes, *, only_count: bool) -> Flow[int]:
    cursor, number = yield from call(commands.erase_from_index(log, index, b"0", only_count=only_count))
    while cursor != b"0":
        cursor, more = yield from call(commands.erase_from_index(log, index, cursor, only_count=only_count))
        number += more
    return number
