"""`omnistate demo --script`: the story of the demo, by real clients over real sockets, with measured times."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from omnistate.demo._server import DemoBackend

WITHIN = 2.0  # seconds in which every other channel must have seen a step


class Viewer:
    """A client on one channel: follows the customer, calls actions, and remembers when it saw what."""

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.events: list[tuple[float, dict[str, Any]]] = []
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._news = asyncio.Condition()
        self._next = 0
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None

    async def open(self, url: str, token: str, *topics: str) -> None:
        self._socket = await connect(url, compression=None)
        self._reader = asyncio.create_task(self._read())
        await self._command("connect", {"token": token})
        for topic in topics:
            await self.follow(topic)

    async def follow(self, topic: str, token: str = "") -> None:
        await self._command("subscribe", {"channel": topic, "token": token})

    async def call(self, method: str, data: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = (await self._command("rpc", {"method": method, "data": data}))["data"]
        return result

    async def sees(self, wanted: Callable[[dict[str, Any]], bool], since: float) -> float | None:
        """Milliseconds from `since` until an event that is wanted arrived; None when none came in time."""
        try:
            async with asyncio.timeout(WITHIN), self._news:
                while True:
                    for at, event in self.events:
                        if at >= since and wanted(event):
                            return (at - since) * 1000
                    await self._news.wait()
        except TimeoutError:
            return None

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        if self._socket is not None:
            await self._socket.close()

    async def _command(self, kind: str, request: dict[str, Any]) -> dict[str, Any]:
        assert self._socket is not None
        self._next += 1
        future = self._replies[self._next] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({"id": self._next, kind: request}))
        reply = await asyncio.wait_for(future, WITHIN)
        if "error" in reply:
            raise RuntimeError(f"{self.channel}: {kind} was refused: {reply['error']['message']}")
        result: dict[str, Any] = reply[kind]
        return result

    async def _read(self) -> None:
        assert self._socket is not None
        async for frame in self._socket:
            at = time.perf_counter()
            for line in str(frame, "utf-8").splitlines() if isinstance(frame, bytes) else frame.splitlines():
                message = json.loads(line)
                if not message:
                    await self._socket.send("{}")
                elif "id" in message:
                    self._replies.pop(message["id"]).set_result(message)
                elif "pub" in message.get("push", {}):
                    async with self._news:
                        self.events.append((at, message["push"]["pub"]["data"]))
                        self._news.notify_all()


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the story, and when each other channel had seen it (None: not in time)."""

    channel: str
    text: str
    seen: dict[str, float | None]

    @property
    def complete(self) -> bool:
        return all(milliseconds is not None for milliseconds in self.seen.values())


def read_state(base: str, token: str, state: str) -> dict[str, Any]:
    """A state with its position, over HTTP."""
    url = f"{base}/v1/customers/me/states/{state}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})  # noqa: S310 - our own server
    with urllib.request.urlopen(request, timeout=WITHIN) as answer:  # noqa: S310 - on this machine
        found: dict[str, Any] = json.load(answer)
        return found


class Story:
    """Plays the steps one after the other."""

    def __init__(self, backend: DemoBackend, port: int, tell: Callable[[Step], None]) -> None:
        self._backend, self._tell = backend, tell
        self._base = f"http://127.0.0.1:{port}"
        self._socket = f"ws://127.0.0.1:{port}/connection/websocket"
        self.steps: list[Step] = []

    async def play(self) -> bool:
        """Whether every step was seen by all in time."""
        started: Any = await self._backend.start("visitor-of-the-script")
        tokens, topic = started["tokens"], f"customer:{started['customer']}"
        web, mobile, whatsapp, desk = (Viewer(name) for name in ("web", "mobile", "whatsapp", "agent desk"))
        viewers = [web, mobile, whatsapp, desk]
        try:
            for viewer in (web, mobile, whatsapp):
                await viewer.open(self._socket, tokens[viewer.channel], topic)
            await desk.open(self._socket, tokens["agent desk"], "queue:agents")
            await self._customer_alone(web, mobile, whatsapp)
            await self._with_an_agent(web, mobile, whatsapp, desk, topic)
        finally:
            for viewer in viewers:
                await viewer.close()
        return all(step.complete for step in self.steps)

    async def _customer_alone(self, web: Viewer, mobile: Viewer, whatsapp: Viewer) -> None:
        def has(sku: str) -> Callable[[dict[str, Any]], bool]:
            return lambda event: sku in event.get("put", {}).get("items", {})

        await self._step(
            web,
            "puts an espresso cup into the cart",
            "Cart.add",
            {"sku": "espresso-cup"},
            has("espresso-cup"),
            mobile,
            whatsapp,
        )
        await self._step(mobile, "adds a moka pot", "Cart.add", {"sku": "moka-pot"}, has("moka-pot"), web, whatsapp)

    async def _with_an_agent(self, web: Viewer, mobile: Viewer, whatsapp: Viewer, desk: Viewer, topic: str) -> None:
        def says(text: str) -> Callable[[dict[str, Any]], bool]:
            return lambda event: event["type"] == "message" and text in event["text"]

        talk = (await whatsapp.call("conversation.start", {}))["conversation"]

        def message(text: str) -> dict[str, Any]:
            return {"conversation": talk, "text": text}

        await self._step(
            whatsapp, "asks for help; the bot answers", "conversation.say", message("Hello, help!"),
            says("Hello! I can"), web, mobile,
        )  # fmt: skip
        await self._step(
            whatsapp, "asks for a person; joins the queue", "conversation.say", message("A person, please"),
            lambda event: event["type"] in ("conversation.handed_off", "queue.waiting"), web, mobile, desk,
        )  # fmt: skip
        began = time.perf_counter()
        claimed = await desk.call("queue.claim", {"queue": "agents"})
        if claimed["conversation"] != talk:
            raise RuntimeError("the agent was given another conversation")
        await desk.follow(topic, claimed["token"])
        agent = Viewer("agent desk")
        await agent.open(self._socket, claimed["token"])
        cart = await asyncio.to_thread(read_state, self._base, claimed["token"], "Cart")
        told = await agent.call("conversation.messages", {"conversation": talk})
        whole = len(told["messages"]) == 4 and cart["value"]["items"] == {"espresso-cup": 1, "moka-pot": 1}
        took = (time.perf_counter() - began) * 1000
        self._add(Step("agent desk", "takes over: has cart and whole talk", {"agent desk": took if whole else None}))
        await self._step(
            agent, "answers the customer", "conversation.say", message("Hi Ana, I can see your cart."),
            says("Hi Ana"), web, mobile, whatsapp,
        )  # fmt: skip
        await self._step(
            agent, "grants 10 % discount", "Cart.grant_discount", {"percent": 10},
            lambda event: event.get("set", {}).get("discount") == 10, web, mobile, whatsapp,
        )  # fmt: skip
        await self._step(
            web, "goes on with the agent", "conversation.say", message("Thank you!"),
            says("Thank you!"), mobile, whatsapp, desk,
        )  # fmt: skip
        await agent.close()

    async def _step(
        self,
        actor: Viewer,
        text: str,
        method: str,
        data: dict[str, Any],
        wanted: Callable[[dict[str, Any]], bool],
        *others: Viewer,
    ) -> None:
        began = time.perf_counter()
        watching = [asyncio.create_task(other.sees(wanted, began)) for other in others]
        await actor.call(method, data)
        seen = await asyncio.gather(*watching)
        self._add(Step(actor.channel, text, {other.channel: ms for other, ms in zip(others, seen, strict=True)}))

    def _add(self, step: Step) -> None:
        self.steps.append(step)
        self._tell(step)
