"""Where weights come from, and what they are: `fetch` finds or downloads them, `inspect` reads their headers."""

from atelier.sources.checkpoint import inspect
from atelier.sources.contents import Checkpoint, Component
from atelier.sources.source import fetch, file_names, on_this_machine

__all__ = ["Checkpoint", "Component", "fetch", "file_names", "inspect", "on_this_machine"]
