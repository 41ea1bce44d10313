"""Key names: one id, one key, one slot, whatever the id holds."""

from __future__ import annotations

from binascii import crc_hqx
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import omnistate
from omnistate.store import PARTITIONS, Keyspace, decode_id, encode_id

IDS = st.text(min_size=1, max_size=60).filter(
    lambda text: len(text.encode(errors="surrogatepass")) <= 256 and not any("\ud800" <= c <= "\udfff" for c in text)
)


@given(IDS)
@example("{}")
@example("*")
@example("a\r\nb\0c")
@example("a}b{c")
@example("%7B")
@example("..~")
def test_an_id_comes_back_and_holds_nothing_that_means_something(text: str) -> None:
    encoded = encode_id(text)
    assert decode_id(encoded) == text
    assert set(encoded) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-%")


@given(IDS, IDS)
def test_two_ids_never_make_one_key(one: str, other: str) -> None:
    space = Keyspace("t")
    assert (space.customer(one).meta == space.customer(other).meta) == (one == other)


@given(IDS)
def test_all_keys_of_a_customer_have_one_hash_tag(text: str) -> None:
    keys = Keyspace("t").customer(text)
    common = keys.common[keys.common.index(b"{") : -1]
    for key in (*keys.written, keys.key("doc", "Cart"), keys.topic, keys.index("Cart.total")):
        assert common in key
        assert key.count(b"{") == key.count(b"}") == 1


def test_partitions_have_equal_shares_of_a_clusters_slots() -> None:
    space = Keyspace("t")
    tags = {space.partition(index).split(b"{")[1].split(b"}")[0] for index in range(PARTITIONS)}
    assert {crc_hqx(tag, 0) % 16384 // (16384 // PARTITIONS) for tag in tags} == set(range(PARTITIONS))
    met = Counter(space.customer(f"cus_{number}").common for number in range(20_000))
    assert len(met) == PARTITIONS
    assert max(met.values()) < 2 * 20_000 / PARTITIONS


def test_identities_are_told_apart_by_length_not_by_luck() -> None:
    space = Keyspace("t")
    assert space.identity("ab", "c") != space.identity("a", "bc")
    assert space.identity("web", "x")[0] != Keyspace("t", identity_secret=b"k").identity("web", "x")[0]
    assert b"+4477" not in space.identity("whatsapp", "+447700900123")[0]


@pytest.mark.parametrize("bad", ["", "x" * 257, "é" * 129, "\ud800", "a\udfffb", None, 7, b"ana"])
def test_what_cannot_be_an_id_is_refused(bad: object) -> None:
    with pytest.raises(omnistate.InvalidId):
        encode_id(bad)  # type: ignore[arg-type]
