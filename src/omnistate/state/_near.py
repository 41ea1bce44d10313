"""The near cache: documents of classes that ask for it are read from this process's memory.

A document is kept while its customer's log is followed. The log's next event about it ends that, as does every doubt that
an event may be missing: a connection that is lost or silent, a gap, a log that moved to another server. What was read is
kept only if, by its position, no event about the document came since, and no write of this process ended meanwhile. So a
value from memory is late by an event's way from the server, and by 3.5 seconds at most where a network dies silently.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from operator import itemgetter
from threading import Lock
from typing import Any

import msgspec

from omnistate.errors import OmnistateError
from omnistate.state._commands import Read, Target, read
from omnistate.state._events import Followed
from omnistate.state._model import Snapshot
from omnistate.state._stats import NearCacheStats
from omnistate.store import Entry, Executor, Feed, Flow, Leave, LogKeys, Position, call, open_log, run

_LOG_TAKES, _DOCUMENT_TAKES, _BYTE_TAKES = (
    4096,
    1024,
    3,
)  # bytes of memory, about: a document is kept as JSON and decoded
_LOOKED_AT = 16  # customers that are compared when one has to go
_LATE = 1024  # invalidations of which it is known how late they were


class _Head(msgspec.Struct):
    """The members of an event that tell what it is about."""

    type: str
    state: str = ""
    owner: str = ""
    time: int = 0


_head_of = msgspec.json.Decoder(_Head).decode


class Kept:
    """A document in memory."""

    __slots__ = (
        "copier",
        "document",
        "encoded",
        "hits",
        "log",
        "position",
        "schema",
        "size",
        "until",
        "value",
        "version",
    )

    def __init__(self, log: _Log, target: Target, found: Read, until: float) -> None:
        self.document, self.schema = target.document, target.schema
        self.encoded = Followed(target, found.held).encoded()
        self.value, self.copier = self.schema.decode(self.encoded), self.schema.copier
        self.log, self.version, self.position, self.until = log, found.held.version, found.position, until
        self.size = _DOCUMENT_TAKES + _BYTE_TAKES * len(self.encoded)
        self.hits = 0

    def is_over(self) -> bool:
        """Of one that has a deadline."""
        return self.until <= time.monotonic()

    def is_after(self, position: Position) -> bool:
        """Whether what was read at this position is older."""
        return self.position.epoch == position.epoch and self.position.offset > position.offset

    def snapshot(self) -> Snapshot[Any]:
        """With the position up to which nothing has changed it."""
        position, held = self.log.position, self.position
        # In this order: another thread may hear of a change meanwhile.
        is_present = self.log.kept.get(self.document) is self and position.epoch == held.epoch
        if not is_present or position.offset < held.offset:
            position = held
        return Snapshot(self.schema, self.encoded, self.version, position)


class _Reading:
    """A document on its way here, or one that waits until its log is followed."""

    __slots__ = ("found", "is_overtaken", "target", "until")

    def __init__(self, target: Target) -> None:
        self.target, self.is_overtaken, self.until = target, False, 0.0
        self.found: Read | None = None


class _Log:
    """A customer's log that is followed, and what is kept of that customer."""

    def __init__(self, cache: NearCache, keys: LogKeys) -> None:
        self._cache, self.keys = cache, keys
        self.kept: dict[bytes, Kept] = {}
        self.waiting: list[_Reading] = []
        self.position = Position("", 0)  # nothing kept has been changed up to here
        self.changed = 0  # the newest event about a document, or the beginning
        self.past_hits = 0  # of what is no longer kept
        self.seen_hits = 0  # when it was last considered to be dropped
        self.is_over = False
        self._leave: Leave | None = None
        self._joining = asyncio.create_task(self._join())

    def covers(self, position: Position) -> bool:
        """Whether what was read at this position has not changed since, as far as is known."""
        is_known = not self.is_over and self.is_followed and self._cache.feed.is_live(self.keys)
        return is_known and position.epoch == self.position.epoch and position.offset >= self.changed

    @property
    def is_followed(self) -> bool:
        return self._leave is not None

    def uses(self) -> int:
        """How often something was found here since this was last asked."""
        before, self.seen_hits = self.seen_hits, self.past_hits + sum(kept.hits for kept in self.kept.values())
        return self.seen_hits - before

    def close(self) -> None:
        self.is_over = True
        self._joining.cancel()
        if self._leave is not None:
            self._leave()

    async def _join(self) -> None:
        try:
            leave = await self._cache.feed.join(self.keys, self)
        except OmnistateError:  # merged away, or the client is closed: whoever reads is told
            self._cache.forget(self)
            return
        self._begin()
        self._leave = leave
        waiting, self.waiting = self.waiting, []
        for reading in waiting:
            self._cache.keep(self, reading)

    def _begin(self) -> None:
        """What happened before is not known."""
        self.position = self._cache.feed.position(self.keys)
        self.changed = self.position.offset

    # What the feed tells

    def on_entry(self, epoch: str, entry: Entry) -> None:
        try:
            head = _head_of(entry.event)
        except (msgspec.MsgspecError, UnicodeDecodeError):  # damaged: it may be about anything
            head = _Head("customer.")
        if head.type.startswith("state."):
            self.changed = entry.offset
            document = self.keys.key("doc", f"{head.state}:{head.owner}" if head.owner else head.state)
            self._cache.invalidate(self, document, entry.offset, head.time)
        elif head.type.startswith("customer."):
            self.changed = entry.offset
            self._cache.flush(self)
        self.position = Position(epoch, entry.offset)  # last: what another thread finds kept is good up to here

    def on_lost(self) -> None:
        self._cache.flush(self)
        self._begin()

    def on_doubt(self) -> None:
        self._cache.flush(self)


