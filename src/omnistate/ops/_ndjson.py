"""Export and import: newline-delimited JSON, an object in a line for each customer."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from omnistate.collection import (
    Collection,
    Counter,
    List,
    Map,
    Place,
    Set,
    SortedSet,
    UniqueCounter,
    WorkQueue,
    load_collection,
    open_values,
)
from omnistate.customer import Customer, Identity, Stored, check_erased, documents
from omnistate.errors import Conflict, InvalidInput, InvalidValue, OmnistateError, SchemaMismatch
from omnistate.ops._bulk import AT_ONCE, Bulk, chunks
from omnistate.ops._commands import count_customers
from omnistate.ops._job import Journal, Progress, Report, count, silent
from omnistate.state import Origin, schema_of
from omnistate.store import PARTITIONS

_NO_ORIGIN = Origin()
_encode = msgspec.json.Encoder().encode


class _Document(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    value: msgspec.Raw
    others: dict[str, msgspec.Raw] = {}  # fields and entries that the class does not know
    expires_ms: int = 0  # the deadline, in milliseconds since 1970
    entries_expire_ms: dict[str, int] = {}


class _Contents(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    kind: str
    values: msgspec.Raw
    expires_ms: int = 0
    entries_expire_ms: dict[str, int] = {}


class _Line(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    customer: str
    identities: list[Identity] = []
    states: dict[str, _Document] = {}
    collections: dict[str, _Contents] = {}


_decode_line = msgspec.json.Decoder(_Line).decode


async def export_all(
    bulk: Bulk,
    file: BinaryIO,
    kinds: Mapping[str, type[Any]],
    collections: Mapping[str, Collection[Any, Any]],
    *,
    journal: Path | None = None,
    progress: Progress = silent,
) -> Report:
    """Writes a line for each customer: identities, documents and collections, as they are, encrypted ones in clear.

    Sessions, conversations and what belongs to them are not in it. What cannot be read, or has no class here, is reported
    and left out. A customer is read at one moment, customers one after the other. `file` must be open for reading and
    writing; with a journal, an export that was killed goes on where it was.
    """
    report, total = Report(), await bulk.count()
    notes = Journal(journal, f"export {bulk.keyspace.partition(0)!r} {sorted(kinds)}")
    start = notes.state.get("partition", 0)
    report.customers = notes.state.get("customers", 0)
    file.seek(notes.state.get("bytes", 0))
    file.truncate()
    for index in range(start, PARTITIONS):
        for some in chunks(await bulk.partition(index)):
            lines = await asyncio.gather(*(_export(bulk, one, kinds, collections, report) for one in some))
            file.writelines(line for line in lines if line)
            report.customers += len(some)
            progress(report.customers, total)
        file.flush()
        os.fsync(file.fileno())
        notes.write(partition=index + 1, bytes=file.tell(), customers=report.customers)
    notes.done()
    return report


async def _export(
    bulk: Bulk,
    customer_id: str,
    kinds: Mapping[str, type[Any]],
    collections: Mapping[str, Collection[Any, Any]],
    report: Report,
) -> bytes:
    log, customer = bulk.keyspace.customer(customer_id), bulk.customer(customer_id)
    entries, identities = await asyncio.gather(bulk.entries(log), customer.identities())
    own = {name: header.split(b" ")[5].decode() for name, owner, header in entries if owner is None}
    for name in [one for one in own if one not in kinds and one not in collections]:
        report.fail(customer_id, name, InvalidInput(f"no class or collection is called {name} here: import it"))
        del own[name]
    stored: list[Stored | None] = await bulk.services.link.execute(documents(log, own)) if own else []
    line = _Line(customer_id, identities)
    for name, found in zip(own, stored, strict=True):
        if found is None:
            continue
        try:
            if name in kinds:
                value, unknown = customer.state(kinds[name]).json_of(found.header, found.values)
                others = {field.decode(): msgspec.Raw(one) for field, one in unknown.items()}
                line.states[name] = _Document(msgspec.Raw(value), others, found.deadline, _deadlines(found))
            else:
                place = Place(bulk.services, log, _NO_ORIGIN)
                line.collections[name] = _contents(collections[name], place, own[name], found)
        except SchemaMismatch as error:
            report.fail(customer_id, name, error)
            continue
        count(report.changed, name)
    return _encode(line) + b"\n" if line.identities or line.states or line.collections else b""


def _contents(declaration: Collection[Any, Any], place: Place, kind: str, found: Stored) -> _Contents:
    if declaration.kind != kind:
        raise SchemaMismatch(f"it is stored as a {kind}, not a {declaration.kind}: import its declaration")
    values = open_values(declaration, place, found.values)
    try:
        spelled = msgspec.Raw(_encode(_spelled(kind, values)))
        contents = _Contents(kind, spelled, found.deadline, _deadlines(found))
        _stored(declaration, contents)  # what an import would refuse is damaged, or of another type
    except (ValueError, msgspec.MsgspecError) as error:
        raise SchemaMismatch(f"a stored value of {declaration.name} cannot be read as its type: {error}") from error
    return contents


def _deadlines(found: Stored) -> dict[str, int]:
    """The deadlines of entries, in milliseconds since 1970."""
    if found.kind == "map":
        triples = zip(found.values[::3], found.values[2::3], strict=True)
        return {key.decode(): int(deadline) for key, deadline in triples if deadline}
    if b" next=" not in found.header:
        return {}
    pairs = zip(found.values[::2], found.values[1::2], strict=True)
    return {name[1:].decode(): int(deadline) for name, deadline in pairs if name.startswith(b"!")}


def _stored(declaration: Collection[Any, Any], contents: _Contents) -> list[bytes]:
    """What was spelled, as it is stored. Raises `InvalidValue` for what does not fit the declaration."""
    try:
        return list(_decoded(declaration, contents))
    except msgspec.MsgspecError as error:
        raise InvalidValue(f"{declaration.name}: {error}") from error


def _decoded(declaration: Collection[Any, Any], contents: _Contents) -> Iterator[bytes]:
    decode, raw, said = msgspec.json.decode, msgspec.Raw, contents.values
    match declaration:
        case Map():
            keys, values = declaration.keys, declaration.values
            for key, value in decode(said, type=dict[str, raw]).items():  # type: ignore[valid-type]
                deadline = contents.entries_expire_ms.get(key)
                yield from (_checked(keys, key.encode()), _checked(values, bytes(value)))
                yield b"" if deadline is None else b"%d" % deadline
        case SortedSet():
            for member, score in decode(said, type=list[tuple[raw, float]]):  # type: ignore[valid-type]
                yield from (_checked(declaration.values, bytes(member)), repr(score).encode())
        case Counter():
            yield b"%d" % decode(said, type=int)
        case UniqueCounter():
            yield decode(said, type=bytes)
        case WorkQueue():
            for index, item in enumerate(decode(said, type=list[raw])):  # type: ignore[valid-type]
                yield from (b"%d" % index, b"0 " + _checked(declaration.values, bytes(item)), b"")
        case List() | Set():
            for value in decode(said, type=list[raw]):  # type: ignore[valid-type]
                yield _checked(declaration.values, bytes(value))


def _checked(types: Any, encoded: bytes) -> bytes:
    """Keys and values as they would have been written here. Raises `InvalidValue`."""
    try:
        return bytes(types.encode(types.decode(encoded)))
    except SchemaMismatch as error:
        raise InvalidValue(str(error)) from error


def _spelled(kind: str, values: list[bytes]) -> Any:
    """What is in a collection, as JSON: values are JSON already, keys of maps and a HyperLogLog are not."""
    if kind == "map":
        return {key.decode(): msgspec.Raw(value) for key, value in zip(values[::3], values[1::3], strict=True)}
    if kind == "sorted":
        return [[msgspec.Raw(member), float(score)] for member, score in zip(values[::2], values[1::2], strict=True)]
    if kind == "queue":
        items = sorted(zip(values[::3], values[1::3], strict=True), key=lambda item: int(item[0]))
        return [msgspec.Raw(value.split(b" ", 1)[1]) for _, value in items]
    if kind == "unique":
        return values[0]
    if kind == "counter":
        return int(values[0])
    return [msgspec.Raw(value) for value in values]


async def import_all(
    bulk: Bulk,
    file: BinaryIO,
    kinds: Mapping[str, type[Any]],
    collections: Mapping[str, Collection[Any, Any]],
    *,
    overwrite: bool = False,
    journal: Path | None = None,
    progress: Progress = silent,
) -> Report:
    """Reads what `export_all` wrote. What is there already is kept, or replaced with `overwrite`.

    A line that cannot be read, or does not fit its class, is reported; the others are imported. Customers who were erased here
    are left out, and counted. Deadlines stay what they were: what has expired
    since is not imported. `progress` is given bytes. With a journal, an import that was killed goes
    on where it was; a line that is imported twice is imported once.
    """
    report, size = Report(), os.fstat(file.fileno()).st_size
    first = hashlib.blake2b(file.readline(), digest_size=8).hexdigest()
    notes = Journal(journal, f"import {bulk.keyspace.partition(0)!r} {first} {size} {overwrite}")
    run = notes.state.get("run", secrets.randbits(62))  # the name of this import, also when it goes on
    offset, report.customers = notes.state.get("bytes", 0), notes.state.get("customers", 0)
    notes.write(bytes=offset, customers=report.customers, run=run)
    file.seek(offset)
    _, now = await bulk.services.link.execute(count_customers(bulk.keyspace, 0))
    work = _Import(bulk, kinds, collections, report, f"{run:x}", now, overwrite=overwrite)
    lines: list[tuple[int, bytes]] = []
    written = 0
    while True:
        line = file.readline()
        if line:
            lines.append((offset, line))
            offset += len(line)
        if len(lines) == AT_ONCE or (not line and lines):
            await asyncio.gather(*(work.line(at, text) for at, text in lines))
            written += len(lines)
            lines = []
            progress(offset, size)
            if written >= 16 * AT_ONCE:
                written = 0
                notes.write(bytes=offset, customers=report.customers, run=run)
        if not line:
            notes.done()
            return report


class _Import:
    def __init__(
        self,
        bulk: Bulk,
        kinds: Mapping[str, type[Any]],
        collections: Mapping[str, Collection[Any, Any]],
        report: Report,
        run: str,
        now: int,
        *,
        overwrite: bool,
    ) -> None:
        self._bulk, self._kinds, self._collections, self._report = bulk, kinds, collections, report
        self._run, self._now, self._overwrite = run, now, overwrite

    async def line(self, offset: int, text: bytes) -> None:
        where = f"line at byte {offset}"
        try:
            line = _decode_line(text)
            customer = self._bulk.customer(line.customer)
        except (msgspec.MsgspecError, UnicodeDecodeError, InvalidInput) as error:
            self._report.fail(where, "", error)
            return
        if await self._bulk.services.link.execute(check_erased(self._bulk.keyspace.customer(customer.id))):
            self._report.erased += 1
            return
        await asyncio.gather(
            *(self._identity(customer, one) for one in line.identities),
            *(self._state(customer, name, one) for name, one in line.states.items()),
            *(self._collection(customer, offset, name, one) for name, one in line.collections.items()),
        )
        self._report.customers += 1

    async def _identity(self, customer: Customer, identity: Identity) -> None:
        try:
            await customer.load_identity(identity)
        except OmnistateError as error:
            self._report.fail(customer.id, f"identity on {identity.channel}", error)

    async def _state(self, customer: Customer, name: str, document: _Document) -> None:
        kind = self._kinds.get(name)
        if document.expires_ms and document.expires_ms <= self._now:
            return
        try:
            if kind is None:
                raise InvalidInput(f"no class is called {name} here: import it")
            value = schema_of(kind).parse(bytes(document.value))
            await customer.state(kind).load(
                value,
                others={field: bytes(one) for field, one in document.others.items()},
                deadline=document.expires_ms,
                deadlines=document.entries_expire_ms,
                now=self._now,
                overwrite=self._overwrite,
            )
        except Conflict:
            count(self._report.kept, name)
        except OmnistateError as error:
            self._report.fail(customer.id, name, error)
        else:
            count(self._report.changed, name)

    async def _collection(self, customer: Customer, offset: int, name: str, contents: _Contents) -> None:
        declaration = self._collections.get(name)
        if contents.expires_ms and contents.expires_ms <= self._now:
            return
        place = Place(self._bulk.services, self._bulk.keyspace.customer(customer.id), _NO_ORIGIN)
        try:
            if declaration is None or declaration.kind != contents.kind:
                raise InvalidInput(f"no {contents.kind} is called {name} here: import its declaration")
            values = _stored(declaration, contents)
            names = (self._run, str(offset), name)
            await load_collection(declaration, place, values, names=names, overwrite=self._overwrite)
        except Conflict:
            count(self._report.kept, name)
        except OmnistateError as error:
            self._report.fail(customer.id, name, error)
        else:
            count(self._report.changed, name)
