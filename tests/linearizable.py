"""Whether what clients saw of one register can be told as a story in which each call happened at one moment.

The search of Wing and Gong with Lowe's memory of what was tried: a call may come next if it began before the first end among
those that are left. A call whose answer was lost has no end: it may come at any time after its beginning, or never.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

UNKNOWN: Any = object()


@dataclass(frozen=True)
class Call:
    """`kind`: read, put or add. `result` is UNKNOWN for one whose answer was lost; then `ended` does not count."""

    kind: str
    argument: Any
    result: Any
    began: float
    ended: float = math.inf


class Register(NamedTuple):
    """A document with one number in it. Each write makes the next version; 0 is none."""

    version: int = 0
    value: int = 0

    def after(self, call: Call) -> Register | None:
        """What it is after the call, None where the call cannot have come here."""
        if call.kind == "read":
            made, result = self, tuple(self)
        elif call.kind == "add":
            made = Register(self.version + 1, self.value + call.argument)
            result = tuple(made)
        else:
            expected, value = call.argument
            is_refused = expected is not None and expected != self.version
            made = self if is_refused else Register(self.version + 1, value)
            result = ("refused",) if is_refused else (made.version,)
        return made if call.result is UNKNOWN or call.result == result else None


def is_linearizable(calls: Iterable[Call]) -> bool:
    """Of the calls for one register."""
    history: Sequence[Call] = sorted(calls, key=lambda call: call.began)
    ends = [math.inf if call.result is UNKNOWN else call.ended for call in history]
    needed = sum(1 << index for index, end in enumerate(ends) if end < math.inf)
    tried: set[Hashable] = set()
    waiting = [(0, Register())]
    while waiting:
        done, register = waiting.pop()
        if done & needed == needed:
            return True
        if (done, register) in tried:
            continue
        tried.add((done, register))
        first_end = min(end for index, end in enumerate(ends) if not done >> index & 1)
        for index, call in enumerate(history):
            if call.began > first_end:
                break
            if not done >> index & 1 and (made := register.after(call)) is not None:
                waiting.append((done | 1 << index, made))
    return False
