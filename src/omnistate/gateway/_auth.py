"""Who a client is: tokens, and what a token allows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import jwt

from omnistate.errors import Denied, InvalidInput
from omnistate.store import encode_id

Role = Literal["customer", "agent"]
DEFAULT_CHANNEL = "web"
_LEEWAY = 10  # seconds that clocks may differ
MIN_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Peer:
    """Who speaks: a customer on a channel, or an agent. `customer` is the one customer that the token names, if any."""

    user: str
    role: Role
    channel: str
    customer: str | None
    expires_at: float | None


class TokenExpired(Denied):
    """The token was good and has run out: get a new one from your backend and connect again."""

    code = "token_expired"


class Tokens:
    """Signed tokens (JWT, HS256): `sub` is the user; `channel`, `role` and `customer` say the rest.

    A token for a customer needs `sub` alone: it names the customer. One for an agent has `role: "agent"`; with `customer`
    it also opens that customer.
    """

    def __init__(self, secret: bytes, *, audience: str | None = None, issuer: str | None = None) -> None:
        if len(secret) < MIN_SECRET_BYTES:
            raise InvalidInput(f"the token secret has {len(secret)} bytes, it needs at least {MIN_SECRET_BYTES}")
        self._secret, self._audience, self._issuer = secret, audience, issuer

    def verify(self, token: str) -> Peer:
        """Raises `TokenExpired`, or `Denied` for everything else that is wrong with it."""
        if not token or len(token) > 8192:
            raise Denied("a token is needed" if not token else "the token is too long")
        try:
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=["HS256"],
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY,
                options={"require": ["exp", "sub"], "verify_aud": self._audience is not None},
            )
        except jwt.ExpiredSignatureError:
            raise TokenExpired("the token has expired: get a new one") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise Denied("the token is not valid") from error
        return _peer(claims)

    def issue(
        self,
        user: str,
        *,
        role: Role = "customer",
        channel: str = DEFAULT_CHANNEL,
        customer: str | None = None,
        lifetime: int = 900,
    ) -> str:
        """A token that is good for `lifetime` seconds."""
        claims: dict[str, Any] = {"sub": user, "role": role, "channel": channel, "exp": int(time.time()) + lifetime}
        if customer is not None:
            claims["customer"] = customer
        if self._audience is not None:
            claims["aud"] = self._audience
        if self._issuer is not None:
            claims["iss"] = self._issuer
        return jwt.encode(claims, self._secret, algorithm="HS256")


class DevTokens(Tokens):
    """Development mode: also believes `dev:<channel>:<user>` and `dev:<channel>:<user>:agent`, unsigned."""

    def verify(self, token: str) -> Peer:
        if not token.startswith("dev:"):
            return super().verify(token)
        parts = token.split(":")
        if len(parts) not in (3, 4) or parts[3:] not in ([], ["agent"]) or not parts[1] or not parts[2]:
            raise Denied("a development token looks like dev:web:visitor-1 or dev:desk:maria:agent")
        return _peer({"channel": parts[1], "sub": parts[2], "role": "agent" if parts[3:] else "customer"})


def _peer(claims: dict[str, Any]) -> Peer:
    user, role = claims["sub"], claims.get("role", "customer")
    channel, customer = claims.get("channel", DEFAULT_CHANNEL), claims.get("customer")
    if role not in ("customer", "agent"):
        raise Denied("the token's role is neither customer nor agent")
    try:
        encode_id(user, "sub")
        encode_id(channel, "channel")
        if customer is not None:
            encode_id(customer, "customer")
    except InvalidInput as error:
        raise Denied(f"the token is not valid: {error}") from error
    if role == "customer":
        if customer not in (None, user):
            raise Denied("a customer's token cannot name another customer")
        customer = user
    expires = claims.get("exp")
    return Peer(user, role, channel, customer, float(expires) if expires is not None else None)
