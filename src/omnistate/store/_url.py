"""Where a server is: `redis://`, `rediss://` and `unix://` addresses."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from omnistate.errors import InvalidInput

_FORMS = "use redis://[user:password@]host:port[/db], rediss://... for TLS, or unix:///path/to/socket"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address, with its secrets kept out of `repr`."""

    host: str = ""
    port: int = 6379
    path: str = ""
    tls: bool = False
    ca_file: str | None = None
    database: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}"

    def tls_context(self) -> ssl.SSLContext | None:
        """TLS with the host name and the certificate checked: there is no way to turn that off."""
        return ssl.create_default_context(cafile=self.ca_file) if self.tls else None


def parse_url(url: str) -> Endpoint:
    """The endpoint that `url` names. Raises `InvalidInput`, which never repeats the password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidInput(f"the server URL cannot be read: {_FORMS}") from None
    query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    known = {"db"} | ({"ca_file"} if parts.scheme == "rediss" else set())
    if unknown := sorted(query.keys() - known):
        raise InvalidInput(
            f"the server URL has an unknown option {unknown[0]!r}; known here: {', '.join(sorted(known))}"
        )
    username = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password is not None else None
    if parts.scheme == "unix":
        path = unquote(parts.path)
        if not path:
            raise InvalidInput(f"the server URL has no path: {_FORMS}")
        return Endpoint(path=path, database=_database(query.get("db", "0")), username=username, password=password)
    if parts.scheme not in ("redis", "rediss"):
        raise InvalidInput(f"unknown scheme {parts.scheme[:20]!r} in the server URL: {_FORMS}")
    return Endpoint(
        host=parts.hostname or "localhost",
        port=port or 6379,
        tls=parts.scheme == "rediss",
        ca_file=query.get("ca_file"),
        database=_database(query.get("db") or parts.path.strip("/") or "0"),
        username=username,
        password=password,
    )


def _database(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        raise InvalidInput(f"the database in the server URL must be a number: {_FORMS}")
    return int(text)
