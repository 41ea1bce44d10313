"""Many customers at once: listing, reading, updating, migrating, exporting, importing; going on after a crash."""

from __future__ import annotations

import asyncio
import io
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

import omnistate
from omnistate import Client, Keyring, migrate
from omnistate.ops import Bulk, export_all, import_all, migrate_all
from omnistate.store import Keyspace

KEYS = {"old": secrets.token_bytes(32), "new": secrets.token_bytes(32)}


class Account(omnistate.State, name="Account", encrypted={"secret"}, indexes={"points"}):
    items: dict[str, int] = {}
    note: str = ""
    points: int = 0
    secret: str = ""


class AccountV2(omnistate.State, name="Account", version=2, codec="msgpack", encrypted={"secret"}, indexes={"points"}):
    items: dict[str, int] = {}
    remark: str = ""
    points: int = 0
    secret: str = ""

    @migrate(1, 2)
    def rename(fields: dict[str, Any]) -> None:  # noqa: N805
        if fields.get("note") == "poison":
            raise ValueError("poison")
        fields["remark"] = fields.pop("note", "")


class Hold(omnistate.State, name="Hold", ttl=timedelta(days=1)):
    seats: dict[str, int] = {}


RECENT = omnistate.List(str, name="bulk_recent", limit=5000)
TAGS = omnistate.Set(str, name="bulk_tags")
LOCKS = omnistate.Map(str, int, name="bulk_locks")
BOARD = omnistate.SortedSet(str, name="bulk_board")
POINTS = omnistate.Counter(name="bulk_points")
SEEN = omnistate.UniqueCounter(str, name="bulk_seen")
JOBS = omnistate.WorkQueue(int, name="bulk_jobs")
COLLECTIONS = {one.name: one for one in (RECENT, TAGS, LOCKS, BOARD, POINTS, SEEN, JOBS)}
KINDS = {"Account": Account, "Hold": Hold}


@pytest.fixture
def connect_with_keys(connect: Any, tenant: str) -> Any:
    def make(name: str = "", current: str = "old") -> Client:
        return connect(tenant=tenant + name, keyring=Keyring(KEYS, current=current))

    return make


async def fill(omni: Client, count: int = 60) -> None:
    async def one(number: int) -> None:
        customer = omni.customer(f"customer {number}/é")
        await customer.link("web", f"visitor-{number}")
        await customer.state(Account).set(Account(items={"a:b": number}, note=f"n{number}", points=number, secret="s"))
        await customer.state(Hold).put("seats", "kept", 1)
        await customer.state(Hold).put("seats", "short", 1, ttl=timedelta(hours=1))

    await asyncio.gather(*map(one, range(count)))
    ana = omni.customer("customer 0/é")
    await ana.collection(RECENT).append(*[f"v{number}" for number in range(1000)])
    await ana.collection(RECENT).append(*[f"w{number}" for number in range(1000)])
    await ana.collection(TAGS).add("x", "é")
    await ana.collection(LOCKS).update({"lasting": 1})
    await ana.collection(LOCKS).put("short", 2, ttl=timedelta(hours=1))
    await ana.collection(BOARD).update({"x": 1.5, "y": -2})
    await ana.collection(POINTS).add(42)
    await ana.collection(SEEN).add("a", "b", "c")
    await ana.collection(JOBS).put(1, 2, 3)


async def test_customers_are_listed_once_each(omni: Client) -> None:
    names = {f"c{number}" for number in range(1500)}
    await asyncio.gather(*(omni.customer(name).state(Hold).put("seats", "x", 1) for name in names))
    found = [name async for name in omni.customers()]
    assert len(found) == len(set(found))
    assert set(found) == names


