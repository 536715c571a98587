"""Who asks, for whatever must be kept apart between callers."""

from __future__ import annotations

from contextvars import ContextVar

CALLER: ContextVar[str] = ContextVar("caller", default="")
"""A digest of the request's API key; empty where none is needed."""
