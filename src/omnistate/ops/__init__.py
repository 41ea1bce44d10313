"""What keeps a store in order, and what is done with many customers at once."""

from omnistate.ops._bulk import Bulk, Report
from omnistate.ops._migrate import migrate_all
from omnistate.ops._ndjson import export_all, import_all
from omnistate.ops._sweeper import Sweeper

__all__ = ["Bulk", "Report", "Sweeper", "export_all", "import_all", "migrate_all"]
