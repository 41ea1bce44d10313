"""The command line as a user types it: in processes of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from redis import Redis

from machine import free_block, free_port, is_running

SHOP = Path(__file__).parent.parent


def omnistate(*arguments: str, directory: Path = SHOP, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import sys; from omnistate.cli import main; sys.exit(main())", *arguments],
        capture_output=True,
        text=True,
        cwd=directory,
        env=os.environ | environment,
        timeout=30,
        check=False,
    )


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "store.py").write_text(
        "import omnistate\nfrom shop import Cart\napp = omnistate.App(Cart)\nother = omnistate.App(Cart)\n"
    )
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "failing.py").write_text("1/0\n")
    (tmp_path / "wrong.py").write_text("import omnistate\nclass A(omnistate.State, ttl=3): pass\n")
    monkeypatch.setenv("PYTHONPATH", str(SHOP), prepend=os.pathsep)
    return tmp_path


def test_get_set_and_watch(app: Path, data_dir: Path) -> None:
    where = ["--app", "store:app", "--data-dir", str(data_dir)]
    assert omnistate("get", "ana", "Cart", *where, directory=app).stdout.strip().startswith('{\n  "items": {}')
    done = omnistate("set", "ana", "Cart", '{"items": {"cup": 2}}', "--json", *where, directory=app)
    version = json.loads(done.stdout)["version"]
    found = json.loads(omnistate("get", "ana", "Cart", "--json", *where, directory=app).stdout)
    assert found == {"value": {"items": {"cup": 2}, "note": "", "visits": 0}, "version": version, "position": version}
    stale = omnistate("set", "ana", "Cart", "{}", "--expect", version[:-1] + "7", *where, directory=app)
    assert stale.returncode == 1
    assert "is at version 1" in stale.stderr
    done = omnistate("set", "ana", "Cart", '{"note": "x"}', "--expect", version, *where, directory=app)
    assert (done.returncode, done.stdout.strip()) == (0, version[:-1] + "2")
    missed = omnistate("watch", "ana", "Cart", "--after", version, "--count", "1", *where, directory=app)
    assert missed.stdout.startswith(version[:-1] + "2  ")
    watched = omnistate("watch", "ana", "Cart", "--count", "1", "--json", *where, directory=app)
    assert json.loads(watched.stdout)["value"] == {"items": {}, "note": "x", "visits": 0}


def test_an_import_goes_by_the_channels_of_the_app(app: Path, data_dir: Path) -> None:
    (app / "phones.py").write_text(
        "import omnistate\nfrom shop import Cart\n"
        "app = omnistate.App(Cart, channels={'sms': omnistate.ChannelPolicy(region='GB')})\n"
    )
    line = {"customer": "ana", "identities": [{"channel": "sms", "address": "07700 900123", "confidence": "verified"}]}
    (app / "people.ndjson").write_text(json.dumps(line) + "\n")
    where = ["import", "people.ndjson", "--data-dir", str(data_dir), "--app"]
    refused = omnistate(*where, "store:app", directory=app)
    assert refused.returncode == 1
    assert "without a country code" in refused.stdout + refused.stderr
    assert omnistate(*where, "phones:app", directory=app).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nonsense"], 2, "Unknown command"),
        (["get", "ana"], 2, "--help"),
        (["get", "ana", "Cart", "--app", "nowhere:app"], 2, "run this where nowhere.py is"),
        (["get", "ana", "Cart", "--app", "store:nothing"], 2, "did you mean store:app?"),
        (["get", "ana", "Cart", "--app", "broken:app"], 2, "nothing_of_that_name"),
        (["get", "ana", "Cart", "--app", "failing:app"], 2, "ZeroDivisionError"),
        (["get", "ana", "Cart", "--app", "wrong:app"], 1, "ttl must be a timedelta"),
        (["get", "ana", "Car", "--app", "store:app"], 2, "it has Cart"),
        (["get", "ana", "Cart", "--app", "store:app", "--url", "redis://127.0.0.1:1"], 1, "connection refused"),
        (["get", "ana", "Cart", "--app", "store:app", "--url", "http://x"], 1, "unknown scheme"),
        (["get", "x" * 300, "Cart", "--app", "store:app"], 1, "the limit is 256"),
        (["set", "ana", "Cart", '{"nte": 1}', "--app", "store:app"], 1, "did you mean 'note'?"),
        (["set", "ana", "Cart", "{", "--app", "store:app"], 1, "truncated"),
        (["watch", "ana", "Cart", "--app", "store:app", "--after", "x"], 1, "not a position"),
        (["cluster", "up", "--shards", "2"], 2, "try: omnistate cluster up --shards 3"),
        (["cluster", "up", "--sentinel", "--shards", "3"], 2, "--shards says nothing"),
        (["cluster", "up", "--sentinel", "--replicas", "0"], 2, "needs a replica"),
        (["cluster", "up", "--port", "60000"], 2, "--port"),
        (["cluster", "up", "--binary", "/does/not/exist"], 1, "not a program"),
        (["cluster", "up", "--data-dir", "/"], 1, "not a local cluster's"),
        (["serve", "store:app"], 2, "--dev"),
        (["serve", "store:app", "--dev", "--host", "0.0.0.0"], 2, "this machine only"),
        (["serve", "store:app", "--token-secret-file", "/does/not/exist"], 2, "cannot be read"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    app: Path, data_dir: Path, arguments: list[str], code: int, words: str
) -> None:
    said = omnistate(*arguments, directory=app, OMNISTATE_DATA_DIR=str(data_dir))
    assert (said.returncode, said.stdout) == (code, "")
    assert said.stderr.startswith("omnistate: ")
    assert words in said.stderr
    assert len(said.stderr.strip().splitlines()) == 1


def test_a_port_in_use_is_told(app: Path, data_dir: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = omnistate("serve", "store:app", "--dev", "--port", port, directory=app, OMNISTATE_DATA_DIR=str(data_dir))
    assert said.returncode == 1
    assert "choose another port with --port" in said.stderr


def test_version() -> None:
    found = json.loads(omnistate("version", "--json").stdout)
    assert set(found) == {"omnistate", "library", "python", "server"}
    assert omnistate("version").stdout.startswith("omnistate")
    assert "demo" in omnistate("--help").stdout


@pytest.mark.parametrize(("ends", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_serve_in_development_mode_says_so_and_ends_in_order(
    app: Path, data_dir: Path, ends: signal.Signals, code: int
) -> None:
    port = free_port()
    command = [sys.executable, "-c", "import sys; from omnistate.cli import main; sys.exit(main())"]
    process = subprocess.Popen(
        [*command, "serve", "store:app", "--dev", "--port", str(port), "--data-dir", str(data_dir)],
        cwd=app,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        base = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 10
        while True:
            try:
                urllib.request.urlopen(base + "/readyz", timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        request = urllib.request.Request(
            base + "/v1/customers/me/actions/Cart.add",
            data=b'{"sku":"cup"}',
            headers={"Authorization": "Bearer dev:web:ana"},
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert json.load(answer)["version"] == 1
        # Another command joins the running embedded server.
        joined = omnistate("get", "ana", "Cart", "--app", "store:app", "--data-dir", str(data_dir), directory=app)
        assert json.loads(joined.stdout)["items"] == {"cup": 1}
    finally:
        process.send_signal(ends)
        _, said = process.communicate(timeout=10)
    assert "DEVELOPMENT MODE" in said
    assert "Traceback" not in said
    assert process.returncode == code


def test_the_demos_script_passes_and_leaves_nothing() -> None:
    said = omnistate("demo", "--script")
    assert said.returncode == 0, said.stderr
    assert "All 8 steps were seen by all" in said.stdout
    for channel in ("web", "mobile", "whatsapp", "agent desk"):
        assert channel in said.stdout


async def test_the_demos_script_fails_when_a_step_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from omnistate.cli import _demo
    from omnistate.demo import _script
    from omnistate.gateway._connection import Subscription

    monkeypatch.setattr(_script, "WITHIN", 0.3)
    deliver = Subscription.deliver

    def lose_some(self: Subscription, epoch: str, publication: object) -> None:
        if b"moka-pot" not in publication.event:  # type: ignore[attr-defined]
            deliver(self, epoch, publication)  # type: ignore[arg-type]

    monkeypatch.setattr(Subscription, "deliver", lose_some)
    assert await asyncio.wait_for(_demo._play(0, None), 20) == 1


@pytest.mark.parametrize(("ends", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
@pytest.mark.parametrize(("kind", "scheme"), [((), "redis+cluster"), (("--sentinel",), "redis+sentinel")])
def test_a_local_cluster_is_told_and_ends_in_order(
    kind: tuple[str, ...], scheme: str, ends: signal.Signals, code: int, data_dir: Path
) -> None:
    first = free_block()
    command = [sys.executable, "-m", "omnistate", "cluster", "up", "--port", str(first), "--data-dir", str(data_dir)]
    process = subprocess.Popen([*command, *kind], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith(f"{scheme}://127.0.0.1:")
        with Redis(port=first) as raw:
            assert raw.ping()
    finally:
        process.send_signal(ends)
        said = process.communicate(timeout=20)[1]
    assert process.returncode == code
    assert f"export OMNISTATE_URL={url}" in said
    assert f"{data_dir} (kept)" in said
    pids = [int(pid) for pid in re.findall(r"127.0.0.1:\d+ +(\d+) ", said)]
    assert len(pids) == (5 if kind else 6)
    assert not any(map(is_running, pids))


def test_a_local_cluster_that_is_interrupted_while_it_starts_leaves_nothing(data_dir: Path) -> None:
    command = [sys.executable, "-m", "omnistate", "cluster", "up", "--port", str(free_block())]
    process = subprocess.Popen(
        [*command, "--data-dir", str(data_dir / "new")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 10
    while not list(data_dir.glob("new/server-*/server.log")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 130
    assert list(data_dir.iterdir()) == []


def test_a_command_that_is_terminated_says_so(app: Path, data_dir: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "omnistate",
        "watch",
        "ana",
        "Cart",
        "--app",
        "store:app",
        "--data-dir",
        str(data_dir),
    ]
    process = subprocess.Popen(command, cwd=app, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "items" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=10)
    assert "Traceback" not in said
    assert process.returncode == 143
