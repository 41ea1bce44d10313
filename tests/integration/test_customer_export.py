"""The export of one customer: all that is known of them, provably whole."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from redis import Redis

import omnistate
from erasable import CHANNELS, KEYRING, Canaries, Planted, plant, plant_merged
from machine import missing
from messages import NewerLine
from omnistate import Client, CustomerErased, InvalidInput, SchemaMismatch, verify_export
from shop import Cart

Connect = Callable[..., Client]


def pair() -> tuple[bytes, bytes]:
    """A private and a public key, as openssl writes them."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, public


@pytest.fixture
async def omni(connect: Connect) -> AsyncIterator[Client]:
    async with connect(keyring=KEYRING, channels=CHANNELS) as client:
        yield client


async def read(customer: omnistate.Customer) -> list[Any]:
    return [msgspec.json.decode(line) async for line in customer.export().lines()]


async def test_it_has_every_word_of_a_customer(omni: Client) -> None:
    """But for operation ids, and what a history that has no such field keeps nothing of."""
    word = Canaries()
    ana = await plant(omni, word)
    await plant_merged(omni, word, ana)
    text = b"".join([line async for line in ana.export().lines()]).decode()
    missing = {place for place, one in word.words.items() if one not in text}
    assert missing == {"operation", "message-id"}
    assert "sealed away" in text
    assert "$unreadable" not in text


async def test_each_line_says_what_it_is(omni: Client) -> None:
    ana = await plant(omni, Canaries())
    lines = await read(ana)
    kinds = [line["kind"] for line in lines]
    assert kinds[0] == "customer"
    assert set(kinds) == {
        "customer", "identity", "event", "state", "collection", "change", "session", "conversation", "message",
    }  # fmt: skip
    assert all(line["customer"] == ana.id for line in lines)
    planted = next(
        one for one in lines if one["kind"] == "state" and one["name"] == "ErasePlanted" and "owner" not in one
    )
    assert planted["value"]["notes"]["more"] == "x"
    assert planted["entries_expire"]
    values = {one["name"]: one["value"] for one in lines if one["kind"] == "collection" and "owner" not in one}
    assert values["erase_counted"] == 3
    assert len(values["erase_queued"]) == 3


async def test_a_kind_of_key_that_is_not_known_yet_is_in_it_as_it_is_stored(omni: Client, raw: Redis) -> None:
    keys = omni.keyspace.customer("ana")
    await omni.customer("ana").state(Cart).patch(note="x")
    raw.hset(keys.key("new", "kind"), mapping={"some": "thing", "raw": b"\xff"})
    raw.set(keys.key("doc", "Cart", ".new"), "more")
    others = {line["key"]: line["value"] for line in await read(omni.customer("ana")) if line["kind"] == "other"}
    assert others["doc:Cart:.new"] == ["more"]
    assert sorted(others["new:kind"]) == sorted(["some", "thing", "raw", "/w=="])


async def test_tokens_of_sessions_are_never_in_it(omni: Client) -> None:
    ana = omni.customer("ana")
    session = await ana.start_session("web")
    text = b"".join([line async for line in ana.export().lines()]).decode()
    assert session.id in text
    assert session.token not in text
    assert session.token.partition(".")[2] not in text
    assert session.access.proof not in text


async def test_sessions_are_in_it_also_those_that_are_over(omni: Client, raw: Redis) -> None:
    ana = omni.customer("ana")
    session = await ana.start_session("web", device="Ana's phone", user_agent="A browser 1.0")
    [info] = await ana.sessions()
    [said] = [line for line in await read(ana) if line["kind"] == "session"]
    assert {said[what] for what in ("id", "channel", "device", "user_agent")} == {
        session.id, "web", "Ana's phone", "A browser 1.0",
    }  # fmt: skip
    assert datetime.fromisoformat(said["absolute_deadline"]) == info.absolute_deadline
    await ana.revoke_sessions()  # in one step: records are removed by the sweeper
    assert [line["id"] for line in await read(ana) if line["kind"] == "session"] == [session.id]
    raw.hset(omni.keyspace.customer("ana").key("sessions"), "damaged", "secret 1 2")
    export = ana.export()
    text = b"".join([line async for line in export.lines()])
    assert b"secret" not in text
    assert export.manifest is not None
    assert export.manifest.unreadable == 1


class Packed(omnistate.State, name="ExportPacked", codec="msgpack", compress_over=64, encrypted={"secret"}, history=5):
    words: list[str] = []
    numbers: dict[int, float] = {}
    secret: str = ""


omnistate.protobuf(NewerLine, name="ExportLine")
Card = omnistate.Map(str, str, name="export_card", encrypted=True)


async def test_values_of_every_codec_are_in_clear_also_without_their_classes(omni: Client) -> None:
    ana = omni.customer("ana")
    await ana.state(Packed).set(Packed(words=["long"] * 50, numbers={1: 0.5}, secret="one"))
    await ana.state(Packed).patch(secret="two")
    await ana.collection(Card).put("number", "4711")
    await ana.state(NewerLine).set(NewerLine(quantity=7))
    lines = await read(ana)
    packed = next(one for one in lines if one.get("name") == "ExportPacked")
    assert packed["value"] == {"words": ["long"] * 50, "numbers": {"1": 0.5}, "secret": "two"}
    [change] = [
        one for one in lines if one["kind"] == "change" and "secret" in one["before"] and one["what"] == "fields"
    ]
    assert change["before"] == {"secret": "one"}
    assert next(one for one in lines if one.get("name") == "export_card")["value"] == {"number": "4711"}
    [event] = [one["event"] for one in lines if one["kind"] == "event" and one["event"].get("set") == {"secret": "two"}]
    assert event["state"] == "ExportPacked"
    assert next(one for one in lines if one.get("name") == "ExportLine")["value"] == {"quantity": 7}


