"""`update(fn)`: run functions on a document and store what they changed, without losing anybody's update.

Optimistic: the functions run on the document as it was last seen, and the write is refused when it has changed since.
The refusal brings the present document, so another try costs one round trip. Functions of several callers run one after
the other on the same document and share one write; each keeps its own result, error and operation id.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any, cast

from omnistate.errors import (
    AmbiguousWrite,
    Conflict,
    InvalidInput,
    InvalidValue,
    StoreUnavailable,
)
from omnistate.state._commands import (
    Done,
    Refused,
    Reply,
    Stored,
    Target,
    Wait,
    read,
    read_outcome,
    write,
)
from omnistate.state._known import Known, Seen
from omnistate.state._model import ABSENT, Written
from omnistate.state._schema import Schema
from omnistate.store import Command, Durability, Flow, Pause, Position, call, new_operation_id

MAX_RACES = 100  # tries before `update` gives up with Conflict
MAX_BATCH = 128  # callers that share one write
_PATIENCE = 10  # races that are simply tried again; then a turn is asked for
_MOST_TURNS = 1000  # times that a write waits for other writers' turns
_NOWHERE = Position("", 0)


class Call:
    """One caller's function, and what came of it: `after` is the document once it ran, as JSON."""

    __slots__ = ("after", "context", "digest", "error", "function", "operation_id", "repeated", "result", "version")

    def __init__(self, function: Callable[[Any], Any], operation_id: str, digest: str = "") -> None:
        self.function, self.operation_id, self.digest = function, operation_id, digest
        self.context = copy_context()
        self.result: Any = None
        self.error: Exception | None = None
        self.after = b""
        self.version: Position | None = None
        self.repeated = False

    def run(self, schema: Schema[Any], value: Any, encoded: bytes) -> None:
        """Runs the function on `value`, which is private to it and was decoded from `encoded`."""
        self.error, self.after = None, encoded
        try:
            self.result = result = self.context.run(self.function, value)
            if result is not None and inspect.iscoroutine(result):
                result.close()
                self.error = InvalidInput("the function given to update must not be async: it may run several times")
                return
            self.after = schema.encode(value)
        except Exception as error:  # the caller's own: handed back to the caller
            self.error = error

    def fail(self, error: StoreUnavailable) -> bool:
        """The write that it was to share has failed; whether it may be made again, as nothing of this caller was sent."""
        is_unknown = isinstance(error, AmbiguousWrite)
        is_sent = is_unknown and self.error is None  # what its function has refused was not
        if is_sent:
            self.error = cast("AmbiguousWrite", error).of(self.operation_id)
        elif is_unknown:  # it may have refused what another caller had made of the document, and that is unknown
            self.error = StoreUnavailable(f"what the function was run on was not stored in time: {error}")
        else:
            self.error = error
        return not is_sent

    def written(self, schema: Schema[Any], durability: Durability) -> Written[Any, Any]:
        """What the caller is given. Raises the function's own error."""
        if self.error is not None:
            raise self.error
        position = self.version or _NOWHERE
        return Written(
            schema,
            self.after,
            self.version,
            position,
            self.result,
            self.operation_id,
            durability,
            repeated=self.repeated,
        )


