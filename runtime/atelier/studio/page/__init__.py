"""The page's own style, scripts and markup, as files."""

from __future__ import annotations

from importlib.resources import files


def read_asset(name: str) -> str:
    """The text of a file of this folder."""
    return files(__package__).joinpath(name).read_text()
