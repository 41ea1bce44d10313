"""Where the store is: the addresses of a server, of a primary that Sentinels name, or of a cluster."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

from omnistate.errors import InvalidInput

_FORMS = (
    "use redis://[user:password@]host:port[/db], unix:///path/to/socket, "
    "redis+sentinel://host:port,host:port/service, redis+cluster://host:port,host:port; rediss instead of redis for TLS"
)
_TLS_OPTIONS = frozenset(("ca_file", "cert_file", "key_file"))
Kind = Literal["single", "sentinel", "cluster"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of one server, with its secrets kept out of `repr`."""

    host: str = ""
    port: int = 6379
    path: str = ""
    tls: bool = False
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    database: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}"
        return f"{'rediss' if self.tls else 'redis'}://{self.place}"

    @property
    def place(self) -> str:
        """Host and port, as URLs and cluster nodes spell them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def at(self, host: str, port: int) -> Endpoint:
        """Another server that is spoken to in the same way."""
        return replace(self, host=host, port=port, path="")

    def tls_context(self) -> ssl.SSLContext | None:
        """TLS with the host name and the certificate checked: there is no way to turn that off."""
        return _tls_context(self.ca_file, self.cert_file, self.key_file) if self.tls else None


@lru_cache(maxsize=16)
def _tls_context(ca_file: str | None, cert_file: str | None, key_file: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    if cert_file is not None:
        context.load_cert_chain(cert_file, key_file)
    return context


@dataclass(frozen=True, slots=True)
class Address:
    """What a URL says: of what kind the store is, and the servers to ask first."""

    kind: Kind
    endpoints: tuple[Endpoint, ...]
    service: str = ""  # the name that Sentinels know the primary by
    server: Endpoint = Endpoint()  # how the servers that Sentinels name are spoken to

    def __str__(self) -> str:
        if self.kind == "single":
            return str(self.endpoints[0])
        scheme = "rediss" if self.endpoints[0].tls else "redis"
        places = ",".join(endpoint.place for endpoint in self.endpoints)
        return f"{scheme}+{self.kind}://{places}" + (f"/{self.service}" if self.service else "")


def parse_url(url: str) -> Address:
    """The address that `url` names. Raises `InvalidInput`, which never repeats the password."""
    try:
        parts = urlsplit(url)
        userinfo, _, hosts = parts.netloc.rpartition("@")
        places = [_place(host) for host in hosts.split(",")]
    except ValueError:
        raise InvalidInput(f"the server URL cannot be read: {_FORMS}") from None
    protocol, _, word = parts.scheme.partition("+")
    protocol = {"valkey": "redis", "valkeys": "rediss"}.get(protocol, protocol)
    options = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    username, _, password = userinfo.partition(":")
    user, secret = unquote(username) or None, unquote(password) if ":" in userinfo else None
    if protocol == "unix" and not word:
        _refuse_unknown(options, {"db"})
        if not parts.path:
            raise InvalidInput(f"the server URL has no path: {_FORMS}")
        one = Endpoint(
            path=unquote(parts.path), database=_database(options.get("db", "0")), username=user, password=secret
        )
        return Address("single", (one,))
    if protocol not in ("redis", "rediss") or word not in ("", "sentinel", "cluster"):
        raise InvalidInput(f"unknown scheme {parts.scheme[:20]!r} in the server URL: {_FORMS}")
    tls_options = _TLS_OPTIONS if protocol == "rediss" else frozenset[str]()
    common = Endpoint(
        tls=protocol == "rediss",
        ca_file=options.get("ca_file"),
        cert_file=options.get("cert_file"),
        key_file=options.get("key_file"),
        username=user,
        password=secret,
    )
    if word == "cluster":
        _refuse_unknown(options, tls_options)
        if parts.path.strip("/"):
            raise InvalidInput("a cluster has no databases and no service name: leave out what follows the hosts")
        return Address("cluster", tuple(common.at(host or "localhost", port or 6379) for host, port in places))
    if word == "sentinel":
        _refuse_unknown(options, tls_options | {"db", "sentinel_username", "sentinel_password"})
        service = unquote(parts.path.strip("/"))
        if not service:
            raise InvalidInput(
                "the URL of Sentinels ends with the name of the primary that they watch: redis+sentinel://host:26379/mymaster"
            )
        watcher = replace(common, username=options.get("sentinel_username"), password=options.get("sentinel_password"))
        endpoints = tuple(watcher.at(host or "localhost", port or 26379) for host, port in places)
        server = replace(common, database=_database(options.get("db", "0")))
        return Address("sentinel", endpoints, service, server)
    _refuse_unknown(options, tls_options | {"db"})
    if len(places) > 1:
        raise InvalidInput("the server URL names several hosts: redis+cluster:// and redis+sentinel:// do that")
    database = _database(options.get("db") or parts.path.strip("/") or "0")
    ((host, port),) = places
    return Address("single", (replace(common.at(host or "localhost", port or 6379), database=database),))


def _place(text: str) -> tuple[str, int | None]:
    parts = urlsplit("//" + text)
    return parts.hostname or "", parts.port


def _refuse_unknown(options: Mapping[str, str], known: frozenset[str] | set[str]) -> None:
    if unknown := sorted(options.keys() - known):
        raise InvalidInput(
            f"the server URL has an unknown option {unknown[0]!r}; known here: {', '.join(sorted(known)) or 'none'}"
        )


def _database(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        raise InvalidInput(f"the database in the server URL must be a number: {_FORMS}")
    return int(text)
