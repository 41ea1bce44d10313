"""Frames of the client protocol: any bytes are answered or refused, never a crash."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnistate.errors import Denied, InvalidInput
from omnistate.gateway._auth import DevTokens, TokenExpired, Tokens
from omnistate.gateway._wire import BadFrame, Disconnect, decode_frame, publication_push, reply, text_frame


@given(st.binary(max_size=300))
def test_any_bytes_are_commands_or_a_bad_frame(frame: bytes) -> None:
    try:
        assert decode_frame(frame)
    except BadFrame:
        pass


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["id", "connect", "subscribe", "rpc", "data", "channel"]), inner), max_leaves=20))  # fmt: skip
def test_any_json_is_commands_or_a_bad_frame(value: object) -> None:
    try:
        decode_frame(msgspec.json.encode(value))
    except BadFrame:
        pass


def test_one_frame_holds_many_commands() -> None:
    commands = decode_frame(b'{"id":1,"connect":{}}\n{"id":2,"rpc":{"method":"x","data":{"a":[1]}}}\n')
    assert [command.id for command in commands] == [1, 2]
    assert commands[1].rpc is not None
    assert bytes(commands[1].rpc.data) == b'{"a":[1]}'


@pytest.mark.parametrize("frame", [b"", b"\n", b"[]", b"1", b"{", b'{"id":"x"}', b'{"id":1,"connect":[]}', b"[" * 9999])
def test_frames_that_are_none(frame: bytes) -> None:
    with pytest.raises(BadFrame):
        decode_frame(frame)


def test_an_empty_result_is_said() -> None:
    assert reply(3, "unsubscribe", {}) == b'{"id":3,"unsubscribe":{}}'


def test_close_reasons_are_no_json() -> None:
    for name, value in vars(Disconnect).items():
        if name.isupper():
            with pytest.raises(msgspec.DecodeError):
                msgspec.json.decode(value[1])


@given(st.integers(0, 70_000))
def test_frames_have_the_length_that_they_say(size: int) -> None:
    framed = text_frame(b"x" * size)
    header = 2 if size < 126 else 4 if size < 65536 else 10
    assert len(framed) == size + header
    assert framed[0] == 0x81


def test_a_push_holds_the_event_as_it_was_written() -> None:
    pushed = msgspec.json.decode(publication_push('a"b', b'{"x":9007199254740993,"e":[]}', 7))
    assert pushed["push"]["channel"] == 'a"b'
    assert pushed["push"]["pub"] == {"data": {"x": 9007199254740993, "e": []}, "offset": 7}


SECRET = b"k" * 64


def test_a_good_token_names_its_peer() -> None:
    tokens = Tokens(SECRET)
    peer = tokens.verify(tokens.issue("ana", channel="mobile"))
    assert (peer.user, peer.customer, peer.channel, peer.role) == ("ana", "ana", "mobile", "customer")
    agent = tokens.verify(tokens.issue("maria", role="agent"))
    assert (agent.customer, agent.role) == (None, "agent")


def hostile() -> list[str]:
    import time

    import jwt

    later = int(time.time()) + 60
    good = {"sub": "ana", "exp": later}

    def sign(claims: dict[str, object], key: object = SECRET, algorithm: str = "HS256", **headers: object) -> str:
        return jwt.encode(claims, key, algorithm=algorithm, headers=headers or None)  # type: ignore[arg-type]

    ours = sign(good)
    head, body, mark = ours.split(".")
    return [
        "", " ", ".", "..", "...", "a.b.c", "null", "{}", "x" * 9000, ours + "x", ours[:-4], f"{head}.{body}.", f"{head}..{mark}",
        f"{head}.{body}", jwt.encode(good, None, algorithm="none"), sign(good, b"other" * 16), sign(good, SECRET, "HS512"),
        sign(good, SECRET, "HS384"), sign({"sub": "ana"}), sign({"exp": later}), sign({"sub": "", "exp": later}),
        sign({"sub": "x" * 300, "exp": later}), sign(good | {"role": "admin"}), sign(good | {"role": None}),
        sign(good | {"customer": "ben"}), sign(good | {"channel": ""}), sign(good | {"channel": 7}), sign(good | {"nbf": later + 99}),
        sign(good | {"exp": "soon"}), sign(good | {"exp": None}), sign(good | {"exp": True}), sign(good, crit=["x"]),
        "dev:web:ana", "dev:web:ana:agent", "Bearer " + ours, ours.replace(".", ".\n"), ours.upper(), "\x00" + ours, "é" + ours,
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(len(hostile())))
def test_hostile_tokens_are_refused(number: int) -> None:
    with pytest.raises(Denied):
        Tokens(SECRET).verify(hostile()[number])


def test_expired_is_told_apart_from_wrong() -> None:
    tokens = Tokens(SECRET)
    with pytest.raises(TokenExpired):
        tokens.verify(tokens.issue("ana", lifetime=-60))


def test_audience_and_issuer_are_checked_when_set() -> None:
    tokens = Tokens(SECRET, audience="shop", issuer="backend")
    assert tokens.verify(tokens.issue("ana")).user == "ana"
    for other in (Tokens(SECRET), Tokens(SECRET, audience="x", issuer="backend"), Tokens(SECRET, audience="shop")):
        with pytest.raises(Denied):
            tokens.verify(other.issue("ana"))


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at least 32"):
        Tokens(b"short")


def test_development_tokens_are_believed_in_development_only() -> None:
    dev = DevTokens(SECRET)
    assert dev.verify("dev:web:ana").customer == "ana"
    assert dev.verify("dev:agent desk:maria:agent").role == "agent"
    assert dev.verify(Tokens(SECRET).issue("ben")).user == "ben"
    for bad in ("dev:", "dev:web", "dev:web:", "dev::x", "dev:web:x:admin", "dev:web:x:agent:y"):
        with pytest.raises(Denied):
            dev.verify(bad)
