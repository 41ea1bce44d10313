"""Django's sessions in the store: `SESSION_ENGINE = "omnistate.web.django"`.

    OMNISTATE = {"url": "redis://localhost", "tenant": "shop"}  # what `omnistate.connect` takes

A session belongs to the customer `user-<primary key>` once somebody has signed in, to an anonymous one before: so
`omni.customer("user-7").sessions()` lists the devices of a user, and `revoke_sessions()` signs them all out. Its key, which
is in the cookie, is its token: only a keyed hash of it is stored.

A save stores the keys that have changed: requests that change different keys at the same time keep all of them, where
Django's own engines keep those of the last one. Each session is one document; values are spelled by `SESSION_SERIALIZER`.
"""

from __future__ import annotations

from omnistate.web._django import SessionStore

__all__ = ["SessionStore"]
