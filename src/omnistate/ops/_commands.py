"""Commands of the upkeep. No IO."""

from __future__ import annotations

from typing import Any

from omnistate.collection import own_keys
from omnistate.session import session_keys
from omnistate.store import Argument, Command, Keyspace, LogKeys

Due = list[tuple[str, bytes]]  # entries and their headers


def take_due(keyspace: Keyspace, partition: int, *, lease_ms: int, most: int) -> Command[list[str]]:
    """Names of logs of which something has fallen due; nobody else gets them for the lease."""
    return Command(
        "agenda_take", (keyspace.agenda(partition),), (lease_ms, most), lambda reply: [one.decode() for one in reply]
    )


def list_page(keyspace: Keyspace, partition: int, cursor: bytes) -> Command[tuple[bytes, list[str]]]:
    """Names of logs of a partition, and the cursor of the next page, "0" after the last."""
    return Command(
        "agenda_page",
        (keyspace.agenda(partition),),
        (cursor,),
        lambda reply: (reply[0], [one.decode() for one in reply[1:]]),
    )


def count_customers(keyspace: Keyspace, partition: int) -> Command[tuple[int, int]]:
    """How many customers a partition has, and the server's time in milliseconds."""
    return Command("agenda_size", (keyspace.agenda(partition),), (), lambda reply: (int(reply[0]), int(reply[1])))


def find_due(log: LogKeys) -> Command[Due]:
    """What of a log has fallen due."""

    def parse(reply: list[Any]) -> Due:
        return [(entry.decode(), header) for entry, header in zip(reply[::2], reply[1::2], strict=True)]

    return Command("log_due", (log.meta, log.written[3], session_keys(log)[0]), (), parse)


def expire(log: LogKeys, due: Due) -> Command[int]:
    """Ends what has fallen due, with events, and says when to come again; the number of events. Safe to repeat."""
    keys: list[bytes] = [*log.written, *session_keys(log)]
    arguments: list[Argument] = [0, ""]
    for entry, header in due:
        name = entry.removeprefix("doc:")
        _, _, _, _, _, kind, _, *more = header.decode().split(" ")
        own = own_keys(log, kind, name)
        held = next((one.removeprefix("index=").split(",") for one in more if one.startswith("index=")), [])
        keys += own
        keys += [log.index(f"{name.partition(':')[0]}.{index}") for index in held]
        arguments += (entry, len(own), len(held))
    return Command("log_expire", keys, arguments, int)
