"""What this process knows of documents: where an `update` starts from, and what tells what it changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from omnistate.errors import InvalidValue, SchemaMismatch
from omnistate.state._commands import Held, Patch
from omnistate.state._schema import Flat, Schema
from omnistate.store import Position


class Known:
    """A document as this process knows it: to run functions on, and to tell what they changed.

    `value` is one that nobody else holds. Where values cannot be compared, `flat` holds the document as hash fields, and
    `value` may be None. Both as this class writes them, so that what a newer class has put inside a field is no change.
    `stored` is what is there, where that may differ.
    """

    __slots__ = (
        "after",
        "encoded",
        "flat",
        "is_of_other_shape",
        "is_volatile",
        "later",
        "schema",
        "stored",
        "value",
        "version",
    )

    def __init__(
        self, schema: Schema[Any], version: Position | None, encoded: bytes, flat: Flat | None, value: Any = None
    ) -> None:
        self.schema, self.version, self.encoded, self.flat, self.value = schema, version, encoded, flat, value
        self.stored: Flat | None = None
        self.later: list[Patch] = []  # changes that came after `encoded`, up to `version`
        self.after: Flat = {}  # what `diff` has made of the other document
        self.is_volatile = False  # parts of it may expire: it must be read again before each change
        self.is_of_other_shape = False  # another version of the class wrote it

    @classmethod
    def read(cls, schema: Schema[Any], held: Held) -> Known:
        if held.damaged:
            raise SchemaMismatch.of_fields(schema.name, held.damaged, then=", so nothing is changed")
        stored = schema.upgrade(held.flat, held.class_version)
        value = schema.decode(schema.join(stored))
        encoded = schema.encode(value)
        known = cls(schema, held.version, encoded, None if schema.compares else schema.split(encoded), value)
        known.stored = stored
        known.is_volatile = held.is_volatile
        known.is_of_other_shape = held.version is not None and held.class_version != schema.writes
        return known

    def patch(self, encoded: bytes, value: Any) -> Patch | None:
        """What makes the other document, given as JSON and as a value, of this one; None when nothing does."""
        sets, drops = self.diff(encoded, value)
        if not sets and not drops:
            return None
        indexes = self.schema.indexes.of(value) if self.schema.indexes.names else ()
        if not self.is_of_other_shape and not self.schema.rewrites:
            return Patch(sets, drops, indexes=indexes)
        assert self.stored is not None  # what is of another shape was read for this very change
        whole = {name: one for name, one in self.stored.items() if name not in drops} | sets
        return Patch(self.schema.downgrade(whole), rewrite=True, indexes=indexes)

    def whole(self, patch: Patch) -> tuple[Patch, list[int]]:
        """A patch applied here, where the document has to be brought into another shape as a whole; the sums of its steps.

        Sums that the other shape has too stay steps, so that the server remembers them under the operation id.
        """
        assert self.stored is not None
        flat, sums = patch.applied(self.stored)
        sets = self.schema.downgrade(flat)
        steps = [(name, total) for (name, _), total in zip(patch.steps, sums, strict=True)]
        if not all(sets.get(name) == b"%d" % total for name, total in steps):
            steps = []
        counted = dict(steps)
        whole = Patch(
            {name: value for name, value in sets.items() if name not in counted},
            steps=steps,
            replace=patch.replace,
            rewrite=not patch.replace,
            until=patch.until,
            indexes=self.schema.indexes_of(flat),
            ttl_ms=patch.ttl_ms,
        )
        return whole, sums

    def diff(self, encoded: bytes, value: Any) -> tuple[Flat, Sequence[bytes]]:
        """What makes the other document, given as JSON and as a value, of this one."""
        if self.flat is None:
            return self.schema.diff_values(self.value, value)
        self.after = self.schema.split(encoded)
        return self.schema.diff(self.flat, self.after)

    def successor(self, version: Position, encoded: bytes, value: Any) -> Known:
        """What it is once the difference to this value has been stored."""
        return Known(self.schema, version, encoded, None if self.flat is None else self.after, value)

    def caught_up(self) -> Known | None:
        """With the changes that came later; None where they do not give a value of the class."""
        schema = self.schema
        flat = schema.split(self.encoded)
        try:
            for patch in self.later:
                flat, _ = patch.applied(flat)
            value = schema.decode(schema.join(flat))
            encoded = schema.encode(value)
        except (InvalidValue, SchemaMismatch):
            return None
        return Known(schema, self.version, encoded, None if schema.compares else schema.split(encoded), value)

    def spare(self) -> Any:
        """A value to run a function on, None where it has to be decoded: the document itself may be needed to compare."""
        copier = self.schema.copier
        if self.flat is None:
            return copier(self.value) if copier is not None and self.schema.copies else None
        value, self.value = self.value, None
        return value


class Seen:
    """The documents this process saw last: where `update` starts from. Bounded; being out of date costs one retry."""

    MAX_DOCUMENTS = 16_384
    MAX_BYTES = 32 * 1024 * 1024
    MOST_LATER = 8  # changes of one document that are kept beside it, until an `update` needs them,
    MOST_LATER_BYTES = 512  # and the bytes of each

    def __init__(self, on_write: Callable[[bytes], None] | None = None) -> None:
        self._known: OrderedDict[bytes, Known] = OrderedDict()
        self._bytes = 0
        self._on_write = on_write  # is told which documents this process has written
        self.calls = self.writes = self.conflicts = 0  # what became of updates

    def take(self, key: bytes, schema: Schema[Any]) -> Known | None:
        """Removes it, until what it becomes is known."""
        known = self._known.pop(key, None)
        if known is None:
            return None
        self._bytes -= len(known.encoded)
        if known.schema is not schema:
            return None
        return known.caught_up() if known.later else known

    def follow(self, key: bytes, patch: Patch, version: Position) -> None:
        """What becomes of it by a change that was no `update`. Positions are dense: with the next one, nothing came between."""
        if self._on_write is not None:
            self._on_write(key)
        known = self._known.get(key)
        if known is None:
            return
        before = known.version
        is_next = before is not None and version.epoch == before.epoch and version.offset == before.offset + 1
        is_small = len(known.later) < self.MOST_LATER and sum(map(len, patch.sets.values())) <= self.MOST_LATER_BYTES
        if not is_next or not is_small or patch.replace or patch.rewrite or patch.until:
            self.forget(key)
        else:
            known.later.append(patch)
            known.version = version

    def put(self, key: bytes, known: Known) -> None:
        """It was written, and is this now."""
        self.forget(key)
        self._known[key] = known
        self._bytes += len(known.encoded)
        while self._bytes > self.MAX_BYTES or len(self._known) > self.MAX_DOCUMENTS:
            _, dropped = self._known.popitem(last=False)
            self._bytes -= len(dropped.encoded)

    def forget(self, key: bytes) -> None:
        """It was written, and what it is now is not known."""
        if self._on_write is not None:
            self._on_write(key)
        old = self._known.pop(key, None)
        if old is not None:
            self._bytes -= len(old.encoded)