async def test_many_are_read_in_their_order_and_updated_with_errors_of_their_own(omni: Client) -> None:
    names = [f"c{number}" for number in range(150)]
    await asyncio.gather(*(omni.customer(name).state(Hold).put("seats", "x", 1) for name in names[:100]))
    read = [(name, snapshot) async for name, snapshot in omni.get_many(Hold, iter(names))]
    assert [(name, one.exists) for name, one in read if isinstance(one, omnistate.Snapshot)] == [
        (name, index < 100) for index, name in enumerate(names)
    ]
    await omni.customer("c5").merge(omni.customer("c7"))
    merged = [one async for _, one in omni.get_many(Hold, ["c6", "c7"])]
    assert isinstance(merged[1], omnistate.CustomerMerged)

    def double(value: Hold) -> None:
        value.seats["x"] *= 2

    results = {name: result async for name, result in omni.update_many(Hold, double)}
    assert len(results) == 99
    assert (await omni.customer("c1").state(Hold).get()).seats == {"x": 2}
    results = {
        name: result async for name, result in omni.update_many(Hold, lambda value: value.seats.update(y=1), names[:10])
    }
    assert isinstance(results.pop("c7"), omnistate.CustomerMerged)
    assert all(isinstance(result, omnistate.Written) for result in results.values())


async def test_what_was_exported_is_imported_as_it_was(connect_with_keys: Any, raw: Redis, tenant: str) -> None:
    file = io.BytesIO()
    file.fileno = lambda: descriptor  # type: ignore[method-assign]
    descriptor = os.open("/dev/null", os.O_RDWR)
    async with connect_with_keys() as omni:
        await fill(omni)
        os.close(descriptor)
        descriptor = os.memfd_create("export")
        with os.fdopen(descriptor, "r+b", closefd=False) as real:
            report = await export_all(Bulk(omni.services, omni.keyspace), real, KINDS, COLLECTIONS)
            assert (report.customers, report.failures) == (60, 0)
            assert report.changed == {"Account": 60, "Hold": 60} | dict.fromkeys(COLLECTIONS, 1)
            real.seek(0)
            lines = [json.loads(line) for line in real]
            assert len({line["customer"] for line in lines}) == 60
            real.seek(0)
            async with connect_with_keys("-other") as other:
                bulk = Bulk(other.services, other.keyspace)
                report = await import_all(bulk, real, KINDS, COLLECTIONS)
                assert (report.customers, report.failures, report.kept) == (60, 0, {})
                await same(omni, other)
                real.seek(0)
                again = await import_all(bulk, real, KINDS, COLLECTIONS)
                assert again.kept == {"Account": 60, "Hold": 60} | dict.fromkeys(COLLECTIONS, 1)
                assert again.failures == 0
                await other.customer("customer 1/é").state(Account).patch(note="changed since")
                await other.customer("customer 0/é").collection(TAGS).add("new")
                real.seek(0)
                await import_all(bulk, real, KINDS, COLLECTIONS)
                assert (await other.customer("customer 1/é").state(Account).get()).note == "changed since"
                real.seek(0)
                over = await import_all(bulk, real, KINDS, COLLECTIONS, overwrite=True)
                assert over.changed == {"Account": 60, "Hold": 60} | dict.fromkeys(COLLECTIONS, 1)
                await same(omni, other)
    os.close(descriptor)


class Killed(Exception):
    pass


async def test_an_import_that_goes_on_replaces_no_collection_twice(connect: Any, tmp_path: Path) -> None:
    values = [f"v{number}" for number in range(1200)]  # three calls
    line = {"customer": "ana", "collections": {"bulk_recent": {"kind": "list", "values": values}}}
    (tmp_path / "in.ndjson").write_text(json.dumps(line) + "\n")
    async with connect() as omni:
        recent, link = omni.customer("ana").collection(RECENT), omni.services.link
        execute = link.execute

        async def go(calls: int) -> None:
            """Imports, and is killed after so many calls of the collection; the last one is applied, its reply is lost."""
            left = calls

            async def until_killed(command: Any) -> Any:
                nonlocal left
                left -= command.function in ("change", "log_outcome")
                done = await execute(command)
                if left <= 0:
                    raise Killed
                return done

            link.execute = until_killed  # type: ignore[method-assign]
            with open(tmp_path / "in.ndjson", "rb") as file:
                bulk = Bulk(omni.services, omni.keyspace)
                await import_all(bulk, file, {}, COLLECTIONS, overwrite=True, journal=tmp_path / "journal")

        for calls in range(1, 6):
            for before in ([], ["old"]):
                await recent.clear()
                if before:
                    await recent.append(*before)
                with pytest.raises(Killed):
                    await go(calls)
                await go(1000)
                link.execute = execute  # type: ignore[method-assign]
                assert await recent.all() == values, (calls, before)


