"""Writes omnistate.sync, and its tests, from the asynchronous sources; with --check it says whether they are up to date.

Works on tokens. What has a synchronous twin (a class or function of a source that is listed here, or a name of a module that
is written by hand) is imported from there; everything else is shared. The result is formatted by ruff.
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import token
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE, TESTS = ROOT / "src" / "omnistate", ROOT / "tests" / "integration"

SOURCES = {
    "state/_api.py": "_state.py",
    "collection/_api.py": "_collection.py",
    "session/_api.py": "_session.py",
    "conversation/_api.py": "_conversation.py",
    "customer/_query.py": "_query.py",
    "customer/_transaction.py": "_transaction.py",
    "customer/_export.py": "_customer_export.py",
    "customer/_api.py": "_customer.py",
    "ops/_bulk.py": "_bulk.py",
    "_client.py": "_client.py",
    "__init__.py": "__init__.py",
}
BY_HAND = {  # slice and name of what has a twin that is no translation: its module
    ("store", "Executor"): "_link",
    ("store", "Feed"): "_feed",
    ("store", "Inbox"): "_feed",
    ("store", "pause"): "_flow",
    ("store", "run"): "_flow",
    ("store", "together"): "_flow",
    ("state", "Combiner"): "_combiner",
    ("state", "NearCache"): "_near",
    ("collection", "Declares"): "_declares",
    ("_engine", "Engine"): "_engine",
    ("ops", "Sweeper"): "_engine",
    ("session", "Guard"): "_guard",
}

TRANSLATED_TESTS = (
    "test_state.py",
    "test_collections.py",
    "test_transaction.py",
    "test_conversation.py",
    "test_customer.py",
    "test_query.py",
    "test_history.py",
    "test_time.py",
    "test_sessions.py",
)
LEFT_OUT = (  # they change private parts of what the background thread uses
    "test_a_sweeper_that_dies_after_taking_is_replaced_after_its_lease",
    "test_merge_refuses_a_document_whose_class_is_not_here",
    "test_an_update_after_other_changes_of_this_process_still_starts_from_what_it_knows",
)
NAMES = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "AsyncIterator": "Iterator",
    "AsyncGenerator": "Generator",  # which has two parameters more
}
IN_TESTS = {
    "aclosing": "closing",
    "anext": "next",
    "aclose": "close",
    "AsyncIterator": "Iterator",
    "AsyncGenerator": "Generator",
}
DROPPED = ("async", "await")
PHRASES = {"async with ": "with ", "await ": ""}  # in docstrings and messages


class Complaint(Exception):
    """The tables above and the sources do not fit."""


class Twins:
    """Which names have a synchronous twin, and which parts of the tables were of use."""

    def __init__(self) -> None:
        self.modules = {(slice_, name): f"omnistate.sync.{module}" for (slice_, name), module in BY_HAND.items()}
        for source, target in SOURCES.items():
            if source == "__init__.py":
                continue
            slice_ = source.split("/")[0].removesuffix(".py")
            for name in defined(PACKAGE / source):
                self.modules[slice_, name] = f"omnistate.sync.{target.removesuffix('.py')}"
        self.used: set[object] = set()

    def module_of(self, module: str, name: str) -> str:
        """Where a name that is imported from a module comes from here."""
        if module == "omnistate":
            return "omnistate.sync"
        key = (module.partition(".")[2].partition(".")[0], name)
        self.used.add(key)
        return self.modules.get(key, module)

    def check(self) -> None:
        words = (*NAMES, *IN_TESTS, *PHRASES, *DROPPED, "Awaitable")
        unused = [one for one in (*BY_HAND, *words) if one not in self.used]
        if unused:
            raise Complaint(f"these match nothing: {unused}")


def defined(path: Path) -> set[str]:
    """The public classes and functions of a module, which a twin has too."""
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    found = (node for node in ast.parse(path.read_text()).body if isinstance(node, kinds))
    return {node.name for node in found if not node.name.startswith("_")}


def translate(text: str, twins: Twins, *, names: dict[str, str]) -> str:
    """The synchronous text of an asynchronous module."""
    tokens = [one for one in tokenize.generate_tokens(io.StringIO(text).readline) if one.type != token.NL]
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def at(place: tuple[int, int]) -> int:
        return starts[place[0] - 1] + place[1]

    out, done = [], 0
    for begin, end, said in edits(tokens, twins, names):
        out += [text[done : at(begin)], said]
        done = at(end)
    return "".join([*out, text[done:]])


Edit = tuple[tuple[int, int], tuple[int, int], str]


def edits(tokens: list[tokenize.TokenInfo], twins: Twins, names: dict[str, str]) -> Iterator[Edit]:
    """What is replaced, in order."""
    brackets: dict[int, str] = {}  # what becomes of a bracket, by its index
    index = 0
    while index < len(tokens):
        one, following = tokens[index], tokens[min(index + 1, len(tokens) - 1)]
        if index in brackets:
            yield one.start, one.end, brackets[index]
        elif one.type == token.NAME and one.string in DROPPED:
            twins.used.add(one.string)
            yield one.start, following.start, ""
        elif one.string in ("from", "import") and is_statement(tokens, index):
            end = next(at for at in range(index, len(tokens)) if tokens[at].type == token.NEWLINE)
            yield one.start, tokens[end].start, imports(tokens[index:end], twins, names)
            index = end
        elif one.type == token.NAME and tokens[index - 1].string != "=":
            if one.string in ("Awaitable", "AsyncGenerator") and following.string == "[":
                end = closing(tokens, index + 1)
                brackets |= {index + 1: "", end: ""} if one.string == "Awaitable" else {end: ", None]"}
            yield one.start, one.end, renamed(one.string, twins, names)
        elif tokenize.tok_name[one.type] in ("STRING", "FSTRING_MIDDLE"):
            said = reworded(one.string, twins)
            if said != one.string:
                yield one.start, one.end, said
        index += 1


def renamed(name: str, twins: Twins, names: dict[str, str]) -> str:
    twins.used.add(name)
    return names.get(name, "" if name == "Awaitable" else name)


def reworded(said: str, twins: Twins) -> str:
    """A docstring or a message."""
    for phrase, instead in PHRASES.items():
        if phrase in said:
            twins.used.add(phrase)
            said = said.replace(phrase, instead)
    return said


def is_statement(tokens: list[tokenize.TokenInfo], index: int) -> bool:
    return index == 0 or tokens[index - 1].type in (token.NEWLINE, token.INDENT, token.DEDENT)


def closing(tokens: list[tokenize.TokenInfo], opening: int) -> int:
    """The index of the bracket that closes this one."""
    depth = 0
    for index in range(opening, len(tokens)):
        depth += {"[": 1, "]": -1}.get(tokens[index].string, 0)
        if depth == 0:
            return index
    raise Complaint("a bracket is not closed")


def imports(statement: list[tokenize.TokenInfo], twins: Twins, names: dict[str, str]) -> str:
    """An import, each name from where it is here. Comments in it are lost."""
    words = [one.string for one in statement if one.type in (token.NAME, token.OP)]
    if words == ["import", "omnistate"]:
        return "import omnistate.sync as omnistate"
    if words[0] == "import":
        return " ".join(words).replace(" . ", ".")
    here = words.index("import")
    module = "".join(words[1:here])
    wanted: dict[str, list[str]] = {}
    for said in " ".join(words[here + 1 :]).strip("() ").split(","):
        name, _, alias = said.strip().partition(" ")
        if not name or name == "Awaitable":
            continue
        is_ours = module.split(".")[0] == "omnistate"
        place = twins.module_of(module, name) if is_ours else module
        wanted.setdefault(place, []).append(f"{name if is_ours else renamed(name, twins, names)} {alias}")
    return "\n".join(f"from {place} import {', '.join(some)}" for place, some in wanted.items()) or "pass"


def in_order(text: str) -> str:
    """The tests of a module that make one call after the other.

    Left out is what makes tasks, awaits what it made before, or puts something else in the place of our own coroutines.
    """
    tree = ast.parse(text)
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    functions = {node.name: node for node in tree.body if isinstance(node, kinds)}
    uses = {
        name: {
            one.id if isinstance(one, ast.Name) else one.arg
            for one in ast.walk(node)
            if isinstance(one, ast.Name | ast.arg)
        }
        for name, node in functions.items()
    }
    dropped = {"asyncio", "monkeypatch", *LEFT_OUT}
    dropped |= {name for name, node in functions.items() if any(map(awaits_a_name, ast.walk(node)))}
    while more := {name for name, used in uses.items() if used & dropped} - dropped:
        dropped |= more
    lines = text.splitlines(keepends=True)
    for name in dropped & set(functions):
        node = functions[name]
        first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
        assert node.end_lineno is not None
        for number in range(first - 1, node.end_lineno):
            lines[number] = ""
    return "".join(lines)


def awaits_a_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Await) and isinstance(node.value, ast.Name)


def head(text: str, source: Path) -> str:
    """The text with a line that says where it is from, below its docstring."""
    docstring = ast.parse(text).body[0]
    lines = text.splitlines(keepends=True)
    assert docstring.end_lineno is not None
    lines.insert(
        docstring.end_lineno, f"\n# Written by tools/unasync.py from {source.relative_to(ROOT)}: change that one.\n"
    )
    return "".join(lines)


def formatted(text: str, path: Path) -> str:
    mend = ["check", "--fix", "--quiet", "--exit-zero", "--select", "I,F401,F811,PIE790,RET505"]
    for command in (mend, ["format", "--quiet"]):
        ruff = [str(Path(sys.executable).parent / "ruff"), *command, "--stdin-filename", str(path), "-"]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return text


def everything() -> dict[Path, str]:
    """What each file that is written should hold."""
    twins, found = Twins(), {}
    for source, target in SOURCES.items():
        path = PACKAGE / "sync" / target
        text = translate((PACKAGE / source).read_text(), twins, names=NAMES)
        found[path] = formatted(head(text, PACKAGE / source), path)
    for source in TRANSLATED_TESTS:
        path = TESTS / "sync" / source.replace("test_", "test_sync_")
        text = translate(in_order((TESTS / source).read_text()), twins, names=IN_TESTS)
        found[path] = formatted(head(text, TESTS / source), path)
    twins.check()
    return found


def main() -> int:
    wrong = []
    for path, text in everything().items():
        if path.exists() and path.read_text() == text:
            continue
        wrong.append(str(path.relative_to(ROOT)))
        if "--check" not in sys.argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if "--check" in sys.argv and wrong:
        print(f"out of date: {', '.join(wrong)}: python tools/unasync.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
