"""Every error that omnistate raises, in one tree.

The name says what is wrong, the docstring says what to do next, the fields carry what that needs. Each class has a
`code`: a stable word for logs, HTTP problem details and the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from omnistate.store._position import Position


class OmnistateError(Exception):
    """The root of every error here: catch it to catch them all."""

    code: ClassVar[str] = "omnistate_error"


class InvalidInput(OmnistateError, ValueError):
    """Something given to omnistate is not acceptable: nothing was sent, nothing has changed. Mend it and call again."""

    code = "invalid_input"


class InvalidId(InvalidInput):
    """An id is empty, longer than 256 bytes, or holds a lone surrogate: use another id."""

    code = "invalid_id"


class IdentityBlocked(InvalidInput):
    """This address stands for nobody in particular ("null", "0000", "test"): ask for a real one, or go on without it."""

    code = "identity_blocked"

    def __init__(self, channel: str) -> None:
        super().__init__(
            f"this {channel} address stands for nobody in particular, so it would make many people one: go on without it, or "
            f"allow it, connect(channels={{{channel!r}: ChannelPolicy(blocked=...)}})"
        )
        self.channel = channel


class InvalidDeclaration(OmnistateError, TypeError):
    """A state class, an action or an app is declared in a way that cannot work: the message names the line to change."""

    code = "invalid_declaration"


class InvalidValue(InvalidInput):
    """A value does not fit its declared type, or names a field that the class does not have."""

    code = "invalid_value"


class ValueTooLarge(InvalidInput):
    """A value is larger than one state may be: keep large content elsewhere and store a reference to it."""

    code = "value_too_large"

    def __init__(self, what: str, *, size: int, limit: int) -> None:
        super().__init__(f"{what} is {size:,} bytes, the limit is {limit:,}: store large content elsewhere")
        self.size, self.limit = size, limit


class ValueTooDeep(InvalidInput):
    """A value nests deeper than the limit: flatten it."""

    code = "value_too_deep"

    def __init__(self, what: str, *, limit: int) -> None:
        super().__init__(f"{what} nests deeper than {limit} levels: flatten it")
        self.limit = limit


class Conflict(OmnistateError):
    """Another writer changed the document: read it again and decide, or use `update`, which does that for you.

    `update` raises it only after its bounded number of tries: the document is written faster than the function runs.
    """

    code = "conflict"

    def __init__(self, message: str, *, position: Position | None = None) -> None:
        super().__init__(message)
        self.position = position


class AlreadyThere(Conflict):
    """There is a value already, and it was to be set only if there is none: read it, or replace it with `put`."""

    code = "already_there"


class NotThere(OmnistateError, LookupError):
    """There is no value at this index: it was removed, or dropped from a list that was full. Read the list again."""

    code = "not_there"


class CollectionFull(OmnistateError):
    """The collection holds as many entries as its `limit` allows: remove some, raise the limit, or use one that drops."""

    code = "collection_full"


class QuotaExceeded(OmnistateError):
    """A customer holds as much as one may: delete what is not needed, or keep large content elsewhere. Nothing changed."""

    code = "quota_exceeded"

    def __init__(self, what: str, *, limit: int) -> None:
        super().__init__(
            f"a customer may hold {limit:,} {what}, and this one would hold more: delete what is not needed"
        )
        self.what, self.limit = what, limit


class OutOfBounds(OmnistateError):
    """A counter would leave the bounds it was declared with, so it stays as it is: `value` is what it would have been."""

    code = "out_of_bounds"

    def __init__(self, name: str, *, value: int) -> None:
        super().__init__(f"{name} would be {value:,}, which its bounds do not allow; it was left as it is")
        self.value = value


class LeaseLost(OmnistateError):
    """The lease on a work item ended and it was given to another worker: stop working on it. Nothing has changed."""

    code = "lease_lost"


class SchemaMismatch(OmnistateError):
    """A stored value cannot be read as its class: it was left untouched. Restore the class, or delete the document.

    `fields` holds those that cannot be read, with the reason: `read(partial=True)` gives the others. `removed` holds, as they
    were stored, the values that a `pop` took out of a collection before they could be read: keep them, they are nowhere else.
    """

    code = "schema_mismatch"
    removed: tuple[bytes, ...] = ()

    def __init__(self, message: str, *, fields: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.fields = fields or {}

    @classmethod
    def of_fields(cls, name: str, fields: dict[str, str], *, then: str = "") -> SchemaMismatch:
        """Some fields cannot be read, each with its reason; `then` says what that led to."""
        first, reason = next(iter(fields.items()))
        others = f" and {len(fields) - 1} more" if len(fields) > 1 else ""
        return SchemaMismatch(f"{name}.{first}{others} cannot be read{then}: {reason}", fields=fields)


class EncryptionKeyMissing(SchemaMismatch):
    """A value was encrypted with a key that this keyring does not have: add it (it may be an old one). Nothing was touched."""

    code = "encryption_key_missing"

    def __init__(self, key: str) -> None:
        super().__init__(f"a value was encrypted with the key {key!r}, which is not in this keyring: add it")
        self.key = key


class OperationIdReused(InvalidInput):
    """This operation id was already used for a different call: use a new id for each intention."""

    code = "operation_id_reused"

    def __init__(self, operation_id: str) -> None:
        super().__init__(
            f"operation id {operation_id!r} was already used here for something else: if this repeats a call, that one was "
            "applied and nothing is left to do; otherwise choose another id, one for each intention"
        )
        self.operation_id = operation_id


class PositionLost(OmnistateError):
    """The log no longer holds everything after this position: read the state again and go on from its position.

    Asked of the past (`at`, `diff`, `undo`): what is remembered does not reach back that far, and nothing is made up.
    """

    code = "position_lost"

    def __init__(self, wanted: Position, *, current: Position, past: str = "") -> None:
        super().__init__(
            f"{past} does not reach back that far: ask for a later moment, or remember more, history=..."
            if past
            else f"nothing can resume from {wanted}: the log is at {current}; read the state again and go on from there"
        )
        self.wanted, self.current = wanted, current


class SessionExpired(OmnistateError):
    """The session ended, or its deadline passed: start a new one with `customer.start_session`."""

    code = "session_expired"


class SessionRotated(Conflict):
    """Another request gave the session a new token a moment ago: answer with that one, or let the client call again."""

    code = "session_rotated"


class TooManySessions(QuotaExceeded):
    """The customer has as many sessions on this channel as its policy allows: end one first, `customer.revoke_session`."""

    code = "too_many_sessions"

    def __init__(self, channel: str, *, limit: int) -> None:
        super().__init__("sessions", limit=limit)
        self.args = (f"a customer may have {limit:,} sessions on {channel} at a time: end one of them first",)
        self.channel = channel


class IdentityTaken(OmnistateError):
    """This identity already belongs to another customer: merge the two, use another identity, or with proof `take=True`."""

    code = "identity_taken"

    def __init__(self, channel: str, *, owner: str) -> None:
        # The address is personal data, so it stays out of the message.
        super().__init__(f"this {channel} identity already belongs to customer {owner}: merge the two customers")
        self.channel, self.owner = channel, owner


class CustomerMerged(OmnistateError):
    """This customer was merged into another one: go on with `omni.customer(error.into)`."""

    code = "customer_merged"

    def __init__(self, customer: str, *, into: str) -> None:
        super().__init__(f"customer {customer} was merged into {into}: go on with omni.customer({into!r})")
        self.customer, self.into = customer, into


class CustomerErased(OmnistateError):
    """This customer was erased, and nothing is stored for this id again: who comes back is somebody new, by `identify`."""

    code = "customer_erased"

    def __init__(self, customer: str) -> None:
        super().__init__(
            f"customer {customer} was erased, and nothing is stored for this id again: a person who comes back gets another "
            "id, by omni.identify"
        )
        self.customer = customer


class ConversationNotFound(OmnistateError):
    """There is no such conversation: start one with `customer.start_conversation`."""

    code = "conversation_not_found"


class OwnershipLost(OmnistateError):
    """This helper does not own the conversation (any more): stop answering, or claim it first."""

    code = "ownership_lost"

    def __init__(self, *, author: str, owner: str, epoch: int) -> None:
        super().__init__(f"{author} does not own this conversation: it belongs to {owner} (owner epoch {epoch})")
        self.author, self.owner, self.epoch = author, owner, epoch


class NotConnected(OmnistateError):
    """This client is not open, or not any more: use it and its handles inside `async with omnistate.connect() as omni`."""

    code = "not_connected"

    def __init__(self) -> None:
        super().__init__(
            "this client is not open: use it inside `async with omnistate.connect() as omni` (`with` for omnistate.sync)"
        )


class CalledInEventLoop(OmnistateError, RuntimeError):
    """`omnistate.sync` was called where an event loop runs, which would stand still meanwhile: `import omnistate` there, the
    same text with `async` and `await`, or call it in a thread: `asyncio.to_thread(...)`."""

    code = "called_in_event_loop"

    def __init__(self) -> None:
        super().__init__(
            "an event loop runs in this thread, and would stand still: use `import omnistate` with `async` and `await` here, "
            "or call `omnistate.sync` in a thread, asyncio.to_thread(...)"
        )


class UsedAfterFork(OmnistateError, RuntimeError):
    """The client was opened before this process was forked, and belongs to the parent: call `connect` in the child."""

    code = "used_after_fork"

    def __init__(self) -> None:
        super().__init__(
            "this client was opened before the fork and belongs to the parent process: call connect() in the child, in the "
            "server's hook for that (docs/sync.md)"
        )


class Denied(OmnistateError):
    """This channel, role or token may not do that: use one that may, or widen the declaration in the app."""

    code = "denied"


class PortInUse(OmnistateError):
    """Another program listens on this port: stop it, or choose another port."""

    code = "port_in_use"


class MissingExtra(OmnistateError, ImportError):
    """An optional part is not installed: the message holds the command that installs it."""

    code = "missing_extra"

    def __init__(self, feature: str, *, extra: str) -> None:
        super().__init__(f'{feature} needs an extra: pip install "omnistate[{extra}]"')
        self.extra = extra


class StoreError(OmnistateError):
    """The store could not do what was asked: the subclasses say whether to wait, to mend a setting, or to ask an operator."""

    code = "store_error"


class StoreUnavailable(StoreError):
    """No answer from the server within the deadline, and nothing was applied: check that it runs; calling again is safe."""

    code = "store_unavailable"


class AmbiguousWrite(StoreUnavailable):
    """The write was sent but its answer was lost: call again with `operation_id=error.operation_id`; it is applied once."""

    code = "ambiguous_write"

    def __init__(self, operation_id: str, reason: str, *, meta: bytes | None = None) -> None:
        super().__init__(
            f"the outcome of operation {operation_id} is unknown ({reason}): "
            "call again with this operation id; it will be applied at most once"
        )
        self.operation_id, self.reason = operation_id, reason
        self.meta = meta  # for `omni.outcome`: the key that remembers the operation

    def of(self, operation_id: str) -> AmbiguousWrite:
        """The same of another caller, whose write went with this one."""
        return AmbiguousWrite(operation_id, self.reason, meta=self.meta)


class DurabilityNotReached(AmbiguousWrite):
    """The write was applied, but too few replicas have confirmed it in time: call again with the same id to wait again."""

    code = "durability_not_reached"

    def __init__(self, operation_id: str, wanted: str, reached: int, *, meta: bytes | None = None) -> None:
        StoreUnavailable.__init__(
            self,
            f"operation {operation_id} was applied, but {reached} is less than {wanted}: a failover may lose it. Call again "
            "with this operation id: it will not be applied twice, and is waited for again",
        )
        self.operation_id, self.reason, self.meta = operation_id, f"{reached} is less than {wanted}", meta
        self.wanted, self.reached = wanted, reached

    def of(self, operation_id: str) -> DurabilityNotReached:
        return DurabilityNotReached(operation_id, self.wanted, self.reached, meta=self.meta)


class DurabilityUnavailable(StoreError):
    """The server cannot promise this durability: change its settings, or write at another level."""

    code = "durability_unavailable"

    def __init__(self, wanted: str, reason: str) -> None:
        super().__init__(f"this server cannot promise that a write is {wanted}: {reason}")


class Overloaded(StoreUnavailable):
    """Too many calls wait for the server: slow down and call again; this one was not sent."""

    code = "overloaded"


class AuthenticationFailed(StoreError):
    """The server refused user or password: correct them in the URL. Nothing was sent but the login."""

    code = "authentication_failed"


class PermissionRefused(StoreError):
    """The server's access list does not allow this user what omnistate needs: grant it (docs/reference/store.md)."""

    code = "permission_refused"


