"""Where weights come from, and what they are: `fetch` finds or downloads them, `inspect` reads their headers."""

from atelier.sources.checkpoint import inspect
from atelier.sources.contents import Checkpoint, Component
from atelier.sources.source import fetch

__all__ = ["Checkpoint", "Component", "fetch", "inspect"]
