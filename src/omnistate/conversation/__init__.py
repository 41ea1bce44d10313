"""Conversations, their owners, and the queues in which they wait."""

from omnistate.conversation._api import Conversation, Queue, start_conversation
from omnistate.conversation._model import CUSTOMER, Author, Message, Owner, Status, Waiting

__all__ = [
    "CUSTOMER",
    "Author",
    "Conversation",
    "Message",
    "Owner",
    "Queue",
    "Status",
    "Waiting",
    "start_conversation",
]