async def test_who_was_only_looked_at_before_the_first_write_is_listed(omni: Client) -> None:
    await omni.customer("read").state(Hold).read()
    await omni.customer("read").state(Account).patch(note="x")
    await (await omni.identify("web", "visitor")).state(Account).patch(note="x")
    identified = (await omni.identify("web", "visitor")).id
    await omni.customer("position").position()
    await omni.customer("position").collection(TAGS).add("x")
    assert {name async for name in omni.customers()} == {"read", identified, "position"}


async def same(one: Client, other: Client) -> None:
    for number in range(60):
        name = f"customer {number}/é"
        a, b = one.customer(name), other.customer(name)
        assert await b.state(Account).get() == await a.state(Account).get()
        assert await b.state(Hold).get() == await a.state(Hold).get()
        assert await b.identities() == await a.identities()
        assert (await other.identify("web", f"visitor-{number}")).id == name
    a, b = one.customer("customer 0/é"), other.customer("customer 0/é")
    for collection in (RECENT, TAGS, LOCKS, BOARD):
        assert await b.collection(collection).all() == await a.collection(collection).all()
    assert (await b.collection(POINTS).get(), await b.collection(SEEN).count()) == (42, 3)
    assert await b.collection(JOBS).size() == (3, 0)
    assert {found.customer_id async for found in other.query(Account).where("points", at_least=58)} == {
        "customer 58/é", "customer 59/é"
    }  # fmt: skip


async def test_deadlines_travel_with_an_export(connect_with_keys: Any, raw: Redis, tenant: str, tmp_path: Path) -> None:
    async with connect_with_keys() as omni, connect_with_keys("-other") as other:
        await fill(omni, 1)
        with open(tmp_path / "x", "w+b") as file:
            await export_all(Bulk(omni.services, omni.keyspace), file, KINDS, COLLECTIONS)
            file.seek(0)
            await import_all(Bulk(other.services, other.keyspace), file, KINDS, COLLECTIONS)

        def deadlines(name: str) -> list[int]:
            log = Keyspace(tenant + name).customer("customer 0/é")
            header = int(raw.hget(log.meta, "doc:Hold").split()[0])  # type: ignore[union-attr]
            field = int(raw.hget(log.key("doc", "Hold"), "!seats:short"))  # type: ignore[arg-type]
            entry = int(raw.zscore(log.key("doc", "bulk_locks", ".due"), "short"))  # type: ignore[arg-type]
            return [header, field, entry]

        for before, after in zip(deadlines(""), deadlines("-other"), strict=True):
            assert abs(before - after) < 2000


async def test_bad_lines_are_reported_and_the_others_imported(omni: Client, tmp_path: Path) -> None:
    lines = [
        b'{"customer":"good","states":{"Hold":{"value":{"seats":{"a":1}}}}}',
        b"not json",
        b'{"customer":""}',
        b'{"customer":"x","unknown":1}',
        b'{"customer":"typed","states":{"Hold":{"value":{"seats":{"a":"one"}}}}}',
        b'{"customer":"field","states":{"Hold":{"value":{"chairs":{}}}}}',
        b'{"customer":"class","states":{"Nobody":{"value":{}}}}',
        b'{"customer":"kind","collections":{"bulk_tags":{"kind":"list","values":[]}}}',
        b'{"customer":"value","collections":{"bulk_tags":{"kind":"set","values":[1]}}}',
        b'{"customer":"\xff"}',
        b'{"customer":"old","states":{"Hold":{"value":{"seats":{}},"expires_ms":1000}}}',
        b'{"customer":"also good","states":{"Hold":{"value":{"seats":{"b":2}}}}}',
    ]
    (tmp_path / "x").write_bytes(b"\n".join(lines) + b"\n")
    with open(tmp_path / "x", "rb") as file:
        report = await import_all(Bulk(omni.services, omni.keyspace), file, KINDS, COLLECTIONS)
    assert report.failures == 9
    assert report.changed == {"Hold": 2}
    assert (await omni.customer("good").state(Hold).get()).seats == {"a": 1}
    assert not (await omni.customer("old").state(Hold).read()).exists


