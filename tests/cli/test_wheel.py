"""The wheel, installed where nothing else is: the core alone, and with its `server` extra. Needs no internet.

What the wheel's metadata asks for is linked in from the environment of the tests, and nothing more: a dependency that is
used but not declared is missing here.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent.parent
USE = """
import asyncio, sys
import omnistate

class Cart(omnistate.State):
    items: dict[str, int] = {}

async def main():
    async with omnistate.connect(sys.argv[1], tenant="wheel") as omni:
        print(await omni.customer("ana").state(Cart).increment("items", "cup"))

asyncio.run(main())
"""


def closure(name: str, extra: str = "") -> set[str]:
    """The packages that a distribution needs, itself left out."""
    found: set[str] = set()
    waiting = [(name, extra)]
    while waiting:
        name, extra = waiting.pop()
        for line in distribution(name).requires or ():
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                for more in ("", *wanted.extras):
                    if (key := wanted.name.lower()) not in found or more:
                        waiting.append((wanted.name, more))
                    found.add(key)
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return next(out.glob("*.whl"))


def install(wheel: Path, where: Path, extra: str = "") -> Path:
    """An environment with the wheel and what its metadata asks for; returns its bin directory."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", where], check=True, timeout=60)
    python = where / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", wheel], check=True, timeout=60)
    site = next((where / "lib").glob("python*/site-packages"))
    sys.path.insert(0, str(site))
    try:
        needed = closure("omnistate", extra) - {"omnistate"}
    finally:
        sys.path.remove(str(site))
    for name in needed:
        for file in distribution(name).files or ():
            first = Path(file.parts[0])
            if first.name in ("..", "__pycache__") or (site / first).exists():
                continue
            (site / first).symlink_to(Path(str(distribution(name).locate_file(first))))
    return where / "bin"


@pytest.fixture(scope="module")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(wheel, tmp_path_factory.mktemp("core") / "venv")


@pytest.fixture(scope="module")
def served(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(wheel, tmp_path_factory.mktemp("server") / "venv", "server")


def run(*words: object, cwd: Path, status: int = 0, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
    """Runs it at home in `cwd`."""
    environment = {"PATH": path, "HOME": str(cwd)}
    done = subprocess.run(
        [*map(str, words)], capture_output=True, text=True, timeout=60, check=False, cwd=cwd, env=environment
    )
    assert done.returncode == status, done.stderr
    return done


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"omnistate", wheel.name.rsplit("-", 3)[0] + ".dist-info"}
    for wanted in ("py.typed", "store/functions.lua", "demo/static/index.html", "demo/static/centrifuge.js"):
        assert f"omnistate/{wanted}" in names
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assert not [name for name in names if "__pycache__" in name or "test" in name]


def test_the_core_needs_msgspec_and_hiredis_only(core: Path, url: str, tmp_path: Path) -> None:
    installed = {path.name.split("-")[0] for path in core.parent.glob("lib/*/site-packages/*.dist-info")}
    assert installed == {"omnistate", "msgspec", "hiredis"}
    assert run(core / "python", "-c", USE, url, cwd=tmp_path).stdout.strip() == "1"


def test_the_core_says_how_to_get_the_rest(core: Path, tmp_path: Path) -> None:
    said = run(core / "omnistate", "version", status=2, cwd=tmp_path).stderr
    assert 'pip install "omnistate[server]"' in said
    assert len(said.strip().splitlines()) == 1
    said = run(core / "python", "-c", USE.replace("sys.argv[1], ", ""), status=1, cwd=tmp_path, path="").stderr
    assert 'pip install "omnistate[embedded]"' in said


def test_the_demo_runs_from_the_wheel(served: Path, tmp_path: Path) -> None:
    assert run(served / "omnistate", "version", cwd=tmp_path).stdout.startswith("omnistate ")
    said = run(served / "omnistate", "demo", "--script", cwd=tmp_path).stdout
    assert "steps were seen by all" in said
