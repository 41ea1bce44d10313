"""`connect`, and the client that it returns."""

# Written by tools/unasync.py from src/omnistate/_client.py: change that one.

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

from omnistate._engine import Settings
from omnistate.customer import (
    ASSERTED,
    ChannelPolicy,
    Confidence,
    Erasure,
    Policies,
    Presented,
    list_erasures,
    recognise,
)
from omnistate.errors import AmbiguousWrite, IdentityTaken, InvalidInput, NotConnected, OmnistateError
from omnistate.session import SessionEndings
from omnistate.state import AnyState, Keyring, Origin, Snapshot, Stats, UpdateStats, Written, read_outcome
from omnistate.store import ACCEPTED, Durability, Keyspace, check_duration, encode_id, parse_url
from omnistate.sync._bulk import Bulk
from omnistate.sync._collection import Place, open_collection
from omnistate.sync._conversation import Conversation, Queue
from omnistate.sync._customer import Customer, identify
from omnistate.sync._declares import Declares
from omnistate.sync._engine import Engine, Sweeper
from omnistate.sync._flow import run
from omnistate.sync._query import Query
from omnistate.sync._session import Session, read_endings, session_of_token
from omnistate.sync._state import Services

_LONGEST_TIMEOUT = timedelta(seconds=60)
_NO_ORIGIN = Origin()
_NO_DURABILITY = (
    "durability must be ACCEPTED, SYNCED or replicated(n), not {durability!r}; `profile` is the embedded server's"
)
H = TypeVar("H")
R = TypeVar("R")


class Nouns:
    """What a client gives: customers, collections, sessions, conversations, queues. Building one of them is free."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace

    @property
    def services(self) -> Services:
        """For the gateway: what handles work with."""
        raise NotImplementedError

    @property
    def keyspace(self) -> Keyspace:
        """For the gateway: how this tenant's keys are spelled."""
        return self._keyspace

    def customer(self, customer_id: str) -> Customer:
        """The customer of this id. No round trip; raises `InvalidId`."""
        return Customer(self.services, self._keyspace, customer_id, _NO_ORIGIN)

    def collection(self, declaration: Declares[H]) -> H:
        """A collection of the tenant itself: a leaderboard, a work queue of all customers. No round trip.

        It has a log and a cluster slot of its own.
        """
        return open_collection(declaration, Place(self.services, self._keyspace.shared(declaration.name), _NO_ORIGIN))

    def customers(self) -> Generator[str, None, None]:
        """The ids of all customers, in no order: those that are there from beginning to end, once each.

        A round trip for each 1,000 of them, at least 256 in all. Memory for 1/256 of the ids.
        """
        return Bulk(self.services, self._keyspace).customers()

    def get_many(
        self, kind: type[AnyState], customer_ids: Iterable[str]
    ) -> Generator[tuple[str, Snapshot[AnyState] | OmnistateError], None, None]:
        """Many customers' documents, in the order of the ids, which may be endless. 64 at a time in one round trip.

        Gives an error of ours in the place of a document that cannot be read: `SchemaMismatch`, `CustomerMerged`.
        """
        return Bulk(self.services, self._keyspace).get_many(kind, customer_ids)

    def update_many(
        self, kind: type[AnyState], function: Callable[[AnyState], R], customer_ids: Iterable[str] | None = None
    ) -> Generator[tuple[str, Written[AnyState, R] | OmnistateError], None, None]:
        """Runs `update(function)` on many customers' documents, or without ids on every one that is there; 64 at a time.

        Gives what came of each as it is done, an error of ours too: one that fails does not stop the others. A job that is
        begun again after a crash runs the function again: give it one that may run twice.
        """
        return Bulk(self.services, self._keyspace).update_many(kind, function, customer_ids)

    def sweep(self) -> int:
        """Ends what has expired by now, with events; returns their number. At least 256 small calls.

        A client of the embedded server and `omnistate serve` do this by themselves every second.
        """
        return Sweeper(self.services, self._keyspace).sweep()

    def identify(self, channel: str, address: str, *, proof: Confidence = ASSERTED) -> Customer:
        """The customer who is known by `address` on `channel`; a new one the first time.

        Two first messages at once get the same customer. `proof` is `omnistate.VERIFIED` when it was proven that the address
        is theirs; it raises the identity's confidence, and less proof never lowers it. One round trip when known, three the
        first time, three when there is more proof. Raises `InvalidInput` for what is no address on this channel,
        `IdentityBlocked` for one that stands for nobody.
        """
        flow = identify(self._keyspace, channel, address, proof)
        return Customer(self.services, self._keyspace, run(flow, self.services.link.execute), Origin(channel))

    def identify_all(self, identities: Iterable[Presented]) -> tuple[Customer, list[IdentityTaken]]:
        """One customer of several identities that come together: `[("email", address, VERIFIED), ("web", visitor)]`.

        Verified ones decide whose they are before asserted ones, persons before devices, then the channels' `priority`; the
        first that is known wins. When anything is verified, what is only asserted decides nothing. The others are linked. What
        is somebody else's stays theirs and comes back as the `IdentityTaken` that `link` would raise: nobody is merged.

        At most 20; a round trip or two to decide, then what `identify` and `link` cost. Raises what these raise otherwise.
        """
        customer, elsewhere = run(recognise(self._keyspace, identities), self.services.link.execute)
        return Customer(self.services, self._keyspace, customer, _NO_ORIGIN), elsewhere

    def erase(self, customer_id: str, *, actor: str, reason: str, dry_run: bool = False) -> Erasure:
        """`customer.erase` for an id: everything that is stored of this customer goes, for good."""
        return self.customer(customer_id).erase(actor=actor, reason=reason, dry_run=dry_run)

    def erasures(self) -> list[Erasure]:
        """Who was erased, oldest first: by whom, when, why and how much; of the id only a keyed hash is left.

        A round trip for each 1,000.
        """
        return run(list_erasures(self._keyspace), self.services.link.execute)

    def query(self, kind: type[AnyState]) -> Query[AnyState]:
        """The customers whose state of this class has certain values: see `Query`. No round trip."""
        return Query(self.services, self._keyspace, kind)

    def session(self, token: str) -> Session:
        """The session of the token that a client brought. No round trip: `load` and `touch` tell whether it lives.

        A token that is malformed, or another tenant's, is one of a session that does not live.
        """
        return session_of_token(self.services, self._keyspace, token)

    def session_endings(self, *, after: str | None = None) -> SessionEndings:
        """How sessions of all customers ended, oldest first: those that are kept, or those after an earlier page's `cursor`.

        At least once, also where nobody was running: keep the cursor with what you made of the page, and ask again until it
        is empty. An ending that comes again has the same `id`. The last 4,000 of each 256th of the customers are kept, for
        30 days; raises `PositionLost` where some are not there any more: begin without a cursor. 256 small calls, together.
        """
        return read_endings(self.services, self._keyspace, after)

    def conversation(self, conversation_id: str, *, channel: str | None = None) -> Conversation:
        """The conversation of this id. No round trip; raises `InvalidId`."""
        return Conversation(self.services, self._keyspace, conversation_id, Origin(channel))

    def queue(self, name: str) -> Queue:
        """The queue of this name. No round trip; raises `InvalidId`."""
        return Queue(self.services, self._keyspace, name, _NO_ORIGIN)


