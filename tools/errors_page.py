"""Writes docs/reference/errors.md from the classes; with --check it says whether the page is what it would write."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))

from omnistate.errors import OmnistateError  # noqa: E402
from omnistate.gateway._http import STATUSES  # noqa: E402
from omnistate.gateway._wire import WIRE_CODES  # noqa: E402

PAGE = ROOT / "docs" / "reference" / "errors.md"
HEAD = """# Reference: errors

<!-- written by tools/errors_page.py -->

Every error is an `OmnistateError`; each has a stable `code`, which is also in HTTP problem details. The message names the
next step. Over HTTP it has a status, over the socket a code; errors of your own code in an action are told as an internal
error, without their text.

| class | code | HTTP | socket | what it means and what to do |
|---|---|---|---|---|
"""


def tree(kind: type[OmnistateError], depth: int = 0) -> list[tuple[type[OmnistateError], int]]:
    below = sorted(kind.__subclasses__(), key=lambda one: one.__name__)
    below = [one for one in below if one.__module__ == "omnistate.errors"]
    return [(kind, depth), *(row for one in below for row in tree(one, depth + 1))]


def page() -> str:
    rows = []
    for kind, depth in tree(OmnistateError):
        status = next(status for known, status in STATUSES if issubclass(kind, known))
        code = next(code for known, code, _ in WIRE_CODES if issubclass(kind, known))
        says = " ".join((kind.__doc__ or "").split("\n\n")[0].split()).replace("|", "\\|")
        indent = "&nbsp;&nbsp;" * depth
        rows.append(f"| {indent}`{kind.__name__}` | `{kind.code}` | {status} | {code} | {says} |")
    return HEAD + "\n".join(rows) + "\n"


def main() -> int:
    if "--check" not in sys.argv:
        PAGE.write_text(page())
        return 0
    if PAGE.exists() and PAGE.read_text() == page():
        return 0
    print("docs/reference/errors.md is out of date: python tools/errors_page.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
