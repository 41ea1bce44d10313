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
_SHARED, _LEAVES = ("store", "state"), ("collection", "session", "conversation", "customer")
_PRELUDE = """#!lua name={name}
local READS = {{'no-writes'}}
-- Looking up a global costs as much as a short command, and none of these is there while the library is loaded.
local redis_call, redis_pcall, format, match, find, sub, gsub, byte, concat
local math_min, math_max, math_floor, tonumber, unpack, ipairs, pairs, type
local function prepare()
  redis_call, redis_pcall = redis.call, redis.pcall
  format, match, find, sub = string.format, string.match, string.find, string.sub
  gsub, byte, concat = string.gsub, string.byte, table.concat
  math_min, math_max, math_floor = math.min, math.max, math.floor
  tonumber, unpack, ipairs, pairs, type = _G.tonumber, _G.unpack, _G.ipairs, _G.pairs, _G.type
end
local callbacks = {{}}
local function define(name, callback, flags)
  callbacks[name] = callback
  local function run(keys, args)
    if not redis_call then prepare() end
    return callback(keys, args)
  end
  redis.register_function{{function_name = '{name}_' .. name, callback = run, flags = flags}}
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
    texts = {part: (files("omnistate") / part / "functions.lua").read_text("utf-8") for part in _SHARED + _LEAVES}
    # Lua has room for 200 local names at a time, so those of a slice that no other one uses end with it.
    texts |= {part: f"do\n{texts[part]}\nend\n" for part in _LEAVES}
    body = "".join(f"\n-- {part} " + "-" * 60 + "\n" + text for part, text in texts.items())
    name = f"omnistate_{VERSION}_{hashlib.sha256(body.encode()).hexdigest()[:8]}"
    return Library(name, _PRELUDE.format(name=name) + body)