class DurableClient(Nouns):
    """A client's nouns, whose writes are acknowledged at a durability level: `omni.durable(level)`."""

    def __init__(self, services: Services, keyspace: Keyspace) -> None:
        super().__init__(keyspace)
        self._services = services

    @property
    def services(self) -> Services:
        return self._services


class Client(Nouns):
    """A connection to the store: made by `connect`, used with `async with`, shared by everything in the process.

    Safe for any number of tasks of one event loop. Its nouns (`customer`, `collection`, `session`,
    `conversation`, `queue`) are free.
    """

    def __init__(
        self,
        url: str | None,
        *,
        tenant: str,
        data_dir: Path | None,
        profile: Literal["balanced", "safe"],
        durability: Durability,
        timeout: timedelta,
        identity_secret: bytes,
        sweep: bool | None,
        keyring: Keyring | None,
        near_cache_bytes: int,
        channels: Mapping[str, ChannelPolicy] | None,
    ) -> None:
        super().__init__(Keyspace(tenant, identity_secret=identity_secret, spelling=Policies(channels)))
        check_duration("timeout", timeout, timedelta(milliseconds=10), _LONGEST_TIMEOUT)
        if keyring is not None and not isinstance(keyring, Keyring):
            raise InvalidInput(
                f"keyring must be a Keyring, not {type(keyring).__name__}: Keyring({{...}}, current=...)"
            )
        if url is not None and data_dir is not None:
            raise InvalidInput("give a url or a data_dir, not both: data_dir is for the embedded server")
        address = parse_url(url) if url is not None else None
        if not isinstance(durability, Durability):
            raise InvalidInput(_NO_DURABILITY.format(durability=durability))
        if type(near_cache_bytes) is not int or near_cache_bytes < 0:
            raise InvalidInput(
                f"near_cache_bytes must be a number of bytes, 0 for no near cache, not {near_cache_bytes!r}"
            )
        self._settings = Settings(
            address,
            data_dir,
            profile,
            durability,
            timeout.total_seconds(),
            url is None if sweep is None else sweep,
            self._keyspace,
            keyring,
            near_cache_bytes,
        )
        self._services: Services | None = None
        self._engine: Engine | None = None
        self._levels: dict[Durability, Services] = {}

    def __enter__(self) -> Self:
        if self._services is not None:
            raise OmnistateError("this client is already open: call connect() again for another one")
        self._engine = Engine.start(self._settings)
        self._services = self._services_at(self._settings.durability)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connections, and the embedded server if there is one. Calls that are under way fail."""
        engine, self._engine, self._services = self._engine, None, None
        levels, self._levels = self._levels, {}
        if engine is not None:
            engine.close()
        for services in levels.values():
            services.combiner.close()

    def __repr__(self) -> str:
        return f"<Client {self.url if self._services is not None else 'not open'}>"

    @property
    def services(self) -> Services:
        if self._services is None:
            raise NotConnected
        return self._services

    @property
    def url(self) -> str:
        """Where the store is, without its password: another process may connect to the embedded server by it."""
        if self._engine is None:
            raise NotConnected
        return self._engine.url

    def outcome(self, error: AmbiguousWrite) -> bool:
        """Whether a write whose answer was lost has been applied, as far as is known now. One round trip.

        Operation ids are remembered for a day. False is not for ever: what was sent may still be on its way, as long as the
        server does not know that its sender has gone. Calling again with `error.operation_id` is right in both cases.
        """
        if not isinstance(error, AmbiguousWrite) or error.meta is None:
            raise InvalidInput("outcome takes the AmbiguousWrite that was raised; of an operation id, ask its customer")
        command = read_outcome(error.meta, error.operation_id)
        return self.services.link.execute(command) is not None

    def durable(self, level: Durability) -> DurableClient:
        """The same nouns, whose writes have survived so much when they are acknowledged. No round trip.

            orders = omni.durable(omnistate.replicated(1))
            orders.customer("ana").state(Order).patch(paid=True)

        Raises, at each write, `DurabilityNotReached` where it was applied and the level not reached in time, and
        `DurabilityUnavailable` where the server cannot promise it.
        """
        if not isinstance(level, Durability):
            raise InvalidInput(_NO_DURABILITY.format(durability=level))
        return DurableClient(self._services_at(level), self._keyspace)

    def stats(self) -> Stats:
        """What this client has counted since it was opened: hits of the near cache, races of `update`. No round trip."""
        seen = [services.combiner.seen for services in self._levels.values()]
        updates = UpdateStats(
            calls=sum(one.calls for one in seen),
            writes=sum(one.writes for one in seen),
            conflicts=sum(one.conflicts for one in seen),
        )
        if self._engine is None:
            raise NotConnected
        return Stats(near_cache=self._engine.near.stats(), updates=updates)

    def _services_at(self, level: Durability) -> Services:
        engine = self._engine
        if engine is None:
            raise NotConnected
        if level not in self._levels:
            near = engine.near if self._settings.near_cache_bytes else None
            self._levels[level] = Services(engine.at(level), engine.feed, self._settings.keyring, level, near)
        return self._levels[level]


def connect(
    url: str | None = None,
    *,
    tenant: str = "default",
    data_dir: str | os.PathLike[str] | None = None,
    profile: Literal["balanced", "safe"] = "balanced",
    durability: Durability = ACCEPTED,
    timeout: timedelta = timedelta(seconds=5),
    identity_secret: bytes = b"",
    sweep: bool | None = None,
    keyring: Keyring | None = None,
    near_cache_bytes: int = 64 * 1024 * 1024,
    channels: Mapping[str, ChannelPolicy] | None = None,
) -> Client:
    """A client, to be used as `with omnistate.connect() as omni:`.

    Without a `url` an embedded server starts, with its data in `data_dir` or a directory of the user, and ends with the
    block. `profile` is the embedded server's: `balanced` syncs to disk every second, `safe` before each answer.
    With `redis://`, `rediss://` or `unix://` that server is used: Redis >= 7.0 or Valkey >= 7.2;
    `redis+sentinel://host:port,host:port/service` follows the primary that Sentinels name,
    `redis+cluster://host:port,host:port` a cluster.

    `durability` is what a write has survived when it is acknowledged: `ACCEPTED`, `SYNCED` or `replicated(n)`;
    `omni.durable(level)` says it for some writes.

    `tenant` separates customers of several businesses. `timeout` bounds every call, retries and reconnecting included; of what
    is done in steps (identify, link, merge, hand-off, claim, bulk) each step.
    `sweep` makes this client end what has expired, every second, so that watchers see it; by default only with the embedded
    server. One process that does it is enough, and `omnistate serve` does; several share the work. `keyring` has the keys
    of encrypted states. `near_cache_bytes` is what classes with `near_cache=True` may use of this process's memory, about; 0:
    nothing is kept. `identity_secret` keys the hash under which identities are stored; all processes need the same one.
    `channels` holds the `ChannelPolicy` of channels that are not as usual, also the same everywhere.

    Entering the block raises `StoreUnavailable`, `AuthenticationFailed`, `LibraryMissing`, or for the embedded server
    `DataDirectoryInUse`, `DataDirectoryUnusable`, `DataDirectoryTooNew`, `ServerBinaryMissing`, `ServerFailed`.
    """
    encode_id(tenant, "tenant")
    directory = Path(data_dir) if data_dir is not None else None
    return Client(
        url,
        tenant=tenant,
        data_dir=directory,
        profile=profile,
        durability=durability,
        timeout=timeout,
        identity_secret=identity_secret,
        sweep=sweep,
        keyring=keyring,
        near_cache_bytes=near_cache_bytes,
        channels=channels,
    )
