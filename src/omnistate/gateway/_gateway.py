"""The gateway of one process: who may connect and follow what, and the parts that do the work."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from omnistate import Client, Denied
from omnistate.app import App
from omnistate.gateway._auth import Peer, Tokens
from omnistate.gateway._connection import Access, ClientConnection, Limits
from omnistate.gateway._hub import Hub, Publication, Visible
from omnistate.gateway._operations import Operations
from omnistate.gateway._wire import METHOD_NOT_FOUND, UNKNOWN_TOPIC
from omnistate.store import Page, Position, read_log


class Gateway:
    """Topics: `customer:<id>` for who may reach that customer, `queue:<name>` for agents."""

    def __init__(
        self,
        client: Client,
        app: App,
        tokens: Tokens,
        *,
        origins: Collection[str] | None = None,
        hosts: Collection[str] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.client, self.app, self._tokens = client, app, tokens
        self.origins, self.hosts, self.limits = origins, hosts, limits or Limits()
        self.feed = client.services.feed
        self.hub = Hub(self.feed)
        self.operations = Operations(client, app, tokens)
        self.connections: set[ClientConnection] = set()
        self.draining = False
        self._visible: dict[tuple[str, str], Visible] = {}

    def authenticate(self, token: str) -> Peer:
        """Who the token names. Raises `Denied`."""
        return self._tokens.verify(token)

    def authorize(self, peer: Peer, topic: str, token: str) -> Access:
        """Whether the peer, or a further token for this subscription, may follow the topic. Raises `Denied`."""
        expires_at = None
        if token:
            peer = self._tokens.verify(token)
            expires_at = peer.expires_at
        kind, _, name = topic.partition(":")
        if kind == "customer" and name:
            if peer.customer != name:
                raise Denied("this token does not open that customer")
            return Access(self.client.keyspace.customer(name), self._visible_to(peer), expires_at)
        if kind == "queue" and name:
            if peer.role != "agent":
                raise Denied("only agents may follow a queue")
            return Access(self.client.keyspace.queue(name), _all, expires_at)
        raise UNKNOWN_TOPIC

    async def read(self, access: Access, after: Position) -> Page:
        return await self.client.services.link.execute(read_log(access.keys, after))

    async def rpc(self, peer: Peer, method: str, data: bytes) -> bytes:
        if method not in self.operations.methods and method not in self.app.actions:
            raise METHOD_NOT_FOUND
        return await self.operations.call(peer, method, data)

    async def until_closed(self) -> None:
        """Waits for ever: whoever serves cancels it."""
        await asyncio.Event().wait()

    def _visible_to(self, peer: Peer) -> Visible:
        """A state's or collection's events go to the channels that may read it; identities and sessions are for agents only."""
        key = (peer.channel, peer.role)
        found = self._visible.get(key)
        if found is None:
            found = self._visible[key] = _visible_on(self.app, peer.channel, agent=peer.role == "agent")
        return found


def _all(publication: Publication) -> bool:  # noqa: ARG001 - every subscriber sees every event of a queue
    return True


def _visible_on(app: App, channel: str, *, agent: bool) -> Visible:
    readable = {name for name in (*app.states, *app.collections) if app.may_read(name, channel)}

    def visible(publication: Publication) -> bool:
        subject = publication.subject
        if subject is not None:
            return subject in readable
        return agent or not publication.event.startswith((b'{"type":"session.', b'{"type":"identity.'))

    return visible
