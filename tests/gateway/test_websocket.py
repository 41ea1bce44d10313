"""The socket itself: order, bounds, origins, deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from served import Served, until
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

import omnistate
from omnistate.gateway import Limits
from omnistate.gateway._hub import Publication
from shop import Cart


@asynccontextmanager
async def socket(served: Served, **options: Any) -> AsyncIterator[ClientConnection]:
    async with connect(served.ws, compression=None, **options) as opened:
        yield opened


async def say(opened: ClientConnection, *commands: dict[str, Any]) -> None:
    await opened.send("\n".join(json.dumps(command) for command in commands))


async def hear(opened: ClientConnection) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(await asyncio.wait_for(opened.recv(), 5))
    return said


async def closed(opened: ClientConnection) -> tuple[int, str]:
    try:
        while True:
            await asyncio.wait_for(opened.recv(), 5)
    except ConnectionClosed as end:
        assert end.rcvd is not None
        return end.rcvd.code, end.rcvd.reason


async def test_commands_of_one_frame_are_answered_in_order(served: Served) -> None:
    async with socket(served) as opened:
        rpcs = [{"id": n, "rpc": {"method": "Cart.add", "data": {"sku": "cup"}}} for n in range(3, 40)]
        await say(opened, {"id": 1, "connect": {"token": served.token("ana")}},
                  {"id": 2, "subscribe": {"channel": "customer:ana"}}, *rpcs)  # fmt: skip
        replies, pushed = [], 0
        while len(replies) < 39:
            message = await hear(opened)
            if "id" in message:
                replies.append(message)
            else:
                assert len(replies) >= 2, "a push came before the subscribe reply"
                pushed += 1
        assert [message["id"] for message in replies] == list(range(1, 40))
        assert [message["rpc"]["data"]["result"] for message in replies[2:]] == list(range(1, 38))
        assert pushed <= 37


@pytest.mark.parametrize(
    "frames",
    [
        ['{"id":1,"rpc":{}}'],
        ['{"id":1,"subscribe":{"channel":"customer:ana"}}'],
        ["{}"],
        [""],
        ["nonsense"],
        ['{"id":0,"connect":{}}'],
        ["CONNECT", '{"id":2,"connect":{}}'],
        ["CONNECT", "{}"],
    ],
)
async def test_what_breaks_the_protocol_closes_with_3501(served: Served, frames: list[str]) -> None:
    async with socket(served) as opened:
        for frame in frames:
            token = served.token("ana")
            await opened.send(frame if frame != "CONNECT" else json.dumps({"id": 1, "connect": {"token": token}}))
        assert await closed(opened) == (3501, "bad request")


async def test_refusals_of_subscriptions(served: Served) -> None:
    async with socket(served) as opened:
        await say(opened, {"id": 1, "connect": {"token": served.token("ana")}})
        await hear(opened)
        for number, (topic, code) in enumerate(
            [("customer:ben", 103), ("queue:agents", 103), ("nonsense", 102), ("customer:", 102), ("x" * 700, 106)], 2
        ):
            await say(opened, {"id": number, "subscribe": {"channel": topic}})
            assert (await hear(opened))["error"]["code"] == code
        await say(opened, {"id": 50, "subscribe": {"channel": "customer:ana"}})
        assert (await hear(opened))["subscribe"]["recoverable"]
        await say(opened, {"id": 51, "subscribe": {"channel": "customer:ana"}})
        assert (await hear(opened))["error"]["code"] == 105
        for kind, code in (("publish", 103), ("presence", 108), ("presence_stats", 108)):
            await say(opened, {"id": 52, kind: {"channel": "customer:ana"}})
            assert (await hear(opened))["error"]["code"] == code
        await say(opened, {"id": 53, "unsubscribe": {"channel": "customer:ana"}})
        assert await hear(opened) == {"id": 53, "unsubscribe": {}}
        await say(opened, {"send": {"data": {}}})
        assert await closed(opened) == (3508, "not available")


async def test_recovery_from_a_position_that_never_was_is_not_pretended(served: Served) -> None:
    await served.omni.customer("ana").state(Cart).increment("visits")
    async with socket(served) as opened:
        await say(opened, {"id": 1, "connect": {"token": served.token("ana")}})
        await hear(opened)
        for number, (epoch, offset, flag) in enumerate([("_", 0, 0), ("abc", 1, 0), ("", 99, 0)], 2):
            request = {"channel": "customer:ana", "recover": True, "epoch": epoch, "offset": offset, "flag": flag}
            await say(
                opened, {"id": number, "subscribe": request}, {"id": 90, "unsubscribe": {"channel": "customer:ana"}}
            )
            result = (await hear(opened))["subscribe"]
            assert (result["was_recovering"], result["recovered"], result["offset"]) == (True, False, 1)
            assert "publications" not in result
            await hear(opened)
        refuse = {"channel": "customer:ana", "recover": True, "epoch": "abc", "offset": 1, "flag": 2}
        await say(opened, {"id": 9, "subscribe": refuse})
        assert (await hear(opened))["error"]["code"] == 112


async def test_history_is_read_after_a_position(served: Served) -> None:
    cart = served.omni.customer("ana").state(Cart)
    for _ in range(5):
        await cart.increment("visits")
    async with socket(served) as opened:
        await say(
            opened,
            {"id": 1, "connect": {"token": served.token("ana")}},
            {"id": 2, "subscribe": {"channel": "customer:ana"}},
        )
        await hear(opened)
        epoch = (await hear(opened))["subscribe"]["epoch"]
        since = {"offset": 2, "epoch": epoch}
        await say(opened, {"id": 3, "history": {"channel": "customer:ana", "limit": -1, "since": since}})
        assert [one["offset"] for one in (await hear(opened))["history"]["publications"]] == [3, 4, 5]
        await say(opened, {"id": 4, "history": {"channel": "customer:ana", "limit": 0}})
        assert (await hear(opened))["history"] == {"publications": [], "epoch": epoch, "offset": 5}


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("SAME", True),
        ("null", False),
        ("http://evil.example", False),
        ("http://127.0.0.1.evil.example", False),
        (None, True),
    ],
)
async def test_only_pages_of_the_same_host_may_connect(served: Served, origin: str | None, allowed: bool) -> None:
    origin = served.http if origin == "SAME" else origin
    if allowed:
        async with socket(served, origin=origin):
            pass
    else:
        with pytest.raises(InvalidStatus) as caught:
            async with socket(served, origin=origin):
                pass
        assert caught.value.response.status_code == 403


async def test_an_empty_subprotocol_header_is_accepted(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(
        b"GET /connection/websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: \r\n\r\n"
    )
    assert b" 101 " in await reader.readline()
    writer.transport.abort()


async def test_other_paths_are_told_where_the_socket_is(served: Served) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with connect(served.ws + "/x"):
            pass
    assert caught.value.response.status_code == 404


async def test_a_message_that_is_too_large_closes(served: Served) -> None:
    async with socket(served) as opened:
        await opened.send("x" * 70_000)
        assert (await closed(opened))[0] == 1009


async def test_fragments_make_one_message(served: Served) -> None:
    async with socket(served) as opened:
        text = json.dumps({"id": 1, "connect": {"token": served.token("ana")}})
        await opened.send([text[:10], text[10:40], text[40:]])
        assert (await hear(opened))["connect"]["client"]


class TestWithShortDeadlines:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(connect_within=0.15, ping_every=0.1, pong_within=0.1, token_grace=0.1, queue_size=40_000)

    async def test_who_never_connects_is_cut(self, served: Served) -> None:
        async with socket(served) as opened:
            assert await closed(opened) == (3502, "stale")

    async def test_who_does_not_answer_a_ping_is_cut(self, served: Served) -> None:
        async with socket(served) as opened:
            await say(opened, {"id": 1, "connect": {"token": served.token("ana")}})
            assert await closed(opened) == (3012, "no pong")

    async def test_who_answers_stays(self, served: Served) -> None:
        async with socket(served) as opened:
            await say(opened, {"id": 1, "connect": {"token": served.token("ana")}})
            await hear(opened)
            for _ in range(5):
                assert await hear(opened) == {}
                await opened.send("{}")

    async def test_a_token_that_is_not_refreshed_ends_the_connection(self, served: Served) -> None:
        async with socket(served) as opened:
            await say(opened, {"id": 1, "connect": {"token": served.token("ana", lifetime=1)}})
            assert (await hear(opened))["connect"]["ttl"] == 1
            said = await hear(opened)
            while True:
                try:
                    if said == {}:
                        await opened.send("{}")
                    said = await hear(opened)
                except ConnectionClosed as end:
                    assert end.rcvd is not None
                    assert (end.rcvd.code, end.rcvd.reason) == (3005, "connection expired")
                    return

    async def test_a_refresh_must_name_the_same_user(self, served: Served) -> None:
        async with socket(served) as opened:
            await say(opened, {"id": 1, "connect": {"token": served.token("ana")}})
            await hear(opened)
            await say(opened, {"id": 2, "refresh": {"token": served.token("ana", lifetime=99)}},
                      {"id": 3, "refresh": {"token": served.token("ben")}})  # fmt: skip
            replies = []
            while len(replies) < 2:
                message = await hear(opened)
                replies += [message] if "id" in message else []
            assert replies[0]["refresh"]["expires"]
            assert replies[1]["error"]["code"] == 103

    async def test_a_reader_that_does_not_read_is_cut_and_nobody_else_suffers(self, served: Served) -> None:
        cart = served.omni.customer("ana").state(Cart)
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=2**10)
        writer.write(
            b"GET /connection/websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        frame = json.dumps({"id": 1, "connect": {"token": served.token("ana")}}) + "\n"
        frame += json.dumps({"id": 2, "subscribe": {"channel": "customer:ana"}})
        body = frame.encode()
        writer.write(b"\x81\xfe" + len(body).to_bytes(2, "big") + b"\0\0\0\0" + body)
        await reader.readuntil(b'"subscribe"')
        assert len(served.gateway.connections) == 1
        for number in range(2000):
            await cart.patch(note=f"{number}" * 2000)
            if not served.gateway.connections:
                break
        await until(lambda: not served.gateway.connections, seconds=10)  # it is given 5 s to answer the close
        writer.transport.abort()


class TestTokensOfSubscriptions:
    """An agent's connection names no customer; the token that came with a claim opens one topic."""

    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(token_grace=0.2)

    async def agent(self, served: Served, opened: ClientConnection) -> None:
        await say(opened, {"id": 1, "connect": {"token": served.token("maria", role="agent")}})
        await hear(opened)

    def grant(self, served: Served, lifetime: int, customer: str = "ana") -> str:
        return served.token("maria", role="agent", customer=customer, lifetime=lifetime)

    async def test_it_says_when_the_token_ends_and_ends_with_it(self, served: Served) -> None:
        async with socket(served) as opened:
            await self.agent(served, opened)
            topic = {"channel": "customer:ana", "token": self.grant(served, 1)}
            await say(opened, {"id": 2, "subscribe": topic}, {"id": 3, "history": {"channel": "customer:ana"}})
            result = (await hear(opened))["subscribe"]
            assert (result["expires"], result["ttl"]) == (True, 1)
            assert (await hear(opened))["history"]["publications"] == []
            ended = await hear(opened)
            assert ended["push"] == {"channel": "customer:ana", "unsubscribe": {"code": 2501, "reason": "expired"}}
            await served.omni.customer("ana").state(Cart).increment("visits")
            await say(opened, {"id": 4, "ping": {}})
            assert await hear(opened) == {"id": 4, "ping": {}}  # and no publication before it

    async def test_a_refreshed_one_goes_on(self, served: Served) -> None:
        async with socket(served) as opened:
            await self.agent(served, opened)
            await say(opened, {"id": 2, "subscribe": {"channel": "customer:ana", "token": self.grant(served, 1)}})
            await hear(opened)
            for number, (token, code) in enumerate(
                [(self.grant(served, 60, "ben"), 103), (self.grant(served, -60), 109), ("nonsense", 103)], 3
            ):
                await say(opened, {"id": number, "sub_refresh": {"channel": "customer:ana", "token": token}})
                assert (await hear(opened))["error"]["code"] == code
            await say(opened, {"id": 9, "sub_refresh": {"channel": "customer:ana", "token": self.grant(served, 60)}})
            assert (await hear(opened))["sub_refresh"]["expires"] is True
            await asyncio.sleep(1.4)  # the first token's end and its grace
            await served.omni.customer("ana").state(Cart).increment("visits")
            assert (await hear(opened))["push"]["pub"]["offset"] == 1

    async def test_an_expired_one_is_told_so_that_the_sdk_gets_another(self, served: Served) -> None:
        async with socket(served) as opened:
            await self.agent(served, opened)
            await say(opened, {"id": 2, "subscribe": {"channel": "customer:ana", "token": self.grant(served, -60)}})
            assert (await hear(opened))["error"]["code"] == 109


