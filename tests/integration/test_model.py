"""Random writes by two clients, each with its own memory of the document, against a plain Python model.

After every write a third client reads what the model holds; at the end a watcher that saw only events holds it too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

import omnistate
from omnistate import Client, StateHandle

SEED = int(os.environ.get("SEED", "0")) or random.randrange(10**9)
KEYS = ["cup", "a:b", "é☃", "", " ", "x" * 200, '"', "\n", "{}"]
TEXTS = ["", "x", '"', "\\", "\x00", "é☃\U0001f600", "[]", "null", "1", "x" * 3000]
NUMBERS = [0, 1, -1, 2**31, 2**53 - 1, -(2**53)]


class Exact(omnistate.State):
    """Compared by value."""

    items: dict[str, int] = {}
    texts: dict[str, str | None] = {}
    note: str = ""
    count: int = 0
    flag: bool | None = None


class Loose(omnistate.State):
    """Compared as JSON."""

    items: dict[str, int] = {}
    texts: dict[str, Any] = {}
    note: str = ""
    count: int = 0
    flag: Any = None


class Model:
    """What the document should be."""

    def __init__(self, kind: type[Any], chance: random.Random) -> None:
        self.kind, self.value, self.chance = kind, kind(), chance
        self.loose = [1, True, 1.0, None, [], {}, [1], [True], {"a": []}, "x"]

    def text(self) -> Any:
        if self.kind is Loose and self.chance.random() < 0.7:
            return self.chance.choice(self.loose)
        return self.chance.choice(TEXTS)

    async def step(self, handle: StateHandle[Any]) -> None:
        names = [
            "put",
            "put_text",
            "remove",
            "patch",
            "increment",
            "count",
            "update",
            "update",
            "update",
            "set",
            "delete",
            "fail",
        ]
        await getattr(self, self.chance.choice(names))(handle)

    async def put(self, handle: StateHandle[Any]) -> None:
        key, number = self.chance.choice(KEYS), self.chance.choice(NUMBERS)
        await handle.put("items", key, number)
        self.value.items[key] = number

    async def put_text(self, handle: StateHandle[Any]) -> None:
        key, text = self.chance.choice(KEYS), self.text()
        await handle.put("texts", key, text)
        self.value.texts[key] = text

    async def remove(self, handle: StateHandle[Any]) -> None:
        key = self.chance.choice(KEYS)
        await handle.remove("items", key)
        self.value.items.pop(key, None)

    async def patch(self, handle: StateHandle[Any]) -> None:
        note, flag = self.chance.choice(TEXTS), self.chance.choice([None, True, False])
        await handle.patch(note=note, flag=flag)
        self.value.note, self.value.flag = note, flag

    async def increment(self, handle: StateHandle[Any]) -> None:
        key, by = self.chance.choice(KEYS), self.chance.choice([1, -1, 7])
        wanted = self.value.items.get(key, 0) + by
        if abs(wanted) > 2**53 - 1:
            with pytest.raises(omnistate.InvalidValue):
                await handle.increment("items", key, by=by)
        else:
            assert await handle.increment("items", key, by=by) == wanted
            self.value.items[key] = wanted

    async def count(self, handle: StateHandle[Any]) -> None:
        self.value.count = await handle.increment("count", by=3)

    async def update(self, handle: StateHandle[Any]) -> None:
        steps = [self.change() for _ in range(self.chance.randrange(4))]

        def apply(value: Any) -> None:
            for step in steps:
                step(value)

        await asyncio.gather(*(handle.update(apply) for _ in range(self.chance.choice([1, 1, 3]))))
        apply(self.value)

    def change(self) -> Callable[[Any], object]:
        key, number, text = self.chance.choice(KEYS), self.chance.choice(NUMBERS), self.text()
        note = self.chance.choice(TEXTS)
        return self.chance.choice(
            [
                lambda v: v.items.__setitem__(key, number),
                lambda v: v.items.pop(key, None),
                lambda v: v.texts.__setitem__(key, text),
                lambda v: v.texts.clear(),
                lambda v: setattr(v, "note", note),
                lambda v: setattr(v, "items", {}),
                lambda v: setattr(v, "flag", None),
            ]
        )

    async def set(self, handle: StateHandle[Any]) -> None:
        value = self.kind(items={self.chance.choice(KEYS): 1}, texts={self.chance.choice(KEYS): self.text()})
        await handle.set(value)
        self.value = self.kind(items=dict(value.items), texts=dict(value.texts))

    async def delete(self, handle: StateHandle[Any]) -> None:
        await handle.delete()
        self.value = self.kind()

    async def fail(self, handle: StateHandle[Any]) -> None:
        def spoil(value: Any) -> None:
            value.items["spoiled"] = 1
            value.note = 7

        with pytest.raises(omnistate.InvalidValue):
            await handle.update(spoil)


def exactly(value: Any) -> str:
    """1, 1.0 and True are told apart; the order of a mapping's entries does not matter."""
    return repr((sorted(value.items.items()), sorted(value.texts.items()), value.note, value.count, value.flag))


@pytest.mark.parametrize("kind", [Exact, Loose])
@pytest.mark.parametrize("run", range(3))
async def test_every_write_does_what_the_model_does(
    omni: Client, connect: Callable[..., Client], kind: type[Any], run: int
) -> None:
    print(f"SEED={SEED}")
    model = Model(kind, random.Random(SEED + run))
    async with connect() as other, connect() as reader:
        handles = [client.customer("ana").state(kind) for client in (omni, other)]
        third = reader.customer("ana").state(kind)
        seen: list[Any] = []

        async def watch() -> None:
            async with contextlib.aclosing(third.watch()) as changes:
                async for change in changes:
                    seen[:] = [change.value]

        watcher = asyncio.create_task(watch())
        for _ in range(250):
            await model.step(model.chance.choice(handles))
            assert exactly(await third.get()) == exactly(model.value)
        async with asyncio.timeout(5):
            while not seen or exactly(seen[0]) != exactly(model.value):
                await asyncio.sleep(0.005)
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
