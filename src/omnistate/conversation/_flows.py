"""Hand-off and claim: several calls, since a queue lives in another slot than its customers.

Hand-off: (1) the entry is put into the queue under a fresh token, (2) the conversation's owner becomes the queue, with
the token. Claim: (1) the longest waiting entry is leased, (2) the conversation's owner becomes the agent if it still
belongs to the queue by this very token, (3) the entry is removed.

- Killed after hand-off 1: the owner has not changed. A claim finds the entry pending; once it is overdue the claim
  cancels the token in the conversation, so that step 2 can no longer happen, and removes the entry.
- Killed after claim 1: the lease ends by itself and the entry is leased to the next agent, at its old place.
- Killed after claim 2: the agent owns the conversation. The entry comes back when its lease ends; taking it again
  succeeds for the same agent, and for others it is found gone and removed.
- Replies lost: every call carries an operation id, so each step happens once.
- Two agents: a lease gives an entry to one; where a lease ended too early, step 2 lets one win.
- The customer was erased meanwhile: whoever finds that out, by step 2 of either, takes what step 1 left out of the queue.
- Clocks: only leases and the age at which a hand-off is overdue use a clock. Who owns what never depends on one.
"""

from __future__ import annotations

from collections.abc import Callable

from omnistate.conversation._commands import (
    ConversationKeys,
    Entry,
    forget,
    forget_operations,
    hand_off,
    lease,
    put,
    settle,
    take,
)
from omnistate.conversation._model import Owner
from omnistate.errors import CustomerErased, OmnistateError, StoreUnavailable
from omnistate.store import Flow, LogKeys, Pause, call, new_operation_id

_PATIENCE = 20  # looks at a hand-off that is just being made
_LOOK_AGAIN = 0.01  # seconds


def hand_off_to_queue(
    keys: ConversationKeys, queue_log: LogKeys, queue: str, *, reason: str, by: str | None, channel: str | None
) -> Flow[Owner]:
    """Two round trips. Raises `OwnershipLost`, and then takes the entry back."""
    entry = Entry(keys.id, new_operation_id())
    yield from call(put(queue_log, queue, entry, reason=reason, operation_id=new_operation_id()))
    try:
        owner = yield from call(
            hand_off(keys, queue, reason, entry.token, by=by, channel=channel, operation_id=new_operation_id())
        )
    except StoreUnavailable:
        raise  # it may have happened: a claim will find out
    except CustomerErased as erased:
        yield from forget_in_queue(queue_log, erased.customer)
        raise
    except OmnistateError:
        yield from call(settle(queue_log, queue, entry, operation_id=new_operation_id()))
        raise
    if owner is None:
        raise StoreUnavailable("the hand-off took too long and was cancelled; nothing has changed: call again")
    return owner


def claim_from_queue(
    keys_of: Callable[[str], ConversationKeys], queue_log: LogKeys, queue: str, agent: str
) -> Flow[str | None]:
    """The id of the conversation that the agent owns now; None when nobody waits. Three round trips."""
    pending: list[Entry] = []
    claimed: str | None = None
    while claimed is None:
        entry = yield from call(lease(queue_log, operation_id=new_operation_id()))
        if entry is None:
            break
        try:
            outcome = yield from _take_patiently(keys_of(entry.conversation_id), agent, queue, entry)
        except CustomerErased as erased:
            yield from forget_in_queue(queue_log, erased.customer)
            continue
        if outcome == "pending":
            pending.append(entry)
            continue
        if outcome == "ok":
            claimed = entry.conversation_id
        winner = agent if claimed else None
        yield from call(settle(queue_log, queue, entry, agent=winner, operation_id=new_operation_id()))
    for entry in pending:
        yield from call(settle(queue_log, queue, entry, release=True, operation_id=new_operation_id()))
    return claimed


def _take_patiently(keys: ConversationKeys, agent: str, queue: str, entry: Entry) -> Flow[str]:
    """A hand-off shows in the queue a moment before it is finished: look again for a little while."""
    for _ in range(_PATIENCE):
        outcome = yield from call(take(keys, agent, queue, entry, operation_id=new_operation_id()))
        if outcome != "pending":
            return outcome
        yield Pause(_LOOK_AGAIN)
    return "pending"


def forget_in_queue(queue_log: LogKeys, customer: str) -> Flow[None]:
    """Takes an erased customer's conversations out of a queue and of what it remembers. Three round trips and more."""
    yield from call(forget(queue_log, customer))
    for older in (False, True):
        cursor = yield from call(forget_operations(queue_log, older=older, customer=customer, cursor=b"0"))
        while cursor != b"0":
            cursor = yield from call(forget_operations(queue_log, older=older, customer=customer, cursor=cursor))
