"""The shop of the demo: the whole of what a business declares."""

from __future__ import annotations

from datetime import timedelta

import omnistate
from omnistate import App, Conversation, Message, State

PRICES = {"espresso-cup": 1200, "moka-pot": 3900, "beans": 1450, "grinder": 8900}  # in cents


class Cart(State, ttl=timedelta(days=7)):
    """What the customer is about to buy."""

    items: dict[str, int] = {}
    discount: int = 0

    @omnistate.action
    def add(self, sku: str, quantity: int = 1) -> None:
        """Put something into the cart."""
        if sku not in PRICES:
            raise omnistate.InvalidValue(f"the shop has no {sku[:40]!r}; it has {', '.join(PRICES)}")
        if not 1 <= quantity <= 99:
            raise omnistate.InvalidValue("quantity must be between 1 and 99")
        self.items[sku] = self.items.get(sku, 0) + quantity

    @omnistate.action
    def remove(self, sku: str) -> None:
        """Take one piece out of the cart."""
        left = self.items.get(sku, 0) - 1
        if left > 0:
            self.items[sku] = left
        else:
            self.items.pop(sku, None)

    @omnistate.action(channels={"agent desk"})
    def grant_discount(self, percent: int) -> None:
        """Give a discount. Only for agents."""
        if not 0 <= percent <= 30:
            raise omnistate.InvalidValue("a discount is between 0 and 30 percent")
        self.discount = percent

    def merge(self, other: Cart) -> None:
        for sku, quantity in other.items.items():
            self.items[sku] = self.items.get(sku, 0) + quantity


app = App(Cart, title="The cup shop")


@app.bot("bot")
async def helper(talk: Conversation, message: Message) -> None:
    """A bot of a few lines: what it cannot answer it hands to a person, with everything that was said."""
    words = message.text.lower()
    if any(word in words for word in ("person", "human", "agent", "someone", "refund", "discount")):
        await talk.say("bot", "I'll get somebody for you. They will see your cart and what we said.")
        await talk.hand_off("agents", reason="the customer asked for a person", by="bot")
    elif any(word in words for word in ("hi", "hello", "help")):
        await talk.say("bot", "Hello! I can answer simple questions, or get you a person.")
    elif "deliver" in words or "ship" in words:
        await talk.say("bot", "We deliver within two days.")
    else:
        await talk.say("bot", "I am only a small bot. Shall I get you a person?")
