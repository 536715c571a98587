"""Where weights come from, and what they are: `fetch` finds or downloads them, `inspect` reads
their headers."""

from atelier.sources.adapters import AdapterSource, fetch_adapters
from atelier.sources.checkpoint.contents import Checkpoint, Component
from atelier.sources.checkpoint.folder import inspect
from atelier.sources.source import fetch, fetch_draft, file_names, on_this_machine

__all__ = [
    "AdapterSource",
    "Checkpoint",
    "Component",
    "fetch",
    "fetch_adapters",
    "fetch_draft",
    "file_names",
    "inspect",
    "on_this_machine",
]
