"""What codecs cost: bytes in the store, and the client's time to store and to read a whole document."""

from __future__ import annotations

import secrets
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import omnistate
from harness import CLIENT_CORE, ROUNDS, median, pin
from omnistate import Keyring, State
from omnistate.state import schema_of

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

KEY = b"omni:default:{0}:c.ana:doc:Cart"
CALLS = 300
SIZES = {"cart, 1 KB": (12, 350), "cart, 18 KB": (245, 4900)}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "zstd over 256 B": {"compress_over": 256},
    "AES-256-GCM": {"encrypted": True},
    "both": {"compress_over": 256, "encrypted": True},
}


def classes(codec: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """A class, and what makes a value of it, of so many lines and so much text."""
    if codec == "protobuf":
        from messages import Cart, Line

        kind = omnistate.protobuf(Cart, name="Cart", ttl=timedelta(days=7), **options)

        def message(lines: int, text: int) -> Any:
            found = {f"product-{n:04}-large": Line(quantity=n, note="blue") for n in range(lines)}
            return Cart(lines=found, note=words(text), total=99)

        return kind, message
    annotations = {"lines": dict[str, dict[str, int | str]], "note": str, "total": int}
    namespace = {"__annotations__": annotations, "lines": {}, "note": "", "total": 0, "__module__": __name__}
    kind = type(State)("Cart", (State,), namespace, codec=codec, **options)

    def value(lines: int, text: int) -> Any:
        found = {f"product-{n:04}-large": {"quantity": n, "note": "blue"} for n in range(lines)}
        return kind(lines=found, note=words(text), total=99)

    return kind, value


def words(size: int) -> str:
    """Text that compresses about as text does."""
    known = [
        "the",
        "parcel",
        "was",
        "left",
        "with",
        "a",
        "neighbour",
        "on",
        "the",
        "second",
        "floor",
        "and",
        "she",
        "will",
        "bring",
        "it",
        "over",
        "tomorrow",
        "evening",
    ]
    found, state = [], 12345
    while sum(map(len, found)) + len(found) < size:
        state = state * 1103515245 + 12345 & 0x7FFFFFFF
        found.append(known[state >> 8 & 15])
    return " ".join(found)[:size]


def measure(kind: Any, value: Any, keyring: Keyring) -> tuple[int, float, float]:
    """Bytes, and microseconds to make what is stored of the value, and to make the value of what is stored."""
    schema = schema_of(kind)
    began = time.perf_counter()
    for _ in range(CALLS):
        stored = schema.pack(schema.split(schema.encode(value)), KEY, keyring)
    packed = time.perf_counter()
    for _ in range(CALLS):
        flat, _ = schema.unpack(stored, KEY, keyring)
        schema.decode(schema.join(flat))
    read = time.perf_counter()
    size = sum(len(name) + len(one) for name, one in stored.items())
    return size, (packed - began) / CALLS * 1e6, (read - packed) / CALLS * 1e6


def main() -> dict[str, Any]:
    pin(0, CLIENT_CORE)
    keyring = Keyring({"2026": secrets.token_bytes(32)}, current="2026")
    lines = ["| document | codec | stored as | bytes | store, us | read, us |", "|---|---|---|---|---|---|"]
    rounds: dict[str, Any] = {}
    for size, (count, text) in SIZES.items():
        for codec in ("json", "msgpack", "protobuf"):
            for label, options in OPTIONS.items():
                kind, make = classes(codec, options)
                value = make(count, text)
                found = [measure(kind, value, keyring) for _ in range(ROUNDS)]
                stored, pack, read = found[0][0], median([f[1] for f in found]), median([f[2] for f in found])
                lines.append(f"| {size} | {codec} | {label} | {stored:,} | {pack:,.0f} | {read:,.0f} |")
                rounds[f"{size} {codec} {label}"] = found
    lines += [
        "",
        "A whole document: every field and every entry of its mapping is packed by itself, as each is stored by itself;",
    ]
    lines.append("an update packs only what changed. Times are the client's.")
    return {"results": [], "tables": {"codecs": lines}, "rounds": rounds}


if __name__ == "__main__":
    print("\n".join(main()["tables"]["codecs"]))
