"""Lock files hold no addresses, CI runs what the README says, Lua functions are declared as they are called, and no two test
files have one name."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def addresses() -> list[str]:
    locks = [*ROOT.glob("requirements/*.txt"), *ROOT.glob("tests/**/package-lock.json")]
    return [
        f"{path.relative_to(ROOT)}:{number}: a lock file must hold no address"
        for path in locks
        if "node_modules" not in path.parts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"resolved|(index-url|find-links|file:)|^[^#]*@ ", line)
    ]


def commands() -> list[str]:
    readme, run = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    return (
        []
        if "make test" in readme and re.search(r"^make test$", run, re.MULTILINE)
        else ["README and .ci/run: make test"]
    )


def functions() -> list[str]:
    source = ROOT / "src" / "omnistate"
    defined = set(re.findall(r"^define\('(\w+)'", "".join(p.read_text() for p in source.rglob("*.lua")), re.MULTILINE))
    called = set(
        re.findall(r'(?:Command|\.function)\(\s*"(\w+)"', "".join(p.read_text() for p in source.rglob("*.py")))
    )
    return [f"server-side function {name}: defined or called, not both" for name in sorted(defined ^ called)]


def names() -> list[str]:
    """pytest takes two test files of one name for the same module."""
    files = [path.name for path in ROOT.glob("tests/**/test_*.py") if "node_modules" not in path.parts]
    return [
        f"two test files are called {name}: rename one" for name in sorted({n for n in files if files.count(n) > 1})
    ]


def main() -> int:
    found = addresses() + commands() + functions() + names()
    print("\n".join(found) or "tree: in order")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
