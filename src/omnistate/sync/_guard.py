"""The way to the store for what belongs to a session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from omnistate.session import Access, guarded
from omnistate.store import Command
from omnistate.sync._link import Executor

T = TypeVar("T")


class Guard:
    """Executes commands for as long as the session lives; then they raise `SessionExpired`, and nothing is done."""

    def __init__(self, link: Executor, access: Access) -> None:
        self._link, self.access = link, access
        self.behind, self.background = link.behind, link.background

    def execute(self, command: Command[T]) -> T:
        return self._link.execute(guarded(command, self.access))

    def execute_all(self, commands: Sequence[Command[Any]]) -> list[Any]:
        return self._link.execute_all([guarded(command, self.access) for command in commands])
