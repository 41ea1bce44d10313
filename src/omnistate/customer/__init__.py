"""Customers and their identities."""

from omnistate.customer._api import Customer, identify
from omnistate.customer._commands import Stored, documents
from omnistate.customer._flows import imported_classes
from omnistate.customer._identity import ASSERTED, VERIFIED, Confidence, Identity
from omnistate.customer._model import Event, Updated
from omnistate.customer._outcome import Outcome
from omnistate.customer._policy import PLACEHOLDERS, ChannelPolicy, Policies
from omnistate.customer._query import Query
from omnistate.customer._recognition import Presented, recognise
from omnistate.customer._search import Found, Page
from omnistate.customer._transaction import DocumentChanges, Transaction

__all__ = [
    "ASSERTED",
    "PLACEHOLDERS",
    "VERIFIED",
    "ChannelPolicy",
    "Confidence",
    "Customer",
    "DocumentChanges",
    "Event",
    "Found",
    "Identity",
    "Outcome",
    "Page",
    "Policies",
    "Presented",
    "Query",
    "Stored",
    "Transaction",
    "Updated",
    "documents",
    "identify",
    "imported_classes",
    "recognise",
]
