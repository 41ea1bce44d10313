"""Commands on their way to the wire: short ways give what the long ones give."""

from __future__ import annotations

from datetime import timedelta

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnistate.state import Patch, schema_of
from omnistate.state._api import Origin, target_of
from omnistate.state._commands import ANY, _one_change, _write_arguments, read, write
from omnistate.store import Command, Keyspace, Position, library, parse_url
from omnistate.store._link import Link
from shop import Cart

TARGET = target_of(Keyspace("shop").customer("ana"), schema_of(Cart), Origin("web", "ana"))
NAMES = st.sampled_from([b"visits", b"items:cup", b"items:a b:\xc3\xa4", b'items:"'])


@given(st.builds(Patch, st.dictionaries(NAMES, st.sampled_from([b"1", b'"x"']), max_size=2), drops=st.lists(NAMES, max_size=1),
                 steps=st.lists(st.tuples(NAMES, st.integers(-9, 9)), max_size=2, unique_by=lambda step: step[0]),
                 replace=st.booleans(), ttl_ms=st.none() | st.just(-1)), st.sampled_from([ANY, Position("5f3a", 7)]))  # fmt: skip
def test_the_short_way_for_one_change_says_what_the_long_one_says(patch: Patch, expect: Position) -> None:
    brief = _one_change(TARGET, patch, expect)
    is_one = len(patch.sets) + len(patch.steps) == 1 and not (patch.drops or patch.replace or patch.ttl_ms)
    assert (brief is not None) == is_one
    assert brief is None or brief == _write_arguments(TARGET, patch, expect)


@pytest.mark.parametrize("command", [
    write(TARGET, Patch({}, steps=[(b"visits", -3)]), ids=["one"]),
    write(TARGET, Patch({b"items:cup": b"1", b"visits": b"2"}, [b"note"], until=[(b"visits", 50)]), ids=["one", "two"], turn="me"),
    read(TARGET),
    Command("anything", (b"key", b""), (1, -20, "\xe4", b"\r\n", ""), lambda reply: reply),
])  # fmt: skip
async def test_a_command_is_packed_word_by_word(command: Command[object]) -> None:
    link = Link(parse_url("redis://localhost"), library(), timeout=timedelta(seconds=1).total_seconds())
    function = library().function(command.function)
    words = (b"FCALL", function, len(command.keys), *command.keys, *command.arguments)
    for _ in range(2):
        assert link.packed(command) == hiredis.pack_command(words)
