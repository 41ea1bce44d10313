"""What keeps a store in order: the sweeper."""

from omnistate.ops._sweeper import Sweeper

__all__ = ["Sweeper"]
