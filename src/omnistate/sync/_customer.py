"""The handle on one customer."""

# Written by tools/unasync.py from src/omnistate/customer/_api.py: change that one.

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from datetime import timedelta
from typing import Any, TypeVar, overload

import msgspec

from omnistate.collection import imported_collections, merge_collection
from omnistate.customer._commands import read
from omnistate.customer._erase import Erasure, check_said, erase_customer, preview_erasure
from omnistate.customer._flows import finish_merge, imported_classes, prepare_merge, read_documents
from omnistate.customer._identity import ASSERTED, Confidence, Identity, confidence_of
from omnistate.customer._linking import Claim, Target, find_or_create, link, new_customer_id, sign_out, unlink
from omnistate.customer._model import Event, Updated
from omnistate.errors import Conflict, InvalidInput, SchemaMismatch
from omnistate.session import SessionInfo, SessionPolicy, name_of, revoke
from omnistate.state import ABSENT, COLLECTION_KINDS, AnyState, Origin, State, read_outcome, schema_of
from omnistate.store import (
    Entry,
    Flow,
    Keyspace,
    OwnOperationId,
    Position,
    check_operation_id,
    check_position,
    encode_id,
    new_operation_id,
    open_log,
)
from omnistate.sync._collection import Place, open_collection
from omnistate.sync._conversation import Conversation, start_conversation
from omnistate.sync._customer_export import CustomerExport
from omnistate.sync._declares import Declares
from omnistate.sync._feed import Inbox
from omnistate.sync._flow import run
from omnistate.sync._session import OfSession, Session, list_sessions, start_session
from omnistate.sync._state import Services, StateHandle
from omnistate.sync._transaction import Transaction, update_several

H = TypeVar("H")
R = TypeVar("R")
A = TypeVar("A", bound=State)
B = TypeVar("B", bound=State)
C = TypeVar("C", bound=State)


