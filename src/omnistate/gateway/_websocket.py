"""The WebSocket transport: a protocol class for uvicorn, over the parser of `websockets`.

The handshake is ours: some clients send an empty `Sec-WebSocket-Protocol`, which parsers refuse. Messages out bypass the
parser: their frames are made once for all clients, and those of one tick of the event loop leave in one write.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Sequence
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from omnistate.gateway._connection import Backend, ClientConnection
from omnistate.gateway._wire import Disconnect

PATH = "/connection/websocket"
_CLOSE_WITHIN = 5.0  # seconds for the client to answer a close
_MOST_FRAGMENTS = 1024  # of one message


class WebSocketBackend(Backend, Protocol):
    origins: Collection[str] | None
    hosts: Collection[str] | None
    connections: set[ClientConnection]
    draining: bool


class WebSocketProtocol(asyncio.Protocol):
    """One socket. `backend` is set by `websocket_protocol`; uvicorn makes the instances."""

    backend: WebSocketBackend

    def __init__(self, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:  # noqa: ARG002
        self._server_state = server_state
        self._loop = asyncio.get_running_loop()
        self._parser = ServerProtocol(max_size=self.backend.limits.message_size)
        self._socket: asyncio.Transport | None = None
        self._client: ClientConnection | None = None
        self._fragments: list[bytes] = []
        self._outbox: list[bytes] = []
        self._outbox_size = 0
        self._closing = False
        self._abandoned = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)
        self._server_state.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._parser.receive_data(data)
        for event in self._parser.events_received():
            if isinstance(event, Request):
                self._open(event)
            elif isinstance(event, Frame):
                self._frame(event)
        self._send_parser_output()

    def eof_received(self) -> None:
        self._parser.receive_eof()
        self._send_parser_output()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._server_state.connections.discard(self)
        if self._client is not None:
            self.backend.connections.discard(self._client)
            self._client.lost()

    # uvicorn

    def shutdown(self) -> None:
        """uvicorn ends: whoever is still here is told to come back."""
        if self._client is not None:
            self._client.close(*Disconnect.SHUTDOWN)
        elif self._socket is not None:
            self._socket.close()

    # Transport, for the client's connection

    def write(self, framed: bytes) -> None:
        if self._closing or self._abandoned:
            return
        assert self._socket is not None
        waiting = self._outbox_size + self._socket.get_write_buffer_size()
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(framed)
        self._outbox_size += len(framed)
        if waiting and waiting + len(framed) > self.backend.limits.queue_size:  # one large answer alone is no slowness
            self._abandon()

    def close(self, code: int, reason: str) -> None:
        if self._closing:
            return
        self._flush()
        self._closing = True
        if self._parser.state is OPEN:
            self._parser.send_close(code, reason)
            self._send_parser_output()
        assert self._socket is not None
        self._loop.call_later(_CLOSE_WITHIN, self._socket.abort)

    def pause(self) -> None:
        assert self._socket is not None
        self._socket.pause_reading()

    def resume(self) -> None:
        if self._socket is not None and not self._socket.is_closing():
            self._socket.resume_reading()

    # inside

    def _flush(self) -> None:
        if self._outbox and self._socket is not None and not self._closing:
            outbox, self._outbox, self._outbox_size = self._outbox, [], 0
            self._socket.write(outbox[0] if len(outbox) == 1 else b"".join(outbox))

    def _abandon(self) -> None:
        """The client reads too slowly: it is told so behind what it has, and comes back for what it missed."""
        self._abandoned = True  # nothing more, or it would see a gap
        self._outbox.clear()
        self._outbox_size = 0
        client = self._client
        if client is not None:
            self._loop.call_soon(client.close, *Disconnect.SLOW)

    def _send_parser_output(self) -> None:
        socket = self._socket
        if socket is None or socket.is_closing():
            return
        for data in self._parser.data_to_send():
            if data:
                socket.write(data)
        if self._parser.close_expected() or self._parser.parser_exc is not None:
            socket.close()
            self._loop.call_later(_CLOSE_WITHIN, socket.abort)  # a client that does not read would keep it
        elif socket.get_write_buffer_size() > self.backend.limits.queue_size and not self._closing:
            socket.abort()  # a flood of pings whose answers are not read

    def _open(self, request: Request) -> None:
        if "Sec-WebSocket-Protocol" in request.headers:
            offered = request.headers.get_all("Sec-WebSocket-Protocol")
            del request.headers["Sec-WebSocket-Protocol"]
            if "centrifuge-json" in ",".join(offered).replace(" ", "").split(","):
                request.headers["Sec-WebSocket-Protocol"] = "centrifuge-json"
                self._parser.available_subprotocols = [Subprotocol("centrifuge-json")]
        if request.path.partition("?")[0] != PATH:
            response = self._parser.reject(404, f"the socket is at {PATH}\n")
        elif not host_allowed(request.headers.get_all("Host"), self.backend.hosts):
            response = self._parser.reject(403, "this host name is not served here\n")
        elif self.backend.draining:
            response = self._parser.reject(503, "this server is going away: try again\n")
        elif not _origin_allowed(request, self.backend.origins):
            response = self._parser.reject(403, "this origin may not connect: allow it with --origin\n")
        else:
            response = self._parser.accept(request)
        self._parser.send_response(response)
        if response.status_code == 101:
            self._client = ClientConnection(self.backend, self)
            self.backend.connections.add(self._client)

    def _frame(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            if frame.data:
                self._fragments.append(bytes(frame.data))
            if len(self._fragments) > _MOST_FRAGMENTS:
                self.close(*Disconnect.BAD_REQUEST)
            elif frame.fin:
                message = self._fragments[0] if len(self._fragments) == 1 else b"".join(self._fragments)
                self._fragments = []
                if self._client is not None and not self._closing:
                    self._client.receive(message)
        elif frame.opcode is Opcode.CLOSE and self._client is not None:
            self._closing = True
            self._client.lost()


def host_allowed(named: Sequence[str], allowed: Collection[str] | None) -> bool:
    """Whether the Host header names one of `allowed`. A page elsewhere can give its own name any address."""
    if allowed is None:
        return True
    try:
        return len(named) == 1 and urlsplit("//" + named[0]).hostname in allowed
    except ValueError:
        return False


def _origin_allowed(request: Request, allowed: Collection[str] | None) -> bool:
    """Browsers send an Origin, others do not. Without a list, only the page's own host may connect."""
    try:
        origin = request.headers.get("Origin")
        host = request.headers.get("Host")
        from_host = urlsplit(origin or "").netloc
    except (WebSocketException, LookupError, ValueError):  # sent more than once, or no URL
        return False
    if origin is None:
        return True
    if allowed is not None:
        return origin in allowed
    return origin != "null" and from_host == host


def websocket_protocol(backend: WebSocketBackend) -> type[WebSocketProtocol]:
    """The class to give to uvicorn as `ws=`: it gives instances no argument of ours, so the backend is the class's."""
    return type("BoundWebSocketProtocol", (WebSocketProtocol,), {"backend": backend})


async def drain(backend: WebSocketBackend, *, over: float) -> None:
    """Sends all clients away, spread over at most `over` seconds, so that they do not all come back at once."""
    backend.draining = True
    clients = list(backend.connections)
    random.shuffle(clients)
    if not clients:
        return
    pause = min(over / len(clients), 0.05)
    for client in clients:
        client.close(*Disconnect.SHUTDOWN)
        await asyncio.sleep(pause * (0.5 + random.random()))
