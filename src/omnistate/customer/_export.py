"""The handle on an export of one customer."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec

from omnistate.customer._export_flows import Reader, find_all, find_keys, spell
from omnistate.customer._manifest import Manifest, Tally, sign
from omnistate.errors import InvalidInput
from omnistate.state import Services
from omnistate.store import Keyspace, run


class CustomerExport:
    """Everything that is known of a customer: `customer.export()`.

    Its `lines()` are JSON objects with a line end each (NDJSON), to be written into a file; `manifest_text` and `signature` go
    into files beside it (docs/erasure.md). It only reads: one that broke off is begun anew.
    """

    __slots__ = ("_customer_id", "_keyspace", "_services", "_signing_key", "_text", "manifest")

    def __init__(self, services: Services, keyspace: Keyspace, customer_id: str, signing_key: bytes | None) -> None:
        self._services, self._keyspace, self._customer_id = services, keyspace, customer_id
        self._signing_key, self._text = signing_key, b""
        self.manifest: Manifest | None = None
        if signing_key is not None:
            sign(b"", signing_key)  # a key that is none is told before anything is read

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """The lines; after the last one there is a `manifest`. Raises `CustomerErased`.

        It looks at the names of all keys of one server, a round trip for each 1,000, and needs one for each document,
        collection, session, conversation, and 500 messages or changes of a document.
        """
        execute, tally = self._services.link.execute, Tally()
        before, customers = await run(find_all(self._keyspace, self._customer_id), execute)
        for customer_id in customers:
            log = self._keyspace.customer(customer_id)
            reader = Reader(log, self._services.keyring)
            keys = await run(find_keys(log), execute)
            for work in await run(reader.plan(keys), execute):
                for kind, line in spell(customer_id, await run(work, execute)):
                    tally.add(kind, line)
                    yield line
        after, _ = await run(find_all(self._keyspace, self._customer_id), execute)
        self.manifest = tally.manifest(self._customer_id, before, after)
        self._text = msgspec.json.format(msgspec.json.encode(self.manifest), indent=2) + b"\n"

    @property
    def manifest_text(self) -> bytes:
        """The manifest as JSON, which is what is signed. Raises `InvalidInput` before the last line was read."""
        if self.manifest is None:
            raise InvalidInput("an export has its manifest when all of its lines were read")
        return self._text

    @property
    def signature(self) -> bytes | None:
        """The Ed25519 signature of `manifest_text`, 64 bytes; None without a signing key."""
        text = self.manifest_text
        return sign(text, self._signing_key) if self._signing_key is not None else None

    def __repr__(self) -> str:
        return f"<CustomerExport {self._customer_id}>"
