"""One customer on four channels, to look at."""

from omnistate.demo._script import Step, Story
from omnistate.demo._server import DemoBackend, demo

__all__ = ["DemoBackend", "Step", "Story", "demo"]
