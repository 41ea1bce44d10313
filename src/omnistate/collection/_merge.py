"""What becomes of two collections of one name when two customers turn out to be one; and loading a collection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omnistate.collection._commands import Place, Target
from omnistate.collection._model import Collection
from omnistate.errors import Conflict
from omnistate.state import ABSENT, ANY, Part, Precondition, parse_change
from omnistate.store import Argument, OwnOperationId

_AT_ONCE = 500
_Call = tuple[str, bytes, list[Argument]]


async def merge_collection(
    declaration: Collection[Any],
    place: Place,
    theirs: list[bytes],
    deadlines: Mapping[bytes, int],
    *,
    names: tuple[str, ...],
) -> None:
    """Adds another customer's collection to this one, once for all calls with these names of the merge.

    Sets become their union and counters their sum; a map keeps this customer's entries and gets the others; a sorted set
    keeps the higher score of a member in both; a list gets the other's values as its oldest, as many as its limit allows;
    a queue gets the other's items. Nothing is refused for the number of entries.
    """
    target = Target(declaration, place)
    for index, part in enumerate(parts_of(target, theirs, deadlines)):
        operation_id = OwnOperationId("merge", *names, str(index))
        command = parse_change(place.log, [part], operation_id, lambda _, reply: target.refusal(reply))
        await place.services.link.execute(command)


async def load_collection(
    declaration: Collection[Any],
    place: Place,
    values: list[bytes],
    deadlines: Mapping[bytes, int],
    *,
    names: tuple[str, ...],
) -> None:
    """Makes a collection that is not there of what another one held, once for all calls with these names.

    Raises `Conflict` when it is there.
    """
    target = Target(declaration, place)
    for index, part in enumerate(parts_of(target, values, deadlines, expect=ABSENT)):
        operation_id = OwnOperationId("load", *names, str(index))
        command = parse_change(place.log, [part], operation_id, lambda _, reply: _refusal(target, reply))
        await place.services.link.execute(command)


def _refusal(target: Target, reply: list[Any]) -> Exception:
    return Conflict(f"{target.collection.name} is there already") if reply[0] == b"conflict" else target.refusal(reply)


def parts_of(
    target: Target, values: list[bytes], deadlines: Mapping[bytes, int], *, expect: Precondition = ANY
) -> Iterator[Part]:
    """The changes that add these values; `expect` holds for the first of them. Deadlines are milliseconds since 1970."""
    kind = target.collection.kind
    limit = None if kind in ("list", "sorted") else "0"
    lasting = values
    if deadlines:
        pairs = zip(values[::2], values[1::2], strict=True)
        lasting = [one for key, value in pairs if key not in deadlines for one in (key, value)]
    for operation, event, arguments in _calls(kind, lasting):
        yield target.part(operation, event, arguments, expect, limit)
        expect = ANY
    held = dict(zip(values[::2], values[1::2], strict=True)) if deadlines else {}
    for key, deadline in deadlines.items():
        if key in held:
            yield target.part("fill", b"", [f"={deadline}", key, held[key]], expect, limit)
            expect = ANY


def _chunks(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for at in range(0, len(values), size):
        yield values[at : at + size]


def _calls(kind: str, theirs: list[Any]) -> Iterator[_Call]:  # noqa: C901 - one case for each kind
    if not theirs:
        return
    match kind:
        case "counter":
            yield "add", b"", [theirs[0], "", ""]
        case "unique":
            yield "absorb", b"", [theirs[0]]
        case "set":
            for values in _chunks(theirs, _AT_ONCE):
                yield "add", b',"values":[' + b",".join(values) + b"]", list(values)
        case "list":
            for values in reversed(list(_chunks(theirs, _AT_ONCE))):
                yield "prepend", b"", list(values)
        case "map":
            for pairs in _chunks(theirs, 2 * _AT_ONCE):
                yield "fill", b"", ["", *pairs]
        case "sorted":
            for pairs in _chunks(theirs, 2 * _AT_ONCE):
                flipped = [one for at in range(0, len(pairs), 2) for one in (pairs[at + 1], pairs[at])]
                yield "put", b"", ["higher", *flipped]
        case _:
            items = sorted(zip(theirs[::2], theirs[1::2], strict=True), key=lambda item: int(item[0]))
            for some in _chunks(items, _AT_ONCE):
                yield "put", b"", ["0", *(item.split(b" ", 1)[1] for _, item in some)]