async def exported(omni: Client, kinds: dict[str, Any] = KINDS) -> tuple[Any, list[Any], bytes]:
    """The report of an export, its lines, and its bytes."""
    with tempfile.TemporaryFile() as file:
        report = await export_all(Bulk(omni.services, omni.keyspace), file, kinds, COLLECTIONS)
        file.seek(0)
        text = file.read()
    return report, [json.loads(line) for line in text.splitlines()], text


async def test_what_is_damaged_is_left_out_and_the_rest_of_the_customer_exported(
    omni: Client, raw: Redis, tenant: str
) -> None:
    ana, log = omni.customer("ana"), Keyspace(tenant).customer("ana")
    await ana.state(Hold).put("seats", "a", 1)
    for one, damage in (
        (RECENT, lambda key: raw.rpush(key, b'"cut')),
        (TAGS, lambda key: raw.sadd(key, b"7")),  # of another type
        (LOCKS, lambda key: raw.hset(key, b"\xff", b"1")),
        (BOARD, lambda key: raw.zadd(key, {b"{": 1})),
        (POINTS, lambda key: raw.set(key, b"many")),
    ):
        collection: Any = ana.collection(one)
        await (collection.add(1) if one is POINTS else collection.put("x", 1) if one in (LOCKS, BOARD) else
               collection.append("x") if one is RECENT else collection.add("x"))  # fmt: skip
        damage(log.key("doc", one.name))
    await ana.collection(JOBS).put(5)
    for damaged in (b'{"cut', b"\xff", b'"\xff"'):
        await ana.state(Broken).patch(note="whole", count=3)
        raw.hset(log.key("doc", "Broken"), "note", damaged)
        report, lines, _ = await exported(omni, KINDS | {"Broken": Broken})
        assert {name for _, name, _ in report.failed} == {
            "Broken", RECENT.name, TAGS.name, LOCKS.name, BOARD.name, POINTS.name
        }  # fmt: skip
        assert [(line["states"].keys(), line["collections"].keys()) for line in lines] == [({"Hold"}, {JOBS.name})]
        if damaged != b'"\xff"':
            partial = await ana.state(Broken).read(partial=True)
            assert (partial.value, list(partial.unreadable)) == (Broken(count=3), ["note"])
    raw.hset(log.key("doc", "Broken"), b"seats:\xff", b"1")
    await ana.state(Broken).patch(note="mended")
    with pytest.raises(omnistate.SchemaMismatch):
        await ana.state(Broken).get()
    with pytest.raises(omnistate.SchemaMismatch):
        await ana.state(Broken).update(lambda value: setattr(value, "count", 4))
    assert (await ana.state(Broken).read(partial=True)).value == Broken(note="mended", count=3)


class Broken(omnistate.State):
    seats: dict[str, int] = {}
    note: str = ""
    count: int = 0


async def test_fields_that_the_class_does_not_know_travel_with_an_export(connect: Any, tenant: str) -> None:
    class Former(omnistate.State, name="Hold", ttl=timedelta(days=1)):
        seats: dict[str, int] = {}
        chairs: dict[str, int] = {}
        colour: str = ""

    value = Former(seats={"a": 1}, chairs={"b:c": 2, "é": 3}, colour="red")
    async with connect() as omni, connect(tenant=tenant + "copy") as copy:
        await omni.customer("ana").state(Former).set(value)
        report, lines, text = await exported(omni)
        assert (report.failures, lines[0]["states"]["Hold"]["value"]) == (0, {"seats": {"a": 1}})
        with tempfile.TemporaryFile() as file:
            file.write(text)
            file.write(b'{"customer":"bad","states":{"Hold":{"value":{},"others":{"seats:x":1}}}}\n')
            file.seek(0)
            report = await import_all(Bulk(copy.services, copy.keyspace), file, KINDS, COLLECTIONS)
        assert [customer for customer, _, _ in report.failed] == ["bad"]
        assert await copy.customer("ana").state(Former).get() == value


