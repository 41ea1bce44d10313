"""A story that calls every server-side function."""

from __future__ import annotations

from datetime import timedelta

import omnistate
from omnistate import Client
from shop import Cart


async def everything(omni: Client, who: str) -> None:
    """At least one call of each function."""
    ana = await omni.identify("web", "ana" + who)
    await ana.link("mobile", "ana" + who)
    cart = ana.state(Cart)
    await cart.update(Cart.add, "cup")
    await cart.increment("visits")
    await cart.remove("items", "cup")
    await cart.set(Cart(note="x"))
    await cart.delete()
    await cart.patch(note="y")
    session = await ana.start_session("web", idle=timedelta(minutes=5))
    await session.touch()
    await session.end()
    talk = await ana.start_conversation("web")
    await talk.say(omnistate.CUSTOMER, "help")
    await talk.messages()
    await talk.hand_off("agents", reason="r", by="bot")
    ticket = await omni.queue("agents").claim("maria")
    assert ticket is not None
    await ticket.say("maria", "hi")
    await omni.queue("agents").waiting()
    ben = await omni.identify("web", "ben" + who)
    await ben.state(Cart).update(Cart.add, "pot")
    await ana.merge(ben)
    await ana.identities()
