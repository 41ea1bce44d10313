"""After a restore: who had been erased since the backup was made is erased again.

The list of erasures holds no ids, so every customer's id is hashed and looked up in it. First those who are there are erased,
then the hashes of all others are written down, so that an import does not bring those back either. Killed at any moment, it can
be run again: who was erased is no longer there, and an erasure or a hash twice is the same as once.
"""

from __future__ import annotations

from collections.abc import Iterable

from omnistate.customer import Erasure, erase_customer, refuse_again
from omnistate.errors import CustomerMerged
from omnistate.ops._bulk import Bulk
from omnistate.ops._job import Progress, each, silent
from omnistate.store import PARTITIONS, run


async def erase_again(bulk: Bulk, erasures: Iterable[Erasure], *, progress: Progress = silent) -> list[Erasure]:
    """Erases the customers whose hashes are in the list, and refuses all of them from then on; what was erased now."""
    listed = {one.digest: one for one in erasures}
    execute, done, merged, seen = bulk.services.link.execute, list[Erasure](), list[str](), set[str]()
    for index in range(PARTITIONS):
        for customer_id in await bulk.partition(index):
            if (entry := listed.get(bulk.keyspace.tombstone(customer_id))) is None:
                continue
            seen.add(entry.digest)
            work = erase_customer(bulk.keyspace, customer_id, actor=entry.actor, reason=entry.reason)
            try:
                done.append(await run(work, execute))
            except CustomerMerged:  # goes with the one whom it was merged into
                merged.append(customer_id)
        progress(index + 1, PARTITIONS)
    absent = [one for digest, one in listed.items() if digest not in seen]
    await each(absent, lambda one: run(refuse_again(bulk.keyspace, one), execute))
    for customer_id in merged:  # it went with the survivor, or can go now that the survivor is refused
        entry = listed[bulk.keyspace.tombstone(customer_id)]
        done.append(
            await run(erase_customer(bulk.keyspace, customer_id, actor=entry.actor, reason=entry.reason), execute)
        )
    return done
