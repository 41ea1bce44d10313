"""`omnistate customer` as a user types it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Run = Callable[..., subprocess.CompletedProcess[str]]
SHOP = Path(__file__).parent.parent


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "store.py").write_text("import omnistate\nfrom shop import Cart\napp = omnistate.App(Cart)\n")
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(private)
    (tmp_path / "key.pub").write_bytes(public)
    return tmp_path


@pytest.fixture
def run(home: Path, data_dir: Path) -> Run:
    def omnistate(*arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "import sys; from omnistate.cli import main; sys.exit(main())", *arguments]
        if arguments[:2] != ("customer", "verify"):
            command += ["--data-dir", str(data_dir)]
        path = os.pathsep.join([str(SHOP), os.environ.get("PYTHONPATH", "")])
        return subprocess.run(
            command, capture_output=True, text=True, cwd=home, input=typed, timeout=30, check=False,
            env=os.environ | {"PYTHONPATH": path},
        )  # fmt: skip

    done = omnistate("set", "ana", "Cart", '{"note": "canary"}', "--app", "store:app")
    assert done.returncode == 0, done.stderr
    return omnistate


WHO = ("--actor", "maria", "--reason", "request 4711")


def test_an_export_is_verified_and_one_that_was_changed_is_not(run: Run, home: Path) -> None:
    done = run("customer", "export", "ana", "ana.ndjson", "--key", "key.pem", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"] == {"customer": 1, "event": 1, "state": 1}
    assert sorted(one.name for one in home.glob("ana*")) == ["ana.ndjson", "ana.ndjson.manifest", "ana.ndjson.sig"]
    assert (home / "ana.ndjson").stat().st_mode & 0o777 == 0o600
    assert "canary" in (home / "ana.ndjson").read_text()
    done = run("customer", "verify", "ana.ndjson", "--key", "key.pub")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "customer: 1")
    with open(home / "ana.ndjson", "a") as file:
        file.write("{}\n")
    done = run("customer", "verify", "ana.ndjson", "--key", "key.pub")
    assert done.returncode == 1
    assert "was changed, or is not whole" in done.stderr
    done = run("customer", "export", "ana", "ana.ndjson")
    assert done.returncode == 2
    assert "is there already" in done.stderr


def test_an_erasure_is_planned_confirmed_made_and_listed(run: Run) -> None:
    planned = run("customer", "erase", "ana", *WHO, "--dry-run")
    assert planned.stdout.splitlines() == ["documents: 1 would go", "events: 1 would go"]
    refused = run("customer", "erase", "ana", *WHO, typed="anna\n")
    assert refused.returncode == 1
    assert "nothing was erased" in refused.stderr
    assert "canary" in run("get", "ana", "Cart", "--app", "store:app").stdout
    done = run("customer", "erase", "ana", *WHO, typed="ana\n")
    assert (done.returncode, done.stdout.splitlines()) == (0, ["documents: 1 gone", "events: 1 gone"])
    gone = run("get", "ana", "Cart", "--app", "store:app")
    assert gone.returncode == 1
    assert "customer ana was erased" in gone.stderr
    again = run("customer", "erase", "ana", *WHO, "--yes", "--json")
    assert json.loads(again.stdout)["repeated"]
    [line] = run("customer", "erasures").stdout.splitlines()
    said = json.loads(line)
    assert (said["actor"], said["reason"], said["counts"]) == ("maria", "request 4711", {"documents": 1, "events": 1})
    assert "customer" not in said
    assert re.fullmatch("[0-9a-f]{40}", said["digest"])


def test_a_list_of_erasures_is_read_again(run: Run, home: Path) -> None:
    run("customer", "erase", "ana", *WHO, "--yes")
    (home / "list").write_text(run("customer", "erasures").stdout)
    done = run("customer", "erase-again", "list", "--json")
    assert json.loads(done.stdout) == {"listed": 1, "erased": 0}
    (home / "list").write_text("no list")
    done = run("customer", "erase-again", "list")
    assert done.returncode == 2


def test_who_and_why_must_be_said(run: Run) -> None:
    assert run("customer", "erase", "ana", "--yes").returncode == 2