class NearCache:
    """The documents that one client keeps, in so many bytes of memory, about. What was not used lately goes first.

    `find` and `written` may be called by any thread, the rest in the event loop.
    """

    def __init__(self, link: Executor, feed: Feed, *, max_bytes: int) -> None:
        self._link, self.feed, self._max_bytes = link, feed, max_bytes
        self.kept: dict[bytes, Kept] = {}
        self._logs: dict[bytes, _Log] = {}  # what was not used lately comes first
        self._readings: dict[bytes, list[_Reading]] = {}
        self._lock = Lock()  # between a write that ends and a value that is about to be kept
        self._late: deque[int] = deque(maxlen=_LATE)
        self._bytes = self._hits = self._misses = self._bypassed = 0
        self._invalidations = self._flushes = self._expirations = self._evictions = 0

    def find(self, target: Target) -> Kept | None:
        """The document, if it is kept."""
        kept = self.kept.get(target.document)
        if kept is None or kept.schema is not target.schema:
            return None
        if kept.until and kept.is_over():
            return None
        kept.hits += 1
        return kept

    async def read(self, target: Target) -> Read:
        """The document from the server, kept if it may be. One round trip, and two in the background for a new customer."""
        log = self._follow(target.log)
        self._misses += 1
        self._bypassed += not self.feed.is_live(target.log)
        reading = _Reading(target)
        self._readings.setdefault(target.document, []).append(reading)
        began = time.monotonic()
        try:
            reading.found = found = await run(look_up(target), self._link.execute)
        except BaseException:
            self._end(reading)
            raise
        reading.until = began + found.left if found.left else 0.0
        if log.is_followed or log.is_over:
            self.keep(log, reading)
        else:
            log.waiting.append(reading)
        return found

    def written(self, document: bytes) -> None:
        """A write of this process has ended: it reads what it has written."""
        if document not in self.kept and document not in self._readings:
            return
        with self._lock:
            for reading in self._readings.pop(document, ()):
                reading.is_overtaken = True
            if (kept := self.kept.get(document)) is not None:
                self._drop(document, kept)

    def stats(self) -> NearCacheStats:
        late = sorted(self._late)
        return NearCacheStats(
            hits=self._hits + sum(kept.hits for kept in list(self.kept.values())),
            misses=self._misses,
            bypassed=self._bypassed,
            invalidations=self._invalidations,
            flushes=self._flushes,
            expirations=self._expirations,
            evictions=self._evictions,
            documents=len(self.kept),
            customers=len(self._logs),
            bytes=self._bytes,
            staleness_p50=_share(late, 0.5),
            staleness_p99=_share(late, 0.99),
        )

    def close(self) -> None:
        for log in list(self._logs.values()):
            self.forget(log)

    # What the logs do

    def keep(self, log: _Log, reading: _Reading) -> None:
        """Keeps what was read, unless it can have changed since or will change by itself."""
        target, found = reading.target, reading.found
        assert found is not None
        kept = None
        if not found.held.is_volatile:
            with suppress(OmnistateError):  # what cannot be read is told to who reads it
                kept = Kept(log, target, found, reading.until)
        with self._lock:
            old = self.kept.get(target.document)
            if old is not None and not old.is_after(found.position):
                self._drop(target.document, old)  # whatever becomes of this one: nobody is to go back
                old = None
            if kept is not None and old is None and not reading.is_overtaken and log.covers(found.position):
                self.kept[target.document] = log.kept[target.document] = kept
                self._bytes += kept.size
        self._end(reading)
        self._make_room()

    def invalidate(self, log: _Log, document: bytes, offset: int, milliseconds: int) -> None:
        """The document was changed by the event at `offset`."""
        kept = log.kept.get(document)
        if kept is not None and kept.position.offset < offset:
            with self._lock:
                self._drop(document, kept)
            self._invalidations += 1
            self._late.append(max(int(time.time() * 1000) - milliseconds, 0))

    def flush(self, log: _Log) -> None:
        """Nothing that is kept of this customer is certain any more."""
        self._flushes += len(log.kept)
        with self._lock:
            for document, kept in list(log.kept.items()):
                self._drop(document, kept)

    def forget(self, log: _Log) -> None:
        """The customer's log is no longer followed."""
        if self._logs.pop(log.keys.topic, None) is None:
            return
        with self._lock:
            for document, kept in list(log.kept.items()):
                self._drop(document, kept)
        self._bytes -= _LOG_TAKES
        for reading in log.waiting:
            self._end(reading)
        log.close()

    def _follow(self, keys: LogKeys) -> _Log:
        log = self._logs.get(keys.topic)
        if log is None:
            self._bytes += _LOG_TAKES
            self._make_room()
            log = self._logs[keys.topic] = _Log(self, keys)
        return log

    def _end(self, reading: _Reading) -> None:
        document = reading.target.document
        others = [one for one in self._readings.get(document, ()) if one is not reading]
        if others:
            self._readings[document] = others
        else:
            self._readings.pop(document, None)

    def _drop(self, document: bytes, kept: Kept) -> None:
        """The lock is held."""
        if self.kept.pop(document, None) is kept:
            self._bytes -= kept.size
            self._hits += kept.hits
            self._expirations += kept.until > 0 and kept.is_over()
            kept.log.past_hits += kept.hits
        kept.log.kept.pop(document, None)

    def _make_room(self) -> None:
        """Of those that were not used lately, the one that was used least goes."""
        while self._bytes > self._max_bytes and self._logs:
            looked_at = [(log.uses(), log) for log in islice(self._logs.values(), _LOOKED_AT)]
            _, least = min(looked_at, key=itemgetter(0))
            for uses, log in looked_at:
                if uses and log is not least:
                    self._logs[log.keys.topic] = self._logs.pop(log.keys.topic)
            self._evictions += len(least.kept)
            self.forget(least)


def _share(values: Sequence[int], share: float) -> float:
    return float(values[int(len(values) * share)]) if values else 0.0


def look_up(target: Target) -> Flow[Read]:
    """The document and the log's position of the same moment. One round trip; two where nothing was ever written."""
    found: Read = yield from call(read(target))
    if found.position.epoch:
        return found
    # Nothing was ever written for this customer: make the log, so that it can be watched from here.
    return msgspec.structs.replace(found, position=(yield from call(open_log(target.log))))
