"""How keys are spelled: the only module that knows.

    omni:<tenant>:{<partition>}:c.<customer>:<what>    everything of one customer, in one cluster slot
    omni:<tenant>:{<partition>}:q.<queue>:<what>       a queue
    omni:<tenant>:{<partition>}:t.<collection>:<what>  what belongs to the tenant itself
    omni:<tenant>:{<partition>}:a.erasures:entries     who was erased: by whom, when, why, how much; a hash for the id
    omni:<tenant>:{<partition>}:agenda                 the partition's customers, by when they are to be looked at
    omni:<tenant>:{<partition>}:index:<name>           the partition's part of an index
    omni:<tenant>:{<partition>}:endings                how sessions of the partition's customers ended
    omni:<tenant>:{i.<digest>}:identity                which customer an identity points to

A tenant has 256 partitions, each a hash tag, spread evenly over the slots of a cluster. So what is kept about many
customers (who is there, what falls due, indexes) is in the slot of each of them, and is changed in the call that changes
the customer; and there are few enough of them to visit all.

Ids come from outside, so every byte that has a meaning in a key, a hash tag, an ACL pattern or a MATCH pattern is
percent-encoded. What is left is `[A-Za-z0-9_%-]`, so two ids never make one key and no id moves a key to another slot.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from binascii import crc_hqx
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache, lru_cache
from itertools import count
from typing import Any, Protocol, Self, TypeVar, cast
from urllib.parse import quote, unquote

from omnistate.errors import InvalidId, InvalidInput

T = TypeVar("T")
MAX_ID_BYTES = 256
_LOGS = 2048  # whose keys are kept: a handle that is made for each request costs a look-up
_MADE_OF_ONE = 16
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,256}")


def encode_id(text: str, what: str = "id") -> str:
    """`text` as a part of a key. Raises `InvalidId` when empty, over 256 bytes of UTF-8, or not encodable."""
    if not isinstance(text, str):
        raise InvalidId(f"{what} must be a str, not {type(text).__name__}")
    if _PLAIN.fullmatch(text):
        return text
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidId(f"{what} holds a lone surrogate, which is not text: use valid Unicode") from None
    if not text:
        raise InvalidId(f"{what} is empty")
    if size > MAX_ID_BYTES:
        raise InvalidId(f"{what} is {size:,} bytes long, the limit is {MAX_ID_BYTES}")
    return quote(text, safe="").replace(".", "%2E").replace("~", "%7E")


class OwnOperationId(str):
    """An operation id that omnistate derives from what it does; no caller can give one that is equal."""

    __slots__ = ()
    PREFIX = "omnistate:"

    def __new__(cls, *parts: str) -> Self:
        return super().__new__(cls, cls.PREFIX + ":".join(parts))


def check_operation_id(text: str) -> None:
    """Raises `InvalidId` for what a caller cannot use as an operation id."""
    encode_id(text, "operation id")
    if text.startswith(OwnOperationId.PREFIX) and not isinstance(text, OwnOperationId):
        raise InvalidId(f"operation ids that begin with {OwnOperationId.PREFIX} are omnistate's own: use another one")


def check_duration(what: str, value: object, least: timedelta, most: timedelta) -> None:
    """Raises `InvalidInput` for what is no `timedelta` between the two."""
    if not isinstance(value, timedelta):
        raise InvalidInput(f"{what} must be a timedelta, not {type(value).__name__}: {what}=timedelta(seconds=5)")
    if not least <= value <= most:
        raise InvalidInput(f"{what} must be between {_spelled(least)} and {_spelled(most)}, not {_spelled(value)}")


def _spelled(duration: timedelta) -> str:
    seconds = duration.total_seconds()
    for unit, size in (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1)):
        if seconds and seconds % size == 0:
            number = round(seconds / size)
            return f"{number:,} {unit}" + ("" if number == 1 else "s")
    return f"{seconds * 1000:,.0f} ms" if abs(seconds) < 1 else f"{seconds:g} seconds"


def decode_id(part: str) -> str:
    """The id that `encode_id` spelled as `part`."""
    return unquote(part)


@dataclass(frozen=True, slots=True)
class LogKeys:
    """The keys of one log and of what is written in one call with it. `topic` is its pub/sub name."""

    name: str
    prefix: bytes
    meta: bytes
    log: bytes
    written: tuple[bytes, ...]  # declared by every write, in this order
    common: bytes  # what the keys of its partition begin with
    made: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)  # of `making`

    def making(self, what: Hashable, make: Callable[[], T]) -> T:
        """What is made of these keys, made once as long as it is asked for."""
        found = self.made.get(what)
        if found is None:
            if len(self.made) >= _MADE_OF_ONE:
                self.made.clear()
            found = self.made[what] = make()
        return cast("T", found)

    @property
    def topic(self) -> bytes:
        """Sharded pub/sub names and keys are spaces of their own, and hash to slots alike: one spelling serves both."""
        return self.log

    @property
    def id(self) -> str:
        """Whose log it is."""
        return decode_id(self.name.partition(".")[2])

    def key(self, *parts: str) -> bytes:
        """A further key in this slot. The parts are words of ours or already encoded ids."""
        return self.prefix + ":".join(parts).encode()

    def index(self, name: str) -> bytes:
        """The part of an index that is in this slot."""
        return self.common + b"index:" + name.encode()

    @property
    def endings(self) -> bytes:
        """How sessions of the partition's customers ended."""
        return self.common + b"endings"