async def test_what_cannot_be_decrypted_says_so(omni: Client, connect: Connect) -> None:
    await omni.customer("ana").state(Packed).patch(secret="one", words=["plain"])
    await omni.customer("ana").collection(Card).put("number", "4711")
    other = omnistate.Keyring({"z": b"z" * 32}, current="z")
    for keyring, reason in (
        (None, "an encrypted value needs keys"),
        (other, "the key 'k', which is not in this keyring"),
    ):
        async with connect(keyring=keyring) as without:
            export = without.customer("ana").export()
            lines = [msgspec.json.decode(line) async for line in export.lines()]
            packed = next(one for one in lines if one.get("name") == "ExportPacked")["value"]
            assert packed["words"] == ["plain"]
            assert reason in packed["secret"]["$unreadable"]
            assert packed["secret"]["$stored"]
            assert export.manifest is not None
            assert export.manifest.unreadable >= 3


async def test_the_manifest_says_what_is_in_it(omni: Client) -> None:
    ana = await plant(omni, Canaries())
    export = ana.export()
    with pytest.raises(InvalidInput):
        _ = export.manifest_text
    lines = [line async for line in export.lines()]
    said = export.manifest
    assert said is not None
    assert said.lines == len(lines) == sum(said.counts.values())
    assert said.bytes == sum(map(len, lines))
    assert said.unchanged
    assert said.log_before == said.log_after == str(await ana.position())
    assert export.signature is None


async def test_the_manifest_says_that_something_was_written_meanwhile(omni: Client) -> None:
    ana = omni.customer("ana")
    await ana.state(Cart).patch(note="x")
    before, export = await ana.position(), ana.export()
    async for _ in export.lines():
        await ana.state(Cart).increment("visits")
    assert export.manifest is not None
    assert not export.manifest.unchanged
    assert export.manifest.log_before == str(before)
    assert export.manifest.log_after == str(await ana.position())


async def test_one_that_broke_off_is_begun_anew(omni: Client) -> None:
    ana = await plant(omni, Canaries())
    before = await ana.position()
    export = ana.export()
    async with contextlib.aclosing(export.lines()) as lines:
        await anext(lines)
    assert export.manifest is None
    assert [line async for line in export.lines()] == [line async for line in ana.export().lines()]
    assert await ana.position() == before


async def test_a_signature_proves_that_it_is_whole(omni: Client) -> None:
    private, public = pair()
    ana = await plant(omni, Canaries())
    export = ana.export(signing_key=private)
    text = b"".join([line async for line in export.lines()])
    manifest, signature = export.manifest_text, export.signature
    assert signature is not None
    assert verify_export(io.BytesIO(text), manifest, signature, public) == export.manifest
    for wrong in (text[:-1], text.replace(b"canary", b"Canary", 1), text.split(b"\n", 1)[1], b""):
        with pytest.raises(SchemaMismatch):
            verify_export(io.BytesIO(wrong), manifest, signature, public)
    with pytest.raises(SchemaMismatch):
        verify_export(io.BytesIO(text), manifest.replace(b'"unreadable": 0', b'"unreadable": 1'), signature, public)
    with pytest.raises(SchemaMismatch):
        verify_export(io.BytesIO(text), manifest, signature, pair()[1])
    for key in (b"", b"x", private):
        with pytest.raises(InvalidInput):
            verify_export(io.BytesIO(text), manifest, signature, key)
    for key in (b"", public):
        with pytest.raises(InvalidInput):
            ana.export(signing_key=key)


async def test_openssl_and_sha256sum_are_enough_to_check_it(omni: Client, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        missing("openssl", "apt-get install openssl")
    private, public = pair()
    await omni.customer("ana").state(Cart).patch(note="x")
    export = omni.customer("ana").export(signing_key=private)
    (tmp_path / "ana").write_bytes(b"".join([line async for line in export.lines()]))
    (tmp_path / "ana.manifest").write_bytes(export.manifest_text)
    (tmp_path / "ana.sig").write_bytes(export.signature or b"")
    (tmp_path / "key.pub").write_bytes(public)
    check = "openssl pkeyutl -verify -pubin -inkey key.pub -rawin -in ana.manifest -sigfile ana.sig"
    assert subprocess.run(check.split(), cwd=tmp_path, check=True, capture_output=True).returncode == 0
    digest = subprocess.run(["sha256sum", "ana"], cwd=tmp_path, check=True, capture_output=True).stdout.split()[0]
    assert export.manifest is not None
    assert digest.decode() == export.manifest.sha256


async def test_nothing_is_exported_of_who_was_erased(omni: Client) -> None:
    await omni.customer("ana").state(Cart).patch(note="x")
    await omni.erase("ana", actor="a", reason="b")
    with pytest.raises(CustomerErased):
        await read(omni.customer("ana"))


async def test_what_has_expired_is_not_in_it_and_who_was_never_seen_has_nothing(omni: Client) -> None:
    assert [line["kind"] for line in await read(omni.customer("nobody"))] == ["customer"]
    await omni.customer("ana").state(Planted).patch(word="x")
    await omni.customer("ana").state(Planted).delete()
    kinds = {line["kind"] for line in await read(omni.customer("ana"))}
    assert kinds == {"customer", "event", "change"}
