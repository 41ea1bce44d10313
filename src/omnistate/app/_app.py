"""`App`: what of a business's state the channels may see and do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias, TypeVar

from omnistate.app._action import Action, actions_of
from omnistate.collection import Collection, collections_of
from omnistate.conversation import Conversation, Message
from omnistate.customer import ChannelPolicy, Customer
from omnistate.errors import Denied, InvalidDeclaration, InvalidInput
from omnistate.state import Keyring, State, StateHandle, Written, readers_of, schema_of

Bot: TypeAlias = Callable[[Conversation, Message], Awaitable[None]]
B = TypeVar("B", bound=Bot)


class App:
    """The states, actions and bots of an application: `app = App(Cart, Profile)`, served by `omnistate serve shop:app`.

    Collections that are fields of a state belong to it; others are named too: `App(Cart, points)`. Their events go to the
    channels that may read them. `keyring` has the keys of encrypted states, and `channels` what `connect` takes under this
    name, for the commands that connect by themselves.
    Raises `InvalidDeclaration` for what cannot work, at once rather than at the first call.
    """

    def __init__(
        self,
        *states: type[Any] | Collection[Any, Any],
        title: str = "omnistate",
        keyring: Keyring | None = None,
        channels: Mapping[str, ChannelPolicy] | None = None,
    ) -> None:
        self.title, self.keyring, self.channels = title, keyring, channels
        self.collections: dict[str, Collection[Any, Any]] = {}
        self.states: dict[str, type[State]] = {}
        self.actions: dict[str, Action] = {}
        self.bots: dict[str, Bot] = {}
        for kind in states:
            if isinstance(kind, Collection):
                self._name_once(kind.name)
                self.collections[kind.name] = kind
                continue
            name = schema_of(kind).name
            self.collections.update({one.name: one for one in collections_of(kind)})
            self._name_once(name)
            self.states[name] = kind
            self.actions.update({one.name: one for one in actions_of(kind)})

    def _name_once(self, name: str) -> None:
        if name in self.states or name in self.collections:
            raise InvalidDeclaration(f"two states or collections are called {name}: give one another, name=...")

    def bot(self, name: str) -> Callable[[B], B]:
        """Registers what answers for the helper `name`: called with each message of a customer whose conversation it owns.

        It runs in the gateway that took the message, after the message is stored. An answer given after the conversation
        moved on to somebody else is refused with `OwnershipLost`.
        """

        def register(function: B) -> B:
            if name in self.bots:
                raise InvalidDeclaration(f"there are two bots called {name!r}")
            self.bots[name] = function
            return function

        return register

    def state(self, customer: Customer, name: str, *, channel: str) -> StateHandle[Any]:
        """The customer's state of this name, if this channel may read it. Raises `InvalidInput`, `Denied`."""
        kind = self.states.get(name)
        if kind is None:
            raise InvalidInput(f"there is no state {name[:64]!r}; this app has {', '.join(self.states)}")
        if not self.may_read(name, channel):
            raise Denied(f"the channel {channel!r} may not read {name}")
        return customer.state(kind)

    def may_read(self, name: str, channel: str) -> bool:
        kind, collection = self.states.get(name), self.collections.get(name)
        if collection is not None:
            of_state = name.partition(".")[0]
            readers = collection.channels
            return (readers is None or channel in readers) and (of_state == name or self.may_read(of_state, channel))
        if kind is None:
            return False
        readers = readers_of(kind)
        return readers is None or channel in readers

    def action(self, name: str, *, channel: str) -> Action:
        """The action of this name, if this channel may call it. Raises `InvalidInput`, `Denied`."""
        found = self.actions.get(name)
        if found is None:
            known = ", ".join(self.actions) or "none"
            raise InvalidInput(f"there is no action {name[:64]!r}; this app has {known}")
        if not found.allows(channel) or not self.may_read(found.name.partition(".")[0], channel):
            raise Denied(f"the channel {channel!r} may not call {name}")
        return found

    async def call(
        self, customer: Customer, name: str, data: bytes, *, channel: str, operation_id: str | None = None
    ) -> Written[Any, Any]:
        """Runs an action with JSON arguments. Usually one round trip. Raises what the action raises."""
        found = self.action(name, channel=channel)
        arguments = found.decode(data)
        handle = customer.state(found.kind)
        if operation_id is None:
            return await handle.update(found.function, **arguments)
        return await handle.update_once(operation_id, found.function, **arguments)
