"""Which compile cache a child engine uses: one a checkpoint, set of versions, options and GPU,
below CACHE_DIR. What a cache is trusted for is `hardware/kernel_cache.py`'s business."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

from atelier.hardware.kernel_cache import KernelCache
from atelier.settings import Settings


def compile_cache(settings: Settings, model: Path) -> KernelCache:
    """The cache for this checkpoint with these versions on this GPU."""
    config = model / "config.json" if model.is_dir() else model
    parts = [
        settings.engine,
        settings.engine_args,
        settings.dtype,
        str(settings.tensor_parallel_size),
        _gpu(),
    ]
    parts += [metadata.version(name) for name in ("torch", "transformers")]
    digest = hashlib.sha256("\n".join(parts).encode())
    digest.update(
        config.read_bytes() if config.suffix == ".json" and config.exists() else str(model).encode()
    )
    return KernelCache(settings.cache_dir / "compile" / digest.hexdigest()[:16])


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
