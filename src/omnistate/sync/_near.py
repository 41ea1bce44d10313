"""The near cache for any thread: found here, read and kept right by the background thread."""

from __future__ import annotations

from omnistate.state import Kept, NearCacheStats, Read, Target
from omnistate.state import NearCache as AsyncNearCache
from omnistate.sync._background import Background


class NearCache:
    """The documents that one client keeps."""

    def __init__(self, behind: AsyncNearCache, background: Background) -> None:
        self._behind, self._background = behind, background

    @property
    def kept(self) -> dict[bytes, Kept]:
        """By the documents' keys. Raises as a call of the store would, in a forked process too: nobody would keep it right."""
        self._background.check()
        return self._behind.kept

    def find(self, target: Target) -> Kept | None:
        """The document, if it is kept."""
        self._background.check()
        return self._behind.find(target)

    def read(self, target: Target) -> Read:
        """The document from the server, kept if it may be."""
        return self._background.wait(self._behind.read(target))

    def written(self, document: bytes) -> None:
        """A write of this process has ended: it reads what it has written."""
        self._behind.written(document)

    def stats(self) -> NearCacheStats:
        return self._behind.stats()
