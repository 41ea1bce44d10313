"""What takes several calls: a session that goes on as another customer's, whose keys are in another slot.

(1) The session is looked at, (2) a session of the other customer begins with the same terms, (3) the former ends with the
reason "merged" and answers for a grace. Killed after 2: the new one is known to nobody and ends when it is idle; the former
lives, and the call is made again. Two at once: step 3 has one winner, and the other takes back what it began in 2. A reply
that is lost is told again, as each step has an operation id of its own.
"""

from __future__ import annotations

from datetime import timedelta

from omnistate.errors import SessionExpired, SessionRotated
from omnistate.session._commands import Access, end, start, terms_of
from omnistate.store import Flow, call, new_operation_id


def move(access: Access, following: Access, grace: timedelta) -> Flow[None]:
    """Three round trips. Raises `SessionExpired`, `SessionRotated`, `CustomerMerged`."""
    terms = yield from call(terms_of(access))
    yield from call(start(following, terms, operation_id=new_operation_id()))
    try:
        yield from call(end(access, "merged", operation_id=new_operation_id(), grace=grace))
    except (SessionExpired, SessionRotated):
        yield from call(end(following, "merged", operation_id=new_operation_id()))
        raise
