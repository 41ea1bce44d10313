"""The declaration: which states, actions and bots a business has, and which channels may use them."""

from omnistate.app._action import Action, action
from omnistate.app._app import App, Bot

__all__ = ["Action", "App", "Bot", "action"]