async def test_who_leaves_while_joining_does_not_take_others_along(served: Served) -> None:
    class Follower:
        def __init__(self) -> None:
            self.offsets: list[int] = []

        def deliver(self, epoch: str, publication: Publication) -> None:
            self.offsets.append(publication.offset)

        def lose(self) -> None:
            raise AssertionError("nothing was lost")

    hub, keys = served.gateway.hub, served.omni.keyspace.customer("ana")
    leaver, stayer = Follower(), Follower()
    joining = [asyncio.create_task(hub.join("customer:ana", keys, one)) for one in (leaver, stayer)]
    await asyncio.sleep(0)  # both have begun, and neither is there
    joining[0].cancel()
    _, leave = await asyncio.wait_for(joining[1], 5)
    await served.omni.customer("ana").state(Cart).increment("visits")
    await until(lambda: stayer.offsets == [1])
    assert leaver.offsets == []
    leave()
    position, leave = await asyncio.wait_for(hub.join("customer:ana", keys, stayer), 5)
    assert position.offset == 1
    leave()


# What a hostile client may try before it has shown a token.


async def raw_socket(served: Served, head: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(head)
    return reader, writer


def upgrade(served: Served, **headers: str) -> bytes:
    said = {"Host": f"127.0.0.1:{served.port}", "Upgrade": "websocket", "Connection": "Upgrade"}
    said |= {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="} | headers
    lines = "".join(f"{name}: {value}\r\n" for name, value in said.items())
    return f"GET /connection/websocket HTTP/1.1\r\n{lines}\r\n".encode()


def masked(opcode: int, payload: bytes, *, last: bool = True) -> bytes:
    assert len(payload) < 126
    return bytes([opcode | 0x80 * last, 0x80 | len(payload), 0, 0, 0, 0]) + payload


@pytest.mark.parametrize("piece", [b"X-n: 1\r\n" * 500, b"a" * 4096])
async def test_an_endless_head_is_cut(served: Served, piece: bytes) -> None:
    _, writer = await raw_socket(served, b"GET /" if piece[0:1] == b"a" else b"GET / HTTP/1.1\r\n")
    with pytest.raises(ConnectionError):
        for _ in range(2000):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
    writer.transport.abort()


async def test_a_head_that_never_ends_is_cut(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnistate.gateway._bounded_http.HEAD_WITHIN", 0.1)
    for head in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n"):
        reader, writer = await raw_socket(served, head)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.transport.abort()


async def test_pings_whose_answers_are_not_read_are_cut(served: Served) -> None:
    reader, writer = await raw_socket(served, upgrade(served))
    assert b" 101 " in await reader.readline()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    flood = masked(0x9, b"x" * 125) * 500
    with pytest.raises(ConnectionError):
        for _ in range(2000):
            writer.write(flood)
            await writer.drain()
    assert not served.gateway.connections


async def test_endless_empty_fragments_are_cut(served: Served) -> None:
    for piece in (b"", b"x"):
        reader, writer = await raw_socket(served, upgrade(served))
        assert b" 101 " in await reader.readline()
        writer.write(masked(0x1, piece, last=False) + masked(0x0, piece, last=False) * 3000)
        [client] = served.gateway.connections or [None]
        if piece:
            await until(lambda: not served.gateway.connections)
        elif client is not None:
            await asyncio.sleep(0.1)
            assert not client._transport._fragments  # type: ignore[attr-defined]
        writer.transport.abort()
        await until(lambda: not served.gateway.connections)


@pytest.mark.parametrize("origin", ["http://[", "http://evil.example", "null", "http://127.0.0.1:1"])
async def test_a_strange_origin_is_refused_and_leaves_nothing(served: Served, origin: str) -> None:
    reader, writer = await raw_socket(served, upgrade(served, Origin=origin))
    assert b" 403 " in await reader.readline()
    writer.transport.abort()
    async with socket(served) as opened:  # and the server goes on
        await say(opened, {"id": 1, "connect": {"token": served.token("ana")}})
        assert (await hear(opened))["id"] == 1


async def test_who_closes_and_stops_reading_is_freed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnistate.gateway._websocket._CLOSE_WITHIN", 0.1)
    reader, writer = await raw_socket(served, upgrade(served))
    assert b" 101 " in await reader.readline()
    writer.write(masked(0x8, b"\x03\xe8"))
    await until(lambda: not served.gateway.connections)
    writer.transport.abort()


class TestHosts:
    async def test_a_name_that_another_page_gave_this_machine_is_refused(self, served: Served) -> None:
        served.gateway.hosts = ("localhost", "127.0.0.1", "::1")
        for host, status in (
            ("evil.example", b" 403 "),
            ("[", b" 403 "),
            ("localhost:1", b" 101 "),
            ("[::1]:8", b" 101 "),
        ):
            reader, writer = await raw_socket(served, upgrade(served, Host=host))
            assert status in await reader.readline(), host
            writer.transport.abort()


async def test_a_slow_reader_sees_no_gap_before_it_is_closed(served: Served) -> None:
    class Socket:
        written = b""

        def get_write_buffer_size(self) -> int:
            return 10

        def write(self, data: bytes) -> None:
            self.written += data

        def is_closing(self) -> bool:
            return False

        def abort(self) -> None: ...

    async with socket(served) as opened:
        await say(opened, {"id": 1, "connect": {"token": served.token("ana")}})
        await hear(opened)
        [client] = served.gateway.connections
        transport: Any = client._transport
        real, transport._socket = transport._socket, Socket()
        transport.write(b"first")
        transport.write(b"x" * (2 * 1024 * 1024))  # too much behind it
        transport.write(b"after the gap")
        transport._flush()
        assert transport._socket.written == b""
        transport._socket = real


async def test_one_large_answer_alone_is_not_slowness(served: Served) -> None:
    talk = await served.omni.customer("ana").start_conversation("web", owner="nobody")
    for _ in range(50):
        await talk.say(omnistate.CUSTOMER, "x" * 32_000)
    async with socket(served, max_size=None) as opened:
        await say(opened, {"id": 1, "connect": {"token": served.token("ana")}})
        await hear(opened)
        await say(opened, {"id": 2, "rpc": {"method": "conversation.messages", "data": {"conversation": talk.id}}})
        assert len((await hear(opened))["rpc"]["data"]["messages"]) == 50
        recover = {"channel": "customer:ana", "recover": True, "epoch": "", "offset": 0}
        await say(opened, {"id": 3, "subscribe": recover})
        assert len((await hear(opened))["subscribe"]["publications"]) == 51


async def test_a_refused_refresh_does_not_prolong_anything(served: Served) -> None:
    async with socket(served) as opened:
        grant = served.token("maria", role="agent", customer="ana", lifetime=30)
        await say(opened, {"id": 1, "connect": {"token": grant}})
        await hear(opened)
        [client] = served.gateway.connections
        before = client._timers["token"].when()
        await say(opened, {"id": 2, "refresh": {"token": served.token("maria", role="agent", lifetime=3600)}})
        assert (await hear(opened))["error"]["code"] == 103
        assert client._timers["token"].when() == before
