"""Imports point left only, slices are used through their front door, and keys are spelled in one module."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "omnistate"
ORDER = [
    "errors",
    "store",
    "state",
    "collection",
    "session",
    "conversation",
    "customer",
    "app",
    "ops",
    "_engine",
    "_client",
    "sync",
    "web",
    "gateway",
    "demo",
    "cli",
]
KEYS = SOURCE / "store" / "_keys.py"
NAMES_MORE = {SOURCE / "collection" / "_model.py": ("sync",)}  # for type checkers only


def slice_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("omnistate"):
            found.append((node.lineno, node.module))
        elif isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names if alias.name.startswith("omnistate")]
    return found


def complaints(path: Path) -> list[str]:
    tree, here = ast.parse(path.read_text()), slice_of(path)
    found = []
    for line, module in imports(tree):
        parts = module.split(".")[1:]
        if not parts or here in ("__init__", "__main__"):
            continue
        there = parts[0]
        if path in NAMES_MORE and there in NAMES_MORE[path]:
            continue
        if here != "errors" and ORDER.index(there) > ORDER.index(here):
            found.append(f"{path}:{line}: {here} must not import {there}: imports point left, {' <- '.join(ORDER)}")
        # errors.py names a store type for type checkers only; sync is the other half of the slices that it is written from.
        if there != here and here not in ("errors", "sync") and any(part.startswith("_") for part in parts[1:]):
            found.append(f"{path}:{line}: {module} is private to its slice: import from omnistate.{there}")
    if path != KEYS:
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
                text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
                if text.startswith("omni:"):
                    found.append(f"{path}:{node.lineno}: keys are spelled in store/_keys.py alone")
    return found


def main() -> int:
    found = [
        text
        for path in sorted(SOURCE.rglob("*.py"))
        for text in complaints(path)
        if slice_of(path) in [*ORDER, "__init__"]
    ]
    print("\n".join(found) or "layers: imports point left")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
