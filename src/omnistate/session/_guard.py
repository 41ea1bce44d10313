"""The way to the store for what belongs to a session."""

from __future__ import annotations

from typing import TypeVar

from omnistate.session._commands import Access, guarded
from omnistate.store import Command, Executor

T = TypeVar("T")


class Guard:
    """Executes commands for as long as the session lives; then they raise `SessionExpired`, and nothing is done."""

    def __init__(self, link: Executor, access: Access) -> None:
        self._link, self.access, self.timeout = link, access, link.timeout

    async def execute(self, command: Command[T], *, started: float | None = None) -> T:
        return await self._link.execute(guarded(command, self.access), started=started)