class LibraryMissing(StoreError):
    """The server has no functions, so it cannot run omnistate: use Redis >= 7.0 or Valkey >= 7.2."""

    code = "library_missing"


class OutOfMemory(StoreError):
    """The server is at its memory limit and refused the write: raise `maxmemory` or delete data. Nothing has changed."""

    code = "out_of_memory"


class WritesDisabled(StoreError):
    """The server refuses writes because it cannot persist them: free disk space, or run BGREWRITEAOF after an I/O error."""

    code = "writes_disabled"


class ServerFailed(StoreError):
    """The embedded server could not be started: the message holds the last lines of its log."""

    code = "server_failed"


class ServerBinaryMissing(StoreError):
    """There is no server program for the embedded store: the message lists three ways to get one."""

    code = "server_binary_missing"


class DataDirectoryInUse(StoreError):
    """Another process runs a server on this data directory: connect to that one, or choose another directory."""

    code = "data_directory_in_use"


class DataDirectoryUnusable(StoreError):
    """The data directory cannot be used (not writable, not private): the message says what to change."""

    code = "data_directory_unusable"


class DataDirectoryTooNew(StoreError):
    """A newer omnistate wrote this data directory: upgrade omnistate, or choose another directory. It was left untouched."""

    code = "data_directory_too_new"