def apply(  # noqa: C901 - the turns that an optimistic write may take, in one place
    schema: Schema[Any], target: Target, seen: Seen, calls: Sequence[Call]
) -> Flow[None]:
    """Runs the calls' functions in order and stores their changes in one write; what came of it is in the calls.

    Raises what concerns all of them: the store's errors, `SchemaMismatch`, `Conflict` after too many races.
    """
    known, waiting, turn = seen.take(target.document, schema), calls, ""
    for race in range(MAX_RACES):
        fresh = known is None
        if known is None:
            known = Known.read(schema, (yield from call(read(target))).held)
        after, value = _run_all(schema, waiting, known)
        patch = known.patch(after, value)
        if (waiting[0].error is not None or patch is None) and (yield from _was_done(schema, target, waiting[0])):
            return None
        live = [one for one in waiting if one.error is None]
        if patch is None or len(live) < len(waiting):
            if not fresh:
                known = None  # neither an error nor "nothing to do" may rest on a document that may be out of date
                continue
            if patch is None:
                return _settle(waiting, known.version)
        command = write(
            target,
            patch,
            ids=[one.operation_id for one in live],
            expect=known.version or ABSENT,
            digest=live[0].digest,
            turn=turn,
        )
        reply = yield from call(command)
        if isinstance(reply, Wait):
            reply = yield from in_turn(target, command)
        if isinstance(reply, Stored):
            seen.writes += 1
            if not known.is_volatile and not schema.rewrites:
                seen.put(target.document, known.successor(reply.version, after, value))
            else:
                seen.forget(target.document)
            return _settle(waiting, reply.version)
        if isinstance(reply, Refused):
            seen.conflicts += 1
            known = Known.read(schema, reply.held)
            if race >= _PATIENCE:
                turn = turn or new_operation_id()  # whoever lost so often is let through next
            if reply.reason == "turn":
                yield Pause(random.random() * 0.001)
            continue
        assert isinstance(reply, Done)
        seen.forget(target.document)
        waiting = yield from _find_done(schema, target, waiting, live, reply)
        if not waiting:
            return None
        known = None
    raise Conflict(
        f"{target.name} was changed by others {MAX_RACES} times in a row: call again, or write to it less often"
    )


def in_turn(target: Target, command: Command[Reply]) -> Flow[Reply]:
    """Sends a write again that was told to wait: a few milliseconds, and only on a document that is fought over."""
    for _ in range(_MOST_TURNS):
        yield Pause(random.random() * 0.002)
        reply = yield from call(command)
        if not isinstance(reply, Wait):
            return reply
    raise Conflict(f"{target.name} is written by too many others: call again, or write to it less often")


def _run_all(schema: Schema[Any], calls: Sequence[Call], known: Known) -> tuple[bytes, Any]:
    """Runs each function on a copy of its own, one after the other; returns the last document, as JSON and as a value
    that no function has seen."""
    encoded, value = known.encoded, known.spare()
    for one in calls:
        one.run(schema, schema.decode(encoded) if value is None else value, encoded)
        value = None
        if one.error is None and one.after != encoded:
            try:
                value = schema.validate(one.after)
            except InvalidValue as error:
                one.error, one.after = error, encoded
            else:
                encoded = one.after
    if value is None:
        value = known.value if encoded == known.encoded else None
    return encoded, schema.decode(encoded) if value is None else value


def _settle(calls: Sequence[Call], version: Position | None) -> None:
    for one in calls:
        one.version = version


def _find_done(
    schema: Schema[Any], target: Target, waiting: Sequence[Call], live: Sequence[Call], done: Done
) -> Flow[list[Call]]:
    """Some of these operations had been applied: their versions are known; returns the calls that are still to do.

    With an id that omnistate made, it was this very write, its answer lost: what the function has made of the document stands.
    With the caller's own id it may have been an earlier call, so there is no result to give but the document as it is.
    """
    results = dict(zip((one.operation_id for one in live), done.results, strict=True))
    left = []
    for one in waiting:
        stored = results.get(one.operation_id)
        if stored is None:
            left.append(one)
            continue
        one.version = stored.version
        if one.digest:
            yield from _read_again(schema, target, one)
    return left


def _was_done(schema: Schema[Any], target: Target, one: Call) -> Flow[bool]:
    """Whether a call under the caller's own id, whose function now refuses or changes nothing, had been applied before."""
    outcome = None
    if one.digest:
        outcome = yield from call(read_outcome(target.log.meta, one.operation_id, one.digest))
    if outcome is None:
        return False
    yield from _read_again(schema, target, one)
    return True


def _read_again(schema: Schema[Any], target: Target, one: Call) -> Flow[None]:
    """A call that repeats another one gives the document as it is, value and version."""
    present = (yield from call(read(target))).held
    one.error, one.result, one.repeated = None, None, True
    one.version, one.after = present.version, schema.join(schema.upgrade(present.flat, present.class_version))