class Customer:
    """One person. Building the handle costs nothing: a web handler makes it from an id without a round trip."""

    __slots__ = ("_keyspace", "_log", "_origin", "_services", "id")

    def __init__(self, services: Services, keyspace: Keyspace, customer_id: str, origin: Origin) -> None:
        self._services, self._keyspace, self._origin = services, keyspace, origin
        self._log = keyspace.customer(customer_id)
        self.id = customer_id

    def via(self, channel: str, *, actor: str | None = None) -> Customer:
        """The same customer, met on `channel`: events of this handle's writes say so, and who acted."""
        encode_id(channel, "channel")
        if actor is not None:
            encode_id(actor, "actor")
        return Customer(self._services, self._keyspace, self.id, Origin(channel, actor))

    def state(self, kind: type[AnyState]) -> StateHandle[AnyState]:
        """The customer's document of this class."""
        return StateHandle(self._services, kind, self._log, self._origin)

    def collection(self, declaration: Declares[H]) -> H:
        """The customer's collection of this declaration."""
        return open_collection(declaration, self._place())

    def transaction(self, *, operation_id: str | None = None) -> Transaction:
        """`with ana.transaction() as tx:` - several changes, all or none of them. See `Transaction`."""
        return Transaction(self._place(), operation_id)

    @overload
    def update(
        self, function: Callable[[A], R], a: type[A], /, *, operation_id: str | None = None
    ) -> Updated[R | None]: ...
    @overload
    def update(
        self, function: Callable[[A, B], R], a: type[A], b: type[B], /, *, operation_id: str | None = None
    ) -> Updated[R | None]: ...
    @overload
    def update(
        self,
        function: Callable[[A, B, C], R],
        a: type[A],
        b: type[B],
        c: type[C],
        /,
        *,
        operation_id: str | None = None,
    ) -> Updated[R | None]: ...
    @overload
    def update(
        self,
        function: Callable[..., R],
        a: type[State],
        b: type[State],
        c: type[State],
        d: type[State],
        /,
        *kinds: type[State],
        operation_id: str | None = None,
    ) -> Updated[R | None]: ...

    def update(
        self, function: Callable[..., Any], /, *kinds: type[Any], operation_id: str | None = None
    ) -> Updated[Any]:
        """Runs `function(*values)` on the customer's documents of these classes and stores what it changed in all of them.

        `ana.update(check_out, Cart, Order)`: all or nothing, and nobody's update is lost. The function may run again
        when another writer was first. Its own errors are raised here and nothing is stored. Two round trips; raises
        `Conflict` after 100 lost races.
        """
        if not kinds:
            raise InvalidInput(
                "update takes the classes whose values the function gets: ana.update(check_out, Cart, Order)"
            )
        result, transaction = update_several(self._place(), function, kinds, operation_id)
        repeated, durability = transaction.repeated, self._services.durability
        return Updated(None if repeated else result, transaction.position, repeated, durability)

    def position(self) -> Position:
        """Where the customer's log is now. One round trip. Raises `CustomerMerged`."""
        return self._services.link.execute(open_log(self._log))

    def outcome(self, operation_id: str) -> bool:
        """Whether a write of this customer under your operation id has been applied, as far as is known now. One round trip.

        Ids are remembered for a day. False is not for ever: see `omni.outcome`.
        """
        check_operation_id(operation_id)
        return self._services.link.execute(read_outcome(self._log.meta, operation_id)) is not None

    def events(self, *, after: Position | None = None) -> Generator[Event, None, None]:
        """Everything that happens to the customer, as long as you iterate: from now on, or after a position.

        Raises `PositionLost` when the log no longer reaches back that far: it never skips; `SchemaMismatch` for one that is
        damaged. Two round trips to start, none per event.
        """
        if after is not None:
            check_position("after", after)
        inbox = Inbox()
        leave = self._services.feed.join(self._log, inbox)
        try:
            position = after or self.position()
            page = inbox.missed(self._services.link, self._log, position)
            entries: list[Entry] = page.entries
            while True:
                for entry in entries:
                    position = Position(position.epoch, entry.offset)
                    try:
                        data = msgspec.json.decode(entry.event)
                    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                        raise SchemaMismatch(f"the event at {position} is damaged: go on after it") from error
                    yield Event(position, data["type"], data)
                entries = inbox.take(self._services.link, self._log, position)
        finally:
            leave()

    def identities(self) -> list[Identity]:
        """How the customer is known, channel by channel, how sure that is and since when. One round trip."""
        _, found = self._services.link.execute(read(self._log))
        return found

    def link(self, channel: str, address: str, *, proof: Confidence = ASSERTED, take: bool = False) -> str | None:
        """Adds an identity. Never merges: raises `IdentityTaken` when it belongs to somebody else.

        `proof` is `omnistate.VERIFIED` when it was proven that the address is theirs. Linking again with more proof raises
        the identity's confidence, with less it changes nothing. `take=True` with proof takes it from somebody who has only
        asserted it (or as the channel's policy says), and returns their id. A device that belongs to another known person
        is taken without being asked, when this customer has a verified identity: two people share it, and are not one.

        Four round trips the first time, then two; up to eight when it is taken. Raises `CustomerMerged`, `InvalidInput`,
        `IdentityBlocked`, and `QuotaExceeded` beyond the channel's `limit`.
        """
        target = Target.wanted(self._keyspace, channel, address)
        return run(link(target, self.id, Claim(confidence_of(proof), take)), self._services.link.execute)

    def load_identity(self, identity: Identity) -> None:
        """Links an identity as `identities` gave it, as sure as it was and since then: for imports. Costs what `link` does."""
        target = Target.wanted(self._keyspace, identity.channel, identity.address)
        said = Claim(identity.confidence, since=identity.linked)
        run(link(target, self.id, said), self._services.link.execute)

    def unlink(self, channel: str, address: str) -> bool:
        """Takes an identity away: who comes with this address next is somebody new.

        False when it is not this customer's: nobody's and somebody else's are not told apart. Five round trips, two when
        there is nothing to do. Raises `CustomerMerged`.
        """
        return run(unlink(Target.of(self._keyspace, channel, address), self.id), self._services.link.execute)

    def sign_out(self, channel: str, address: str) -> Customer:
        """The person leaves a device that others may use: a new customer, whom the device's identity leads to from now on.

        Nothing of this customer is visible to the new one. Called again it gives the same new customer: whoever has the
        identity now. End the session too, which this does not. Seven round trips. Raises `CustomerMerged`.
        """
        target = Target.wanted(self._keyspace, channel, address)
        now = run(sign_out(target, self.id, new_customer_id()), self._services.link.execute)
        return Customer(self._services, self._keyspace, now, Origin(channel))

    def start_session(
        self,
        channel: str,
        *,
        idle: timedelta = timedelta(minutes=30),
        absolute: timedelta = timedelta(days=30),
        reauthenticate: timedelta | None = None,
        device: str | None = None,
        user_agent: str | None = None,
        policy: SessionPolicy | None = None,
    ) -> Session:
        """A new session, which ends when it is not touched for `idle`, and `absolute` after its start anyway. One round trip.

        `load` says when the customer is to prove again who they are: `reauthenticate` after the start, and again after each
        `session.reauthenticated()`. `device` and `user_agent` are for the list of devices. `policy` says how many sessions of
        the channel there may be: `SessionPolicy(at_most=3)`. Raises `TooManySessions`, `CustomerMerged`.
        """
        return start_session(
            self._services,
            self._keyspace,
            self.id,
            channel,
            idle=idle,
            absolute=absolute,
            reauthenticate=reauthenticate,
            device=device,
            user_agent=user_agent,
            policy=policy,
        )

    def sessions(self) -> list[SessionInfo]:
        """The sessions that live, the oldest first: what a list of devices shows. One round trip."""
        return list_sessions(self._services, self._log)

    def of_session(self, session_id: str) -> OfSession:
        """What a session leaves when it ends, by its id. No round trip. Raises `InvalidInput`."""
        return OfSession(self._services, self._log, session_id)

    def revoke_session(self, session_id: str) -> bool:
        """Ends the session of this id with the reason "revoked", whichever token it has by now; false when it had ended.

        One round trip. Raises `InvalidInput` for what is no id.
        """
        command = revoke(self._log, name=name_of(session_id), operation_id=new_operation_id())
        return self._services.link.execute(command) > 0

    def revoke_sessions(
        self, *, keep: Session | None = None, channel: str | None = None, device: str | None = None
    ) -> None:
        """Ends all sessions, or those of a channel or a device, with the reason "revoked"; `keep` is the one that stays.

        All of them are over at once in one step, however many they are; the sweeper makes their events. One round trip.
        """
        if keep is not None and (not isinstance(keep, Session) or keep.customer_id != self.id):
            raise InvalidInput("keep must be a session of this customer: omni.session(token)")
        for what, value in (("channel", channel), ("device", device)):
            if value is not None:
                encode_id(value, what)
        kept, id_ = None if keep is None else keep.access, new_operation_id()
        self._services.link.execute(revoke(self._log, channel=channel, device=device, keep=kept, operation_id=id_))

    def start_conversation(self, channel: str, *, owner: str = "bot") -> Conversation:
        """A new conversation, owned by the helper `owner`. One round trip."""
        origin = Origin(channel, self._origin.actor)
        return start_conversation(self._services, self._keyspace, self.id, channel, owner=owner, origin=origin)

    def merge(self, other: Customer) -> None:
        """Makes `other` a part of this customer: one person, who was known twice.

        Documents are merged by their class's `merge(self, other)` method; without one this customer's document stays, and
        the other's is taken where there is none. Collections become one by their shape: sums, unions, the survivor's entries
        of a map. Identities move; writes to the other's states raise `CustomerMerged`.
        Merging again after a crash finishes what was begun. Raises `InvalidInput` before anything has changed when a
        document's class or a collection's declaration is not imported. Four round trips, one or two for each document, one for
        every 500 entries of a collection, and three for each identity.
        """
        if not isinstance(other, Customer):
            raise InvalidInput(f"merge takes the other customer, not a {type(other).__name__}: omni.customer(id)")
        if other.id == self.id:
            raise InvalidInput("a customer cannot be merged into itself")
        execute = self._services.link.execute
        classes, collections = imported_classes(), imported_collections()
        frozen = run(prepare_merge(self._keyspace, self.id, other.id, [*classes, *collections]), execute)
        own = [entry for entry in frozen.documents if ":" not in entry]  # what belongs to a conversation stays with it
        kinds = {entry: collections[entry].kind if entry in collections else "state" for entry in own}
        whose = hashlib.blake2b(other.id.encode(), digest_size=16).hexdigest()  # an id may be too long to be a part
        found = run(read_documents(other._log, kinds), execute)
        for entry, stored in found.items():
            if (stored.kind if stored.kind in COLLECTION_KINDS else "state") != kinds[entry]:
                raise SchemaMismatch(
                    f"{entry} of customer {other.id} is stored as {stored.kind}, and {kinds[entry]} is declared"
                )
        for entry, stored in found.items():
            if entry in collections:
                origin, names = other._place(), (whose, entry)
                moving = merge_collection(collections[entry], self._place(), stored.values, origin=origin, names=names)
                run(moving, execute)
            else:
                theirs = other.state(classes[entry]).value_of(stored.header, stored.values)
                self._merge_document(classes[entry], whose, theirs)
        indexes = [
            f"{name}.{index}" for name in own if name in classes for index in schema_of(classes[name]).indexes.names
        ]
        run(finish_merge(self._keyspace, self.id, other.id, frozen, kinds, indexes), execute)

    def export(self, *, signing_key: bytes | None = None) -> CustomerExport:
        """Everything that is known of the customer, and of those who were merged into it. No round trip: see `CustomerExport`.

        Encrypted values are in clear, where the keyring has their key, else they say so. Never tokens of sessions.
        `signing_key`: PEM of an Ed25519 private key, to sign the manifest.
        """
        return CustomerExport(self._services, self._keyspace, self.id, signing_key)

    def erase(self, *, actor: str, reason: str, dry_run: bool = False) -> Erasure:
        """Removes everything that is stored of this customer, for good, and refuses this id from then on.

        Documents, collections, their past, sessions, conversations and where they wait, identities, the log, and customers who
        were merged into this one. Watchers get a `customer.erased` event, then `CustomerErased`, as does whoever writes. It is
        written down who (`actor`) did it and why, without content: `omni.erasures()`. With `dry_run` it says what would go.
        Called again after a crash it goes on; a sweeper does, too. Raises `CustomerMerged`: erase the one it was merged into.
        What stays in files, backups and slow logs of the server: docs/erasure.md. At least 270 round trips, and it looks
        twice at the names of all keys of one server: one for each 1,000.
        """
        check_said(actor, reason)
        flow = preview_erasure if dry_run else erase_customer
        work = flow(self._keyspace, self.id, actor=actor, reason=reason)
        return run(work, self._services.link.execute)

    def _merge_document(self, kind: type[State], whose: str, theirs: State) -> None:
        operation_id = OwnOperationId("merge", whose, schema_of(kind).name)
        handle = self.state(kind)
        merge = getattr(kind, "merge", None)
        if merge is not None:
            handle.update_once(operation_id, merge, theirs)
            return
        try:
            handle.set(theirs, expect=ABSENT, operation_id=operation_id)
        except Conflict:
            return  # this customer's own document stays

    def _place(self) -> Place:
        return Place(self._services, self._log, self._origin)

    def __repr__(self) -> str:
        return f"<Customer {self.id}>"


def identify(keyspace: Keyspace, channel: str, address: str, proof: Confidence) -> Flow[str]:
    """The customer whom this identity names, made when it is new."""
    target = Target.wanted(keyspace, channel, address)
    return find_or_create(target, new_customer_id(), confidence_of(proof))
