"""Which addresses are one, which are none, and what is said of them where a library is missing."""

from __future__ import annotations

import sys
from typing import Any

import pytest

import omnistate
from omnistate import ChannelPolicy
from omnistate.customer import Policies
from omnistate.customer._normal import normal
from omnistate.store import Keyspace

GB = Policies({name: ChannelPolicy(region="GB") for name in ("sms", "whatsapp")})


@pytest.fixture
def without_libraries(monkeypatch: pytest.MonkeyPatch) -> Any:
    normal.cache_clear()
    for name in ("phonenumbers", "email_validator"):
        monkeypatch.setitem(sys.modules, name, None)
    yield
    normal.cache_clear()


@pytest.mark.parametrize("channel", ["sms", "whatsapp"])
@pytest.mark.parametrize(
    "spelled", ["+447700900123", " +44 7700 900123 ", "+44 (0)7700 900-123", "07700 900123", "+4407700900123", "00447700900123",
                "447700900123", "+٤٤٧٧٠٠٩٠٠١٢٣", "+44 7700 900123", "tel:+44-7700-900123", "whatsapp:+447700900123"],
)  # fmt: skip
def test_a_telephone_number_is_one_however_it_is_written(channel: str, spelled: str) -> None:
    assert GB.normal(channel, spelled) == "+447700900123"


def test_whatsapp_gives_numbers_as_digits_and_has_names_too() -> None:
    plain = Policies()
    assert plain.normal("whatsapp", "447700900123") == "+447700900123"
    for name in ("ana", "US.13491208655302741918", "ana.42", "00000000-1111-2222-3333-444444444444"):
        assert plain.normal("whatsapp", name) == name
    assert plain.normal("sms", "+1 800 FLOWERS") == "+18003569377"


@pytest.mark.parametrize(
    ("spelled", "words"),
    [("07911 123456", "ChannelPolicy"), ("call me", "ChannelPolicy|no telephone number"), ("+44", "no telephone number|length"),
     ("+44 20 7946 0000 ext 5", "extension"), ("+447911123456447911123456", "length|no telephone number"), ("+999 123", "write it as"),
     ("   ", "leave it out")],
)  # fmt: skip
def test_what_is_no_telephone_number_is_refused_with_what_to_do(spelled: str, words: str) -> None:
    with pytest.raises(omnistate.InvalidInput, match=words) as refused:
        Policies().normal("sms", spelled)
    assert not any(part in str(refused.value) for part in ("123456", "7946"))


@pytest.mark.parametrize(
    ("spelled", "same"),
    [("Ana.Maria+x@Example.COM", "ana.maria+x@example.com"), (" ana@münchen.de ", "ana@xn--mnchen-3ya.de"),
     ("ana@MÜNCHEN.de", "ana@xn--mnchen-3ya.de"), ("Ana@xn--mnchen-3ya.de", "ana@xn--mnchen-3ya.de"),
     ("jose\N{COMBINING ACUTE ACCENT}@x.com", "josé@x.com")],
)  # fmt: skip
def test_a_mailbox_is_one_however_it_is_written(spelled: str, same: str) -> None:
    assert Policies().normal("email", spelled) == same


def test_mailboxes_that_differ_by_more_than_ascii_case_stay_apart() -> None:
    spelled = [
        "strasse@x.com",
        "straße@x.com",
        "m\N{LATIN SMALL LETTER DOTLESS I}ke@x.com",
        "mike@x.com",
        "İlker@x.com",
        "ilker@x.com",
    ]
    assert len({Policies().normal("email", one) for one in spelled}) == len(spelled)


@pytest.mark.parametrize(
    "spelled", ["ana", "ana@", "@x.com", "a b@x.com", "Ana <ana@x.com>", "ana@localhost", "ana@shop.test", "ana@x..com",
                "mi\N{KELVIN SIGN}e@x.com"],
)  # fmt: skip
def test_what_is_no_mailbox_is_refused_without_saying_it(spelled: str) -> None:
    with pytest.raises(omnistate.InvalidInput, match="e-mail") as refused:
        Policies().normal("email", spelled)
    assert spelled not in str(refused.value)


def test_other_addresses_are_as_they_are_but_for_spaces_and_the_way_accents_are_written() -> None:
    plain = Policies()
    assert plain.normal("crm", " Rene\N{COMBINING ACUTE ACCENT} ") == "René"
    assert plain.normal("crm", "Ana") != plain.normal("crm", "ana")
    assert Keyspace("t", spelling=plain).identity("crm", "x ") == Keyspace("t").identity("crm", "x")


def test_what_is_spelled_right_already_needs_no_library(without_libraries: None) -> None:
    plain = Policies()
    assert plain.normal("sms", "+447700900123") == plain.normal("whatsapp", "447700900123") == "+447700900123"
    assert plain.normal("email", "Ana.Maria+x@Example.COM") == "ana.maria+x@example.com"
    for channel, address in (("sms", "+44 7700 900123"), ("email", "ana@münchen.de"), ("email", "ana@shop.test")):
        with pytest.raises(omnistate.MissingExtra, match=r'pip install "omnistate\[identities\]"'):
            plain.normal(channel, address)


@pytest.mark.parametrize(
    ("channel", "address"),
    [("crm", "null"), ("crm", " NULL "), ("crm", "0000"), ("crm", "00000000-0000-0000-0000-000000000000"), ("crm", "undefined"),
     ("crm", "[object Object]"), ("web", "Anonymous"), ("web", "-1"), ("sms", "+10000000000"), ("sms", "+1 123 456 7890"),
     ("whatsapp", "unknown"), ("email", "noreply@x.com"), ("email", "Test@Example.com")],
)  # fmt: skip
def test_what_stands_for_nobody_is_blocked(channel: str, address: str) -> None:
    with pytest.raises(omnistate.IdentityBlocked, match="nobody in particular") as refused:
        Policies().check(channel, address)
    assert refused.value.channel == channel


@pytest.mark.parametrize(
    ("channel", "address"),
    [("crm", "10"), ("crm", "nullarbor"), ("sms", "+18000000123"), ("email", "nil@x.com"), ("email", "email@ana.com"),
     ("email", "ana@example.com"), ("web", "a0")],
)  # fmt: skip
def test_what_only_looks_a_little_like_it_is_not(channel: str, address: str) -> None:
    Policies().check(channel, address)


def test_blocked_values_are_a_setting() -> None:
    own = Policies({"email": ChannelPolicy(blocked={"@Example.com", "info@"}), "crm": ChannelPolicy(blocked=())})
    for address in ("ana@example.com", "info@x.com"):
        with pytest.raises(omnistate.IdentityBlocked):
            own.check("email", address)
    own.check("email", "noreply@x.com")
    own.check("crm", "null")


@pytest.mark.parametrize(
    ("policy", "words"),
    [(ChannelPolicy(limit=0), "limit"), (ChannelPolicy(limit=True), "limit"), (ChannelPolicy(region="England"), "region"),
     (ChannelPolicy(address="fax"), "address"), (ChannelPolicy(take="mine"), "take"), (ChannelPolicy(blocked="null"), "blocked"),
     (ChannelPolicy(ttl=7), "ttl"), ("phone", "ChannelPolicy")],  # type: ignore[arg-type]
)  # fmt: skip
def test_a_policy_that_cannot_be_is_refused_at_once(policy: Any, words: str) -> None:
    with pytest.raises(omnistate.InvalidInput, match=words):
        omnistate.connect(channels={"fax": policy})
