"""Collections: maps, lists, sets, sorted sets, counters and work queues, versioned and evented like documents."""

from omnistate.collection._api import (
    CollectionHandle,
    CounterHandle,
    Item,
    ListHandle,
    MapHandle,
    Place,
    SetHandle,
    SortedSetHandle,
    UniqueCounterHandle,
    WorkQueueHandle,
    open_collection,
)
from omnistate.collection._change import CollectionChange
from omnistate.collection._commands import own_keys
from omnistate.collection._merge import load_collection, merge_collection, open_values, reseal_collection
from omnistate.collection._model import (
    Collection,
    Counter,
    Declares,
    List,
    Map,
    Set,
    SortedSet,
    UniqueCounter,
    WorkQueue,
    collections_of,
    imported_collections,
)

__all__ = [
    "Collection",
    "CollectionChange",
    "CollectionHandle",
    "Counter",
    "CounterHandle",
    "Declares",
    "Item",
    "List",
    "ListHandle",
    "Map",
    "MapHandle",
    "Place",
    "Set",
    "SetHandle",
    "SortedSet",
    "SortedSetHandle",
    "UniqueCounter",
    "UniqueCounterHandle",
    "WorkQueue",
    "WorkQueueHandle",
    "collections_of",
    "imported_collections",
    "load_collection",
    "merge_collection",
    "open_collection",
    "open_values",
    "own_keys",
    "reseal_collection",
]
