"""What the gateway's tests share: an app, and the gateway that serves it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import omnistate
from omnistate.gateway import Gateway, Tokens
from shop import Cart, Profile

SECRET = secrets.token_bytes(32)


class Secrets(omnistate.State, channels={"agent desk"}):
    note: str = ""


def make_app() -> omnistate.App:
    app = omnistate.App(Cart, Profile, Secrets, title="shop")

    @app.bot("bot")
    async def answer(talk: omnistate.Conversation, message: omnistate.Message) -> None:
        if "human" in message.text:
            await talk.say("bot", "I will get somebody.")
            await talk.hand_off("agents", reason="asked for a person", by="bot")
        else:
            await talk.say("bot", f"you said {message.text}")

    return app


@dataclass
class Served:
    omni: omnistate.Client
    gateway: Gateway
    tokens: Tokens
    port: int

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.port}/connection/websocket"

    def token(self, user: str, **claims: object) -> str:
        return self.tokens.issue(user, **claims)  # type: ignore[arg-type]

    def cut_all(self) -> None:
        """Ends every socket at once, as a lost network does."""
        for client in list(self.gateway.connections):
            client._transport._socket.abort()  # type: ignore[attr-defined]


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    """Waits for a condition, not for a time."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not happen"
        await asyncio.sleep(0.005)
