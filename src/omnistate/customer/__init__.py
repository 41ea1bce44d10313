"""Customers and their identities."""

from omnistate.customer._api import Customer, identify
from omnistate.customer._commands import Stored, documents, list_entries
from omnistate.customer._erase import Erasure, erase_customer, list_erasures, refuse_again, resume_erasure
from omnistate.customer._erase_commands import check as check_erased
from omnistate.customer._export import CustomerExport
from omnistate.customer._flows import imported_classes
from omnistate.customer._identity import ASSERTED, VERIFIED, Confidence, Identity
from omnistate.customer._manifest import Manifest, verify_export
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
    "CustomerExport",
    "DocumentChanges",
    "Erasure",
    "Event",
    "Found",
    "Identity",
    "Manifest",
    "Outcome",
    "Page",
    "Policies",
    "Presented",
    "Query",
    "Stored",
    "Transaction",
    "Updated",
    "check_erased",
    "documents",
    "erase_customer",
    "identify",
    "imported_classes",
    "list_entries",
    "list_erasures",
    "recognise",
    "refuse_again",
    "resume_erasure",
    "verify_export",
]
