"""Conversations, their owners, and the queues in which they wait."""

from omnistate.conversation._api import Conversation, Queue, start_conversation
from omnistate.conversation._commands import queues_of
from omnistate.conversation._flows import forget_in_queue
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
    "forget_in_queue",
    "queues_of",
    "start_conversation",
]
