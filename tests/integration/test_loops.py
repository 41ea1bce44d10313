"""asyncio's own event loop and uvloop: the command line takes uvloop where it is, and everything works with both."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from machine import Server

PROGRAM = """
import asyncio, contextlib, sys
if sys.argv[1] == "without":
    sys.modules["uvloop"] = None  # its import fails
sys.path.insert(0, sys.argv[2])
import omnistate
from machine import raw_client
from omnistate.cli._common import run
from shop import Cart

async def main(url, tenant):
    asyncio.get_running_loop().slow_callback_duration = 60  # how busy the machine is does not matter here
    async with omnistate.connect(url, tenant=tenant) as omni:
        cart, changes = omni.customer("ana").state(Cart), omni.customer("ana").state(Cart).watch()
        await anext(changes)
        writers = [asyncio.create_task(cart.update(Cart.add, "cup")) for _ in range(200)]
        doomed = [asyncio.create_task(cart.increment("visits")) for _ in range(200)]
        await asyncio.sleep(0)
        with contextlib.closing(raw_client(url)) as raw:
            raw.client_kill_filter(_type="normal", skipme=True)  # they connect anew
        for task in doomed:
            task.cancel()
        await asyncio.gather(*doomed, return_exceptions=True)
        assert max([written.result for written in await asyncio.gather(*writers)]) == 200
        async for change in changes:
            if change.value.items == {"cup": 200}:
                break
        await changes.aclose()
        print(type(asyncio.get_running_loop()).__module__)

run(main(sys.argv[3], sys.argv[4]))
"""


@pytest.mark.parametrize("presence", ["with", "without"])
async def test_the_command_line_takes_uvloop_where_it_is(valkey: Server, tenant: str, presence: str) -> None:
    if presence == "with":
        pytest.importorskip("uvloop")
    tests = str(Path(__file__).parent.parent)
    words = [sys.executable, "-X", "dev", "-W", "error", "-c", PROGRAM, presence, tests, valkey.url, tenant]
    done = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("uvloop" if presence == "with" else "asyncio.")