async def test_a_counter_of_the_different_that_is_none_is_reported(omni: Client, raw: Redis, tenant: str) -> None:
    with tempfile.TemporaryFile() as file:
        for name, values in (("a", "AAAA"), ("b", "SFlMTAEAAAAAAAAAAAAAAAAA"), ("c", "")):
            line = {"customer": name, "collections": {SEEN.name: {"kind": "unique", "values": values}}}
            file.write(json.dumps(line).encode() + b"\n")
        file.seek(0)
        report = await import_all(Bulk(omni.services, omni.keyspace), file, KINDS, COLLECTIONS)
    assert report.failures == 3
    assert "damaged" in report.failed[0][2]
    assert list(raw.scan_iter(f"omni:{tenant}:*other*")) == []


async def test_one_document_that_cannot_be_migrated_holds_up_no_other(omni: Client) -> None:
    class Former(omnistate.State, name="Grown"):
        note: str = ""

    class Grown(omnistate.State, name="Grown", version=2, indexes={"first"}):
        note: str = ""
        copies: str = ""

        @property
        def first(self) -> str:
            return self.note[0]

        @migrate(1, 2)
        def grow(fields: dict[str, Any]) -> None:  # noqa: N805
            fields["copies"] = fields["note"] * 100

    for name, note in (("large", "x" * 10_000), ("without", ""), ("good", "x")):
        await omni.customer(name).state(Former).patch(note=note)
    report = await migrate_all(Bulk(omni.services, omni.keyspace), {"Grown": Grown})
    assert {customer for customer, _, _ in report.failed} == {"large", "without"}
    assert report.changed == {"Grown": 1}


async def test_a_migration_of_all_keeps_values_deadlines_and_indexes(
    connect_with_keys: Any, raw: Redis, tenant: str, tmp_path: Path
) -> None:
    async with connect_with_keys() as omni:
        await fill(omni)
        await omni.customer("bad").state(Account).patch(note="poison")
        talk = await omni.customer("customer 3/é").start_conversation("web")
        await talk.state(Account).patch(note="of a conversation")
        bulk, kinds = Bulk(omni.services, omni.keyspace), {"Account": AccountV2, "Hold": Hold}
        dry = await migrate_all(bulk, kinds, dry_run=True)
        assert (dry.changed, dry.failures) == ({"Account": 61}, 1)
        assert "poison" not in dry.failed[0][2]
        assert dry.failed[0][:2] == ("bad", "Account")
        assert (await omni.customer("customer 1/é").state(Account).get()).note == "n1"  # nothing was written
        done = await migrate_all(bulk, kinds, journal=tmp_path / "journal")
        assert (done.customers, done.changed, done.failures) == (61, {"Account": 61}, 1)
        assert not (tmp_path / "journal").exists()
        for number in range(60):
            value = await omni.customer(f"customer {number}/é").state(AccountV2).get()
            assert value == AccountV2(items={"a:b": number}, remark=f"n{number}", points=number, secret="s")
        assert (await talk.state(AccountV2).get()).remark == "of a conversation"
        assert (await omni.customer("bad").state(Account).get()).note == "poison"
        assert (await migrate_all(bulk, kinds)).changed == {}
        found = {one.customer_id async for one in omni.query(AccountV2).where("points", equals=7)}
        assert found == {"customer 7/é"}
    async with connect_with_keys(current="new") as omni:
        report = await migrate_all(Bulk(omni.services, omni.keyspace), {"Account": AccountV2}, force=True)
        assert report.changed == {"Account": 61}
    async with connect_with_keys() as omni:
        keyring = Keyring({"new": KEYS["new"]}, current="new")
        key = Keyspace(tenant).customer("customer 1/é").key("doc", "Account")
        assert keyring.uses_current_key(raw.hget(key, "secret")[1:])  # type: ignore[index]


