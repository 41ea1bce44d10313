"""The blocking connections to one server: each lent to one thread at a time."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from weakref import WeakSet

from omnistate.errors import StoreError
from omnistate.store import Node
from omnistate.sync._background import Background
from omnistate.sync._wire import Wire, dial

MOST_WIRES = 32  # to one server; the calls of further threads share the connection of the background thread
_AFTER_A_FAILURE = 0.5  # seconds until another one is tried


class Pool:
    """`take` one, and `give_back` when its reply has been read as a whole.

    They end with the other connections to the server: one that was replaced goes on to answer its old clients.
    """

    def __init__(self, node: Node, background: Background) -> None:
        self._node, self._background = node, background
        self.free: list[Wire] = []  # the one that was used last is taken first
        self._wires: WeakSet[Wire] = WeakSet()
        self._lock = threading.Lock()
        self._dialing, self._drops, self._not_before = 0, 0, 0.0
        node.on_drop(self.drop)

    def take(self) -> Wire | None:
        """An open connection, made now if need be; None when there is to be none more, or there is trouble."""
        while True:
            try:
                wire = self.free.pop()
            except IndexError:
                return self._dial()
            if wire.is_open:
                return wire
            wire.close()

    def give_back(self, wire: Wire) -> None:
        """Lets the next caller have it."""
        self.free.append(wire)
        if not wire.is_open:  # they were dropped just now
            self._tidy()

    def drop(self) -> None:
        """Ends them all. Who waits for a reply is told that the connection is lost."""
        with self._lock:
            self._drops += 1
            wires = list(self._wires)
            self._wires.clear()
        for wire in wires:
            wire.cut()
        self._tidy()

    def _tidy(self) -> None:
        """Closes those of the free ones that were cut."""
        taken: list[Wire] = []
        with suppress(IndexError):
            while True:
                taken.append(self.free.pop())
        for wire in taken:
            if wire.is_open:
                self.free.append(wire)
            else:
                wire.close()

    def _dial(self) -> Wire | None:
        connection = self._node.connection
        if connection is None or not connection.is_open or not self._may_dial():
            return None
        drops = self._drops
        try:
            endpoint = self._background.wait(self._node.locate())
            wire = dial(endpoint, self._node.greeting(endpoint), stall=self._node.stall)
        except (OSError, StoreError):  # the background thread finds out what it is, and says so
            self._not_before = time.monotonic() + _AFTER_A_FAILURE
            return None
        finally:
            with self._lock:
                self._dialing -= 1
        with self._lock:
            if self._drops == drops and not self._node.is_retired:
                self._wires.add(wire)
                return wire
        wire.close()
        return None

    def _may_dial(self) -> bool:
        with self._lock:
            if len(self._wires) + self._dialing >= MOST_WIRES or time.monotonic() < self._not_before:
                return False
            self._dialing += 1
            return True