PARTITIONS = 256


@cache
def _partition_tags() -> tuple[str, ...]:
    """The hash tags of the partitions, in the order of their slots: each has the same share of a cluster's slots."""
    share = 16384 // PARTITIONS
    found: dict[int, str] = {}
    numbers = count()
    while len(found) < PARTITIONS:
        tag = str(next(numbers))
        found.setdefault(crc_hqx(tag.encode(), 0) % 16384 // share, tag)
    return tuple(found[index] for index in range(PARTITIONS))


def partition_of(name: str) -> int:
    """The partition of a log, by its name in keys."""
    return zlib.crc32(name.encode()) % PARTITIONS


class Spelling(Protocol):
    """Which addresses are one."""

    def normal(self, channel: str, address: str) -> str:
        """How an address is spelled where it is compared."""
        ...


class Keyspace:
    """The keys of one tenant. `spelling` says which addresses are one; without it those that are equal."""

    __slots__ = ("_identity_secret", "_log_of", "_tenant", "spelling")

    def __init__(self, tenant: str, *, identity_secret: bytes = b"", spelling: Spelling | None = None) -> None:
        self._tenant, self.spelling = encode_id(tenant, "tenant"), spelling
        self._identity_secret = identity_secret[:64]
        self._log_of = lru_cache(_LOGS)(self._make_log)

    def customer(self, customer: str) -> LogKeys:
        return self.log("c." + encode_id(customer, "customer id"))

    def queue(self, queue: str) -> LogKeys:
        return self.log("q." + encode_id(queue, "queue name"))

    def shared(self, collection: str) -> LogKeys:
        """The log of a collection that belongs to the tenant."""
        return self.log("t." + encode_id(collection, "collection name"))

    @property
    def erasures(self) -> bytes:
        """Where it is written down who was erased. In one slot, for the whole tenant."""
        return self.log("a.erasures").key("entries")

    @property
    def erasure_key(self) -> str:
        """The key of the hash that is left of an erased customer's id: the same wherever the tenant has the same secret."""
        return hashlib.blake2b(
            b"erased:" + self._tenant.encode(), digest_size=32, key=self._identity_secret
        ).hexdigest()

    def tombstone(self, customer: str) -> str:
        """What is left of the customer's id once they were erased."""
        name = self.customer(customer).name
        return hashlib.sha1(f"{self.erasure_key}:{name}".encode(), usedforsecurity=False).hexdigest()

    def log(self, name: str) -> LogKeys:
        """The log of this name in keys, as `agenda` lists it."""
        return self._log_of(name)

    def _make_log(self, name: str) -> LogKeys:
        common = self.partition(partition_of(name))
        prefix = common + name.encode() + b":"
        meta, log = prefix + b"meta", prefix + b"log"
        written = (meta, log, prefix + b"older", prefix + b"docs", common + b"agenda")
        return LogKeys(name, prefix, meta, log, written, common)

    def partition(self, index: int) -> bytes:
        """What the keys of a partition begin with."""
        return f"omni:{self._tenant}:{{{_partition_tags()[index]}}}:".encode()

    def agenda(self, index: int) -> bytes:
        return self.partition(index) + b"agenda"

    def endings(self, index: int) -> bytes:
        return self.partition(index) + b"endings"

    def session_token(self, customer: str, *parts: str) -> str:
        """The keyed hash of a session's token: all that is stored of it."""
        digest = hashlib.blake2b(digest_size=16, key=self._identity_secret, person=b"session")
        for part in (self._tenant, customer, *parts):
            digest.update(len(part.encode()).to_bytes(4, "big") + part.encode())
        return digest.hexdigest()

    def identity(self, channel: str, address: str) -> tuple[bytes, str]:
        """The key of an identity, and its digest. Addresses are personal, so only a keyed hash of one is in a name."""
        encode_id(channel, "channel")
        encode_id(address, "address")
        if self.spelling is not None:
            address = self.spelling.normal(channel, address)
        digest = hashlib.blake2b(digest_size=16, key=self._identity_secret)
        for part in (channel.encode(), address.encode()):
            digest.update(len(part).to_bytes(4, "big") + part)
        name = digest.hexdigest()
        return self.identity_of(name), name

    def identity_of(self, digest: str) -> bytes:
        """The key of the identity of this digest."""
        return f"omni:{self._tenant}:{{i.{digest}}}:identity".encode()
