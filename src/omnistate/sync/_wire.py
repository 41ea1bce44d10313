"""A blocking connection for commands, used by one thread at a time."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import Any

import hiredis

from omnistate.store import ConnectionLost, Endpoint, Exchange

_CHUNK = 65536


class Wire:
    """A connected socket. `ask` may be called while `is_open`.

    After any error, and after anything that came between a command and its reply, it must be closed.
    """

    __slots__ = ("__weakref__", "_reader", "_socket", "is_open")

    def __init__(self, connected: socket.socket) -> None:
        self._socket, self._reader = connected, hiredis.Reader()
        self.is_open = True

    def ask(self, packed: bytes) -> Any:
        """The reply, or a `hiredis.ReplyError` as a value. Raises `OSError`."""
        self._socket.sendall(packed)
        return self.read()

    def send(self, packed: bytes) -> None:
        """Sends commands, each of which is to be answered by a `read`. Raises `OSError`."""
        self._socket.sendall(packed)

    def read(self) -> Any:
        """The next reply. Raises `OSError`, also when it does not come in time."""
        reader = self._reader
        try:
            while (reply := reader.gets()) is False:
                data = self._socket.recv(_CHUNK)
                if not data:
                    raise ConnectionLost("the server closed the connection")
                reader.feed(data)
        except hiredis.ProtocolError as error:
            raise ConnectionLost("the server sent something that is not an answer") from error
        except BlockingIOError as error:
            raise ConnectionLost("no reply in time") from error
        return reply

    def limit(self, seconds: float) -> None:
        """How long a reply may take.

        The kernel's own limit saves a system call at each reading; TLS needs Python's.
        """
        if hasattr(self._socket, "cipher"):
            self._socket.settimeout(seconds)
            return
        self._socket.settimeout(None)
        whole = max(int(seconds * 1_000_000), 1)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", whole // 1_000_000, whole % 1_000_000))

    def cut(self) -> None:
        """From another thread: ends the connection, and wakes who reads from it. Its user closes it."""
        self.is_open = False
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # also under TLS: whose own would need its state

    def close(self) -> None:
        """By its user: ends the connection."""
        self.is_open = False
        self._socket.close()

    def __del__(self) -> None:
        self._socket.close()


def dial(endpoint: Endpoint, greeting: Exchange[None], *, stall: float) -> Wire:
    """A connection over which the greeting has been held, all in `stall` seconds. Raises `OSError`, `StoreError`."""
    deadline = time.monotonic() + stall
    wire = Wire(_connected(endpoint, stall))
    try:
        reply = None
        while True:
            wire.limit(max(deadline - time.monotonic(), 0.001))
            try:
                packed = greeting.send(reply)
            except StopIteration:
                break
            reply = wire.ask(packed)
        wire.limit(stall)
    except BaseException:
        wire.close()
        raise
    return wire


def _connected(endpoint: Endpoint, within: float) -> socket.socket:
    if endpoint.path:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    else:
        made = socket.create_connection((endpoint.host, endpoint.port), within)
    try:
        made.settimeout(within)
        if endpoint.path:
            made.connect(endpoint.path)
            return made
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = endpoint.tls_context()
        return made if tls is None else tls.wrap_socket(made, server_hostname=endpoint.host)
    except BaseException:
        made.close()
        raise
