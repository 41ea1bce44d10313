"""What a web framework keeps in a session: one document of the session, a key of it for each key of `request.session`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import msgspec

from omnistate.errors import InvalidValue
from omnistate.state import State

_encode = msgspec.json.Encoder().encode


class WebSession(State, ttl=timedelta(days=400)):
    """The document: it goes with its session, whose deadlines are shorter."""

    data: dict[str, Any] = {}
    is_anonymous: bool = True  # its customer was made for it, and nobody has signed in


class Change(NamedTuple):
    """A key that a request has changed, with its values as JSON; None: absent."""

    key: str
    before: bytes | None
    after: bytes | None


def encoded(data: Mapping[str, Any]) -> dict[str, bytes]:
    """The values as JSON: what is nested is compared too. Raises `InvalidValue`."""
    found = {}
    for key, value in data.items():
        if type(key) is not str:
            raise InvalidValue(f"a key of the session must be a str, not {type(key).__name__}: {key!r}")
        try:
            found[key] = _encode(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidValue(f"session[{key!r}] cannot be stored as JSON: {error}") from error
    return found


def changes(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[Change]:
    """What makes `after` of `before`."""
    names = {**before, **after}
    return [Change(key, before.get(key), after.get(key)) for key in names if before.get(key) != after.get(key)]


def apply(stored: WebSession, wanted: list[Change]) -> list[str]:
    """Makes the changes; returns the keys that another request has changed since, which are now as this one wants them."""
    raced = []
    for key, before, after in wanted:
        now = _encode(stored.data[key]) if key in stored.data else None
        if now not in (before, after):
            raced.append(key)
        if after is None:
            stored.data.pop(key, None)
        else:
            stored.data[key] = msgspec.json.decode(after)
    return raced
