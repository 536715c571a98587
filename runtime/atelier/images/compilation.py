"""torch.compile for denoisers: the repeated blocks (compiles in seconds) or all of it, with caches that outlive the process.

Compiled code is per shape, so the engine pads batches to `buckets` and the warm-up draws every served shape once: no
request waits for a compiler.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def buckets(rows: int) -> tuple[int, ...]:
    """The row counts that batches are padded to: powers of two up to the limit, and the limit."""
    powers = [1]
    while powers[-1] * 2 <= rows:
        powers.append(powers[-1] * 2)
    return tuple(powers) if powers[-1] == rows else (*powers, rows)


def keep_caches(cache_dir: Path, device: str, checkpoint: Path) -> Path:
    """Point torch's compile caches at a folder for these versions, this device and this checkpoint.

    A cache made by another version or another GPU is never looked at, so none can be wrong. Call before torch compiles.
    """
    import torch

    identity = f"{torch.__version__} {torch.version.cuda} {device} {checkpoint.resolve()}"
    folder = cache_dir / "compile" / hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    return folder


def compile_denoisers(pipeline: Any, mode: str) -> None:
    """Compile in place, `mode` being `regional` or `full`; a denoiser without repeated blocks is compiled whole."""
    import torch

    # A compiled function per (rows, size) is wanted; the default of eight would fall back to eager after that.
    torch._dynamo.config.recompile_limit = 128
    for name, denoiser in _denoisers(pipeline):
        if mode == "regional" and getattr(denoiser, "_repeated_blocks", None):
            denoiser.compile_repeated_blocks(fullgraph=False, dynamic=False)
            log.info("%s: repeated blocks %s are compiled", name, ", ".join(denoiser._repeated_blocks))
        else:
            denoiser.forward = torch.compile(denoiser.forward, dynamic=False)
            log.info("%s is compiled whole", name)


def _denoisers(pipeline: Any) -> Iterator[tuple[str, Any]]:
    for name, component in pipeline.components.items():
        if name.startswith(("transformer", "unet")) and component is not None:
            yield name, component
