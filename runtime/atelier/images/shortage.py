"""Memory that ran out: how to tell, how to get some back, and what a client is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from atelier.errors import DeviceOutOfMemory


def is_out_of_memory(error: BaseException) -> bool:
    """Also true of the CPU allocator's failure, which is a plain RuntimeError."""
    return isinstance(
        error, torch.OutOfMemoryError | MemoryError
    ) or "can't allocate memory" in str(error)


def release() -> None:
    """Give the allocator's unused blocks back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def does_not_fit(arguments: Mapping[str, Any], pictures: int) -> DeviceOutOfMemory:
    """What a request is told that runs out of memory by itself."""
    size = "x".join(str(arguments[name]) for name in ("width", "height") if name in arguments)
    return DeviceOutOfMemory(
        "the request does not fit the device's memory even alone; lower width and"
        f" height{f' (now {size})' if size else ''} or num_images_per_prompt (now {pictures}),"
        " or set ENABLE_VAE_TILING=true or QUANTIZATION=auto"
    )
