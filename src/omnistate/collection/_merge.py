"""What becomes of two collections of one name when two customers turn out to be one; and loading a collection."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from omnistate.collection._commands import Place, Target
from omnistate.collection._model import Collection
from omnistate.errors import Conflict
from omnistate.state import ABSENT, ANY, Part, Precondition, parse_change, read_outcome
from omnistate.store import Argument, OwnOperationId, new_operation_id

_AT_ONCE = 500
_Call = tuple[str, bytes, list[Argument]]


async def merge_collection(
    declaration: Collection[Any],
    place: Place,
    theirs: list[Any],
    *,
    names: tuple[str, ...],
) -> None:
    """Adds another customer's collection to this one, once for all calls with these names of the merge.

    Sets become their union and counters their sum; a map keeps this customer's entries and gets the others, with their
    deadlines; a sorted set keeps the higher score of a member in both; a list gets the other's values as its oldest, as
    many as its limit allows; a queue gets the other's items, and those that are leased or delayed when that ends. Nothing
    is refused for the number of entries.
    """
    target = Target(declaration, place)
    for index, part in enumerate(parts_of(target, theirs)):
        # A merge that goes on later may find fewer entries, as some have expired: then this is not the same call.
        said = b"\0".join(one if isinstance(one, bytes) else str(one).encode() for one in part.arguments[8:])
        digest = hashlib.blake2b(said, digest_size=8).hexdigest()
        operation_id = OwnOperationId("merge", *names, str(index), digest)
        command = parse_change(place.log, [part], operation_id, lambda _, reply: target.refusal(reply))
        await place.services.link.execute(command)


async def load_collection(
    declaration: Collection[Any],
    place: Place,
    values: list[Any],
    *,
    names: tuple[str, ...],
    overwrite: bool = False,
) -> None:
    """Makes a collection of what another one held, once for all calls with these names.

    Raises `Conflict` when it is there, unless it is to be overwritten.
    """
    target = Target(declaration, place)
    if overwrite:
        # What an earlier call with these names has begun to load is not to be removed: its first part tells.
        begun = await place.services.link.execute(read_outcome(place.log, OwnOperationId("load", *names, "0"), ""))
        if begun is None:
            clear = parse_change(
                place.log, [target.delete()], new_operation_id(), lambda _, reply: target.refusal(reply)
            )
            await place.services.link.execute(clear)
    for index, part in enumerate(parts_of(target, values, expect=ABSENT)):
        operation_id = OwnOperationId("load", *names, str(index))
        command = parse_change(place.log, [part], operation_id, lambda _, reply: _refusal(target, reply))
        await place.services.link.execute(command)


def _refusal(target: Target, reply: list[Any]) -> Exception:
    return Conflict(f"{target.collection.name} is there already") if reply[0] == b"conflict" else target.refusal(reply)


def parts_of(target: Target, values: list[Any], *, expect: Precondition = ANY) -> Iterator[Part]:
    """The changes that add what another collection holds, as it is read to be moved; `expect` is for the first of them."""
    drops = target.collection.kind == "list" or target.collection.limit_argument.endswith(
        "st"
    )  # keep="highest", "lowest"
    for operation, event, arguments in _calls(target.collection.kind, values):
        yield target.part(operation, event, arguments, expect, None if drops else "0")
        expect = ANY


def _chunks(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for at in range(0, len(values), size):
        yield values[at : at + size]


def _triples(theirs: list[Any]) -> list[tuple[Any, Any, Any]]:
    return list(zip(theirs[::3], theirs[1::3], theirs[2::3], strict=True))


def _calls(kind: str, theirs: list[Any]) -> Iterator[_Call]:  # noqa: C901 - one case for each kind
    if not theirs:
        return
    match kind:
        case "counter":
            yield "add", b"", [theirs[0], "", ""]
        case "unique":
            yield "absorb", b"", [theirs[0]]
        case "set":
            for values in _chunks(sorted(theirs), _AT_ONCE):  # a server that was restarted has another order
                yield "add", b',"values":[' + b",".join(values) + b"]", list(values)
        case "list":
            for values in reversed(list(_chunks(theirs, _AT_ONCE))):
                yield "prepend", b"", list(values)
        case "map":
            for some in _chunks(sorted(_triples(theirs)), _AT_ONCE):
                yield "fill", b"", list(chain.from_iterable(some))
        case "sorted":
            for pairs in _chunks(theirs, 2 * _AT_ONCE):
                flipped = [one for at in range(0, len(pairs), 2) for one in (pairs[at + 1], pairs[at])]
                yield "put", b"", ["higher", *flipped]
        case _:
            items = sorted(_triples(theirs), key=lambda item: int(item[0]))
            for some in _chunks(items, _AT_ONCE):
                yield "fill", b"", list(chain.from_iterable(item[1:] for item in some))
