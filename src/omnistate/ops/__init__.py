"""What keeps a store in order, what is done with many customers at once, and clusters on this machine."""

from omnistate.ops._bulk import Bulk
from omnistate.ops._erase_again import erase_again
from omnistate.ops._job import Report
from omnistate.ops._local import LocalServers, LocalSettings
from omnistate.ops._local_cluster import LocalCluster, Shard
from omnistate.ops._local_directory import recorded_port
from omnistate.ops._local_node import Node, Role
from omnistate.ops._local_sentinel import LocalSentinel
from omnistate.ops._migrate import migrate_all
from omnistate.ops._ndjson import export_all, import_all
from omnistate.ops._sweeper import Sweeper

__all__ = [
    "Bulk",
    "LocalCluster",
    "LocalSentinel",
    "LocalServers",
    "LocalSettings",
    "Node",
    "Report",
    "Role",
    "Shard",
    "Sweeper",
    "erase_again",
    "export_all",
    "import_all",
    "migrate_all",
    "recorded_port",
]
