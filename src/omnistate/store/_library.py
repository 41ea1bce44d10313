"""The server-side library: the slices' Lua files as one text, named by version and content.

Function names are global in a server, so they carry the digest too: two versions of omnistate run side by side, each
calling exactly the code it was written with, and nothing is ever replaced.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

VERSION = 1
_SLICES = ("store", "state", "session", "conversation", "customer")
_PRELUDE = """#!lua name={name}
local READS = {{'no-writes'}}
local function define(name, callback, flags)
  redis.register_function{{function_name = '{name}_' .. name, callback = callback, flags = flags}}
end
"""


@dataclass(frozen=True, slots=True)
class Library:
    name: str
    code: str

    def function(self, short: str) -> bytes:
        return f"{self.name}_{short}".encode()


@cache
def library() -> Library:
    """The library of this installation; reads the package's files once."""
    body = "".join(
        f"\n-- {part} " + "-" * 60 + "\n" + (files("omnistate") / part / "functions.lua").read_text(encoding="utf-8")
        for part in _SLICES
    )
    name = f"omnistate_{VERSION}_{hashlib.sha256(body.encode()).hexdigest()[:8]}"
    return Library(name, _PRELUDE.format(name=name) + body)