async def test_a_migration_moves_no_deadline(omni: Client, raw: Redis, tenant: str) -> None:
    class HoldV2(omnistate.State, name="Hold", version=2, ttl=timedelta(days=1)):
        seats: dict[str, int] = {}

        @migrate(1, 2)
        def nothing(fields: dict[str, Any]) -> None:  # noqa: N805
            """Nothing to do."""

    hold, log = omni.customer("ana").state(Hold), Keyspace(tenant).customer("ana")
    await hold.put("seats", "kept", 1)
    await hold.put("seats", "short", 1, ttl=timedelta(hours=1))
    words = raw.hget(log.meta, "doc:Hold").split(b" ")  # type: ignore[union-attr]
    words[0] = b"%013d" % (int(words[0]) - 40_000_000)
    raw.hset(log.meta, "doc:Hold", b" ".join(words))
    field = raw.hget(log.key("doc", "Hold"), "!seats:short")
    assert (await migrate_all(Bulk(omni.services, omni.keyspace), {"Hold": HoldV2})).changed == {"Hold": 1}
    after = raw.hget(log.meta, "doc:Hold").split(b" ")  # type: ignore[union-attr]
    assert (after[0], after[6]) == (words[0], b"2")
    assert raw.hget(log.key("doc", "Hold"), "!seats:short") == field
    assert int(words[0]) < raw.pexpiretime(log.key("doc", "Hold")) < int(words[0]) + 40_000_000


APP = """
from datetime import timedelta

import omnistate


class Tab(omnistate.State, ttl=timedelta(days=7)):
    items: dict[str, int] = {}
    seen = omnistate.List(str, limit=10)


app = omnistate.App(Tab)
"""


@pytest.mark.parametrize("job", ["export", "import"])
def test_a_job_that_was_killed_goes_on(valkey: Any, tenant: str, tmp_path: Path, job: str) -> None:
    (tmp_path / "bar.py").write_text(APP)
    sys.path.insert(0, str(tmp_path))
    try:
        count = 4000
        lines = [
            json.dumps({"customer": f"c{n}", "states": {"Tab": {"value": {"items": {"x": n}}}},
                        "collections": {"Tab.seen": {"kind": "list", "values": ["a", "b"]}}})
            for n in range(count)
        ]  # fmt: skip
        (tmp_path / "in.ndjson").write_text("\n".join(lines) + "\n")

        def command(*words: str) -> list[str]:
            return [
                sys.executable,
                "-m",
                "omnistate",
                *words,
                "--app",
                "bar:app",
                "--url",
                valkey.url,
                "--tenant",
                tenant,
            ]

        def kill_midway(words: list[str], journal: Path) -> None:
            process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            while not journal.exists():
                assert process.poll() is None, "the job ended before it could be killed: give it more to do"
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert journal.exists()

        def run(words: list[str]) -> dict[str, Any]:
            done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)  # type: ignore[no-any-return]

        load = command("import", "in.ndjson", "--json")
        if job == "import":
            kill_midway(load, tmp_path / "in.ndjson.progress")
        said = run(load)
        assert said["customers"] == count
        assert said["failures"] == 0
        save = command("export", "out.ndjson", "--json")
        if job == "export":
            kill_midway(save, tmp_path / "out.ndjson.progress")
        assert run(save)["customers"] == count
        found = sorted(
            (tmp_path / "out.ndjson").read_text().splitlines(), key=lambda line: int(json.loads(line)["customer"][1:])
        )
        assert [json.loads(line)["customer"] for line in found] == [f"c{n}" for n in range(count)]
        assert all(json.loads(line)["collections"]["Tab.seen"]["values"] == ["a", "b"] for line in found)
        assert (tmp_path / "out.ndjson").stat().st_mode & 0o077 == 0
        refused = subprocess.run(save, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert "there already" in refused.stderr
        done = subprocess.run(command("migrate", "--dry-run"), cwd=tmp_path, capture_output=True, text=True, check=True)
        assert f"{count:,} customers" in done.stdout
    finally:
        sys.path.remove(str(tmp_path))
