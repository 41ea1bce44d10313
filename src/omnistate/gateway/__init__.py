"""The server that every channel connects to: HTTP, and the Centrifuge client protocol over WebSocket."""

from omnistate.errors import MissingExtra

try:
    from omnistate.gateway._auth import MIN_SECRET_BYTES, DevTokens, Peer, TokenExpired, Tokens
    from omnistate.gateway._connection import Limits
    from omnistate.gateway._gateway import Gateway
    from omnistate.gateway._server import THIS_MACHINE, bind, serving
except ModuleNotFoundError as error:
    raise MissingExtra("the gateway", extra="server") from error

__all__ = [
    "MIN_SECRET_BYTES",
    "THIS_MACHINE",
    "DevTokens",
    "Gateway",
    "Limits",
    "Peer",
    "TokenExpired",
    "Tokens",
    "bind",
    "serving",
]
