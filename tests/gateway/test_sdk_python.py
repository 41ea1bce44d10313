"""The real Python SDK: connects, receives, is cut off, comes back and misses nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import centrifuge
import pytest
from served import Secrets, until

from shop import Cart


class Seen(centrifuge.SubscriptionEventHandler):
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.offsets: list[int] = []
        self.subscribed: list[Any] = []

    async def on_subscribed(self, ctx: Any) -> None:
        self.subscribed.append(ctx)

    async def on_publication(self, ctx: Any) -> None:
        self.events.append(ctx.pub.data)
        self.offsets.append(ctx.pub.offset)


class Connection(centrifuge.ClientEventHandler):
    def __init__(self) -> None:
        self.codes: list[int] = []

    async def on_disconnected(self, ctx: Any) -> None:
        self.codes.append(ctx.code)


async def open_client(served: Any, token: str) -> tuple[centrifuge.Client, Connection]:
    events = Connection()
    client = centrifuge.Client(served.ws, token=token, events=events, min_reconnect_delay=0.01)
    await client.connect()
    return client, events


async def follow(client: centrifuge.Client, topic: str, token: str = "") -> Seen:
    seen = Seen()
    subscription = client.new_subscription(topic, events=seen, token=token)
    await subscription.subscribe()
    await until(lambda: seen.subscribed)
    return seen


async def test_a_change_arrives_as_a_delta_with_its_offset(served: Any) -> None:
    client, _ = await open_client(served, served.token("ana"))
    seen = await follow(client, "customer:ana")
    await served.omni.customer("ana").via("mobile").state(Cart).update(Cart.add, "cup")
    await until(lambda: seen.events)
    assert seen.events[0]["put"] == {"items": {"cup": 1}}
    assert seen.events[0]["channel"] == "mobile"
    assert seen.offsets == [1]
    await client.disconnect()


async def test_rpc_calls_an_action_and_returns_its_result(served: Any) -> None:
    client, _ = await open_client(served, served.token("ana"))
    result = await client.rpc("Cart.add", {"sku": "cup", "quantity": 3})
    assert (result.data["result"], result.data["version"]) == (3, 1)
    assert (await served.omni.customer("ana").state(Cart).get()).items == {"cup": 3}
    with pytest.raises(centrifuge.ReplyError) as caught:
        await client.rpc("Cart.add", {"sku": "cup", "quantity": "many"})
    assert caught.value.code == 400
    with pytest.raises(centrifuge.ReplyError) as caught:
        await client.rpc("Cart.nothing", {})
    assert caught.value.code == 104
    with pytest.raises(centrifuge.ReplyError) as caught:
        await client.rpc("Cart.grant", {"note": "x"})
    assert caught.value.code == 103
    await client.disconnect()


async def test_a_client_that_was_cut_off_misses_nothing_and_sees_nothing_twice(served: Any) -> None:
    cart = served.omni.customer("ana").state(Cart)
    client, _ = await open_client(served, served.token("ana"))
    seen = await follow(client, "customer:ana")
    await cart.increment("visits")
    await until(lambda: len(seen.events) == 1)
    for round_ in range(5):
        served.cut_all()
        for _ in range(20):
            await cart.increment("visits")
        await until(lambda wanted=21 + 20 * round_: len(seen.events) >= wanted)
    assert seen.offsets == list(range(1, 102))
    assert [event["set"]["visits"] for event in seen.events] == list(range(1, 102))
    await client.disconnect()


async def test_writes_during_cuts_are_all_seen_in_order(served: Any) -> None:
    cart = served.omni.customer("ana").state(Cart)
    client, _ = await open_client(served, served.token("ana"))
    seen = await follow(client, "customer:ana")

    async def cut() -> None:
        for _ in range(8):
            await asyncio.sleep(0.03)
            served.cut_all()

    cutter = asyncio.create_task(cut())
    for _ in range(250):
        await cart.increment("visits")
        await asyncio.sleep(0.001)
    await cutter
    await until(lambda: len(seen.events) >= 250)
    assert seen.offsets == list(range(1, 251))
    await client.disconnect()


async def test_a_gap_that_is_too_long_is_reported_not_hidden(served: Any) -> None:
    cart = served.omni.customer("ana").state(Cart)
    client, _ = await open_client(served, served.token("ana"))
    seen = await follow(client, "customer:ana")
    await cart.increment("visits")
    await until(lambda: seen.events)
    await client.disconnect()
    for _ in range(1200):
        await cart.increment("visits")
    await client.connect()
    await until(lambda: len(seen.subscribed) == 2)
    assert seen.subscribed[1].was_recovering
    assert not seen.subscribed[1].recovered
    await cart.increment("visits")
    await until(lambda: len(seen.events) == 2)
    assert seen.offsets == [1, 1202]
    await client.disconnect()


@pytest.mark.parametrize("token", ["nonsense", "a.b.c", ""])
async def test_a_bad_token_ends_the_connection_for_good(served: Any, token: str) -> None:
    _, events = await open_client(served, token)
    await until(lambda: events.codes)
    assert events.codes == [3500]


async def test_an_expired_token_is_asked_for_again(served: Any) -> None:
    asked: list[int] = []

    async def get_token() -> str:
        asked.append(1)
        return str(served.token("ana"))

    client = centrifuge.Client(served.ws, token=served.token("ana", lifetime=-60), get_token=get_token)
    await client.connect()
    await client.ready(timeout=5)
    assert asked == [1]
    await client.disconnect()


async def test_a_customer_cannot_follow_another_customer(served: Any) -> None:
    client, _ = await open_client(served, served.token("mallory"))
    subscription = client.new_subscription("customer:ana")
    codes: list[int] = []

    class Refused(centrifuge.SubscriptionEventHandler):
        async def on_unsubscribed(self, ctx: Any) -> None:
            codes.append(ctx.code)

    subscription.events = Refused()
    await subscription.subscribe()
    await until(lambda: codes)
    assert codes == [103]
    await client.disconnect()


async def test_an_agent_claims_with_a_token_for_that_customer_alone(served: Any) -> None:
    ana, _ = await open_client(served, served.token("ana", channel="whatsapp"))
    started = (await ana.rpc("conversation.start", {})).data
    talk = started["conversation"]
    seen = await follow(ana, "customer:ana")
    await ana.rpc("conversation.say", {"conversation": talk, "text": "a human please"})
    maria, _ = await open_client(served, served.token("maria", role="agent", channel="agent desk"))
    await follow(maria, "queue:agents")
    claimed: dict[str, Any] = {}
    while not claimed.get("conversation"):
        claimed = (await maria.rpc("queue.claim", {"queue": "agents"})).data
    assert (claimed["conversation"], claimed["customer"]) == (talk, "ana")
    with pytest.raises(centrifuge.ReplyError):
        await maria.rpc("conversation.say", {"conversation": talk, "text": "without the grant"})
    desk, _ = await open_client(served, claimed["token"])
    told = (await desk.rpc("conversation.messages", {"conversation": talk})).data
    assert [message["text"] for message in told["messages"]] == ["a human please", "I will get somebody."]
    await desk.rpc("conversation.say", {"conversation": talk, "text": "Hi Ana"})
    await until(lambda: any(event.get("text") == "Hi Ana" for event in seen.events))
    await follow(maria, "customer:ana", claimed["token"])
    for client in (ana, maria, desk):
        await client.disconnect()


async def test_events_of_a_state_go_only_to_channels_that_may_read_it(served: Any) -> None:
    web, _ = await open_client(served, served.token("ana"))
    seen = await follow(web, "customer:ana")
    desk, _ = await open_client(served, served.token("maria", role="agent", channel="agent desk", customer="ana"))
    agent = await follow(desk, "customer:ana")
    ana = served.omni.customer("ana")
    await ana.state(Secrets).patch(note="fraud?")
    await ana.state(Cart).update(Cart.add, "cup")
    await until(lambda: len(agent.events) == 2 and seen.events)
    assert [event["state"] for event in agent.events] == ["Secrets", "Cart"]
    assert [event["state"] for event in seen.events] == ["Cart"]
    for client in (web, desk):
        await client.disconnect()


async def test_a_server_that_goes_away_sends_its_clients_to_come_back(served: Any) -> None:
    from omnistate.gateway._websocket import drain

    client, events = await open_client(served, served.token("ana"))
    await client.ready(timeout=5)
    connecting: list[int] = []

    async def on_connecting(ctx: Any) -> None:
        connecting.append(ctx.code)

    events.on_connecting = on_connecting  # type: ignore[assignment]
    await drain(served.gateway, over=0.1)
    await until(lambda: connecting)
    assert connecting[0] == 3001
    await client.disconnect()
