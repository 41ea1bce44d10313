"""`omnistate customer`: what is known of one customer is exported, or erased."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, BinaryIO

import cyclopts
import msgspec
from cyclopts import Parameter

import omnistate
from omnistate.cli._bulk import progress_bar
from omnistate.cli._common import EMBEDDED, Json, Store, UsageError, load_app, run
from omnistate.ops import Bulk, erase_again

customer = cyclopts.App(name="customer", help="Everything that is known of one customer: export it, or erase it.")
Flag = Parameter(negative="")


@customer.command
def export(
    customer_id: str,
    file: Path,
    /,
    *,
    key: Path | None = None,
    app: str | None = None,
    as_json: Json = False,
    store: Store = EMBEDDED,
) -> None:
    """Write everything that is known of a customer to FILE, and to FILE.manifest and FILE.sig what proves it.

    One that was interrupted leaves no FILE: run it again.

    Parameters
    ----------
    customer_id
        The customer's id.
    file
        The file to write: a line of JSON for each thing. Only you may read it.
    key
        The Ed25519 private key to sign with, as PEM: openssl genpkey -algorithm ed25519
    app
        Where the keyring of encrypted states is, as module:app.
    as_json
        Print the manifest as one JSON object.
    """
    keyring = load_app(app).keyring if app is not None else None
    if file.exists():
        raise UsageError(f"{file} is there already: choose another name, or remove it")
    signing_key = _read(key) if key is not None else None
    part = _beside(file, ".part")

    async def work() -> omnistate.CustomerExport:
        async with store.connect(keyring=keyring) as omni:
            made = omni.customer(customer_id).export(signing_key=signing_key)
            with _private(part) as opened:
                async for line in made.lines():
                    opened.write(line)
                opened.flush()
                os.fsync(opened.fileno())
            return made

    made = run(work())
    with _private(_beside(file, ".manifest")) as opened:
        opened.write(made.manifest_text)
    if made.signature is not None:
        with _private(_beside(file, ".sig")) as opened:
            opened.write(made.signature)
    part.replace(file)
    _tell_manifest(made.manifest, as_json=as_json)


@customer.command
def verify(file: Path, /, *, key: Path, as_json: Json = False) -> None:
    """Check that FILE is whole and as it was signed, by FILE.manifest and FILE.sig.

    Parameters
    ----------
    file
        What `omnistate customer export` wrote.
    key
        The public key, as PEM: openssl pkey -in key.pem -pubout
    as_json
        Print the manifest as one JSON object.
    """
    manifest, signature = _read(_beside(file, ".manifest")), _read(_beside(file, ".sig"))
    with _opened(file) as opened:
        said = omnistate.verify_export(opened, manifest, signature, _read(key))
    _tell_manifest(said, as_json=as_json)


@customer.command
def erase(
    customer_id: str,
    /,
    *,
    actor: str,
    reason: str,
    dry_run: Annotated[bool, Flag] = False,
    yes: Annotated[bool, Flag] = False,
    as_json: Json = False,
    store: Store = EMBEDDED,
) -> int:
    """Remove everything that is stored of a customer, for good. The id is asked for once more, unless --yes is given.

    Run again after it was interrupted, it goes on.

    Parameters
    ----------
    customer_id
        The customer's id.
    actor
        Who erases, for the list of erasures.
    reason
        Why, for the list of erasures: nothing about the customer.
    dry_run
        Only tell what would go.
    yes
        Do not ask.
    as_json
        Print one JSON object.
    """
    if not dry_run and not yes and not _is_confirmed(customer_id):
        print("nothing was erased", file=sys.stderr)
        return 1

    async def work() -> omnistate.Erasure:
        async with store.connect() as omni:
            return await omni.erase(customer_id, actor=actor, reason=reason, dry_run=dry_run)

    _tell(run(work()), as_json=as_json)
    return 0


@customer.command
def erasures(*, store: Store = EMBEDDED) -> None:
    """List who was erased, oldest first, a JSON object a line: by whom, when, why and how much; of the id only a hash is left.

    Keep this list apart from the backups: after a restore, `omnistate customer erase-again` reads it.
    """

    async def work() -> list[omnistate.Erasure]:
        async with store.connect() as omni:
            return await omni.erasures()

    for one in run(work()):
        print(msgspec.json.encode(one).decode())


@customer.command(name="erase-again")
def again(file: Path, /, *, as_json: Json = False, store: Store = EMBEDDED) -> None:
    """After a restore: erase whom `omnistate customer erasures` had listed in FILE. Run again after an interruption.

    Parameters
    ----------
    file
        The list.
    as_json
        Print one JSON object.
    """
    try:
        listed = [
            msgspec.json.decode(line, type=omnistate.Erasure) for line in _read(file).splitlines() if line.strip()
        ]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{file} is no list of erasures: {error}; make one: omnistate customer erasures > list"
        ) from error

    async def work() -> list[omnistate.Erasure]:
        async with store.connect() as omni:
            with progress_bar("erase again", "partitions") as progress:
                return await erase_again(Bulk(omni.services, omni.keyspace), listed, progress=progress)

    done = run(work())
    if as_json:
        print(msgspec.json.encode({"listed": len(listed), "erased": len(done)}).decode())
    else:
        print(f"{len(listed):,} are listed, {len(done):,} were here again and are erased")


def _is_confirmed(customer_id: str) -> bool:
    print(f"This removes everything that is stored of customer {customer_id}, for good.", file=sys.stderr)
    print("Type the id to go on: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip() == customer_id


def _tell(done: omnistate.Erasure, *, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(done).decode())
        return
    word = "would go" if done.dry_run else "had gone already" if done.repeated else "gone"
    for kind, number in sorted(done.counts.items()):
        print(f"{kind.replace('_', ' ')}: {number:,} {word}")
    if done.merged:
        print(f"customers who had been merged into this one: {done.merged:,} {word}")
    if not done.dry_run:
        print("on disk and in backups it goes later: see docs/erasure.md", file=sys.stderr)


def _tell_manifest(manifest: omnistate.Manifest | None, *, as_json: bool) -> None:
    assert manifest is not None  # its lines were read
    if as_json:
        print(msgspec.json.encode(manifest).decode())
        return
    for kind, number in sorted(manifest.counts.items()):
        print(f"{kind}: {number:,}")
    if manifest.unreadable:
        print(f"{manifest.unreadable:,} values could not be read, and are in the file as they are stored")
    print(f"sha256: {manifest.sha256}")
    if not manifest.unchanged:
        print(f"something was written meanwhile: between {manifest.log_before} and {manifest.log_after}")


def _beside(file: Path, ending: str) -> Path:
    return file.with_name(file.name + ending)


def _private(file: Path) -> BinaryIO:
    return open(os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def _opened(file: Path) -> BinaryIO:
    try:
        return open(file, "rb")
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error


def _read(file: Path) -> bytes:
    with _opened(file) as opened:
        return bytes(opened.read())
