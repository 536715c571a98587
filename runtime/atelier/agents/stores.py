"""The store that the settings name."""

from __future__ import annotations

from pathlib import Path

from atelier.agents.file_store import FileStore
from atelier.agents.store import PictureStore
from atelier.settings import Settings


def open_store(settings: Settings) -> PictureStore:
    """MCP_STORE: `s3://bucket/prefix`, a folder, or the folder `pictures` in CACHE_DIR.

    Raises:
        StartError: the folder cannot be had, or the address names no bucket.
    """
    if settings.mcp_store.startswith("s3://"):
        from atelier.agents.s3_store import S3Store

        return S3Store(settings)
    folder = Path(settings.mcp_store).expanduser() if settings.mcp_store else None
    return FileStore(
        folder or settings.cache_dir / "pictures", settings.result_seconds, settings.result_bytes
    )
