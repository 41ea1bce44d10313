"""Customers and their identities."""

from omnistate.customer._api import Customer, Event, Updated, identify
from omnistate.customer._commands import Identity, Stored, documents
from omnistate.customer._flows import imported_classes
from omnistate.customer._query import Found, Page, Query
from omnistate.customer._transaction import DocumentChanges, Outcome, Transaction

__all__ = [
    "Customer",
    "DocumentChanges",
    "Event",
    "Found",
    "Identity",
    "Outcome",
    "Page",
    "Query",
    "Stored",
    "Transaction",
    "Updated",
    "documents",
    "identify",
    "imported_classes",
]
