"""What is said on a new connection before it is used. Written once, for connections of the loop and for blocking ones."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar

import hiredis

from omnistate.errors import LibraryMissing, PermissionRefused, StoreUnavailable
from omnistate.store._command import pack
from omnistate.store._connection import Connection
from omnistate.store._library import Library
from omnistate.store._replies import to_error
from omnistate.store._url import Endpoint

T = TypeVar("T")
Exchange: TypeAlias = Generator[bytes, Any, T]  # gives packed commands and takes replies, error replies as values


def said(reply: Any) -> Any:
    """The reply. Raises a `StoreError` for an error reply."""
    if isinstance(reply, hiredis.ReplyError):
        raise to_error(str(reply))
    return reply


def logging_in(endpoint: Endpoint) -> Exchange[None]:
    """Raises `StoreError`."""
    if endpoint.password is not None:
        user = (endpoint.username,) if endpoint.username else ()
        said((yield pack("AUTH", *user, endpoint.password)))
    said((yield pack("PING")))
    if endpoint.database:
        said((yield pack("SELECT", str(endpoint.database))))


def arriving(library: Library) -> Exchange[bool]:
    """Whether the server is a replica; a user who may not ask for the role is told by the first write."""
    reply = yield pack(b"FCALL", library.function("arrive"), b"0")
    return isinstance(reply, list) and reply[0] == b"slave"


def greeting(library: Library, *, primary: bool) -> Exchange[None]:
    """The server has the library then; with `primary` it must not be a replica. Raises `StoreError`."""
    try:
        if not said((yield pack("FUNCTION", "LIST", "LIBRARYNAME", library.name))):
            yield from loading(library)
    except PermissionRefused:
        pass  # an operator may load the library and allow FCALL alone: the first call will tell
    if (yield from arriving(library)) and primary:
        raise StoreUnavailable("the server is a replica")


def loading(library: Library) -> Exchange[None]:
    """Raises `LibraryMissing` where the user may not load it."""
    reply = yield pack("FUNCTION", "LOAD", library.code)
    if not isinstance(reply, hiredis.ReplyError) or "already exists" in str(reply):
        return
    error = to_error(str(reply))
    if isinstance(error, PermissionRefused):
        raise LibraryMissing(
            f"the library {library.name} is not on the server and this user may not load it: "
            "connect once as a user with +function|load"
        )
    raise error


async def converse(connection: Connection, exchange: Exchange[T]) -> T:
    """Holds an exchange on a connection of the loop. Raises `ConnectionLost`, and what the exchange raises."""
    reply = None
    while True:
        try:
            packed = exchange.send(reply)
        except StopIteration as done:
            result: T = done.value
            return result
        reply = await connection.send(packed)
