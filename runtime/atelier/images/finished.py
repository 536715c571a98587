"""What a pipeline returns, as the events of finished pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from atelier.errors import AtelierError, GenerationFailed
from atelier.events import Image

SEEDS = 2**63


def pixels_of(output: Any) -> torch.Tensor:
    """A pipeline's pictures as rows x height x width x channels in 0..1, whether it returned a
    tensor or an array.

    Raises:
        GenerationFailed: it returned something else.
    """
    images = output.images if hasattr(output, "images") else output[0]
    if torch.is_tensor(images) and images.dim() == 4:
        return images.permute(0, 2, 3, 1).float()
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return torch.from_numpy(images).float()
    raise GenerationFailed(f"the pipeline returned {type(images).__name__}, not pictures")


def picture_events(
    pixels: torch.Tensor, flags: Sequence[tuple[str, ...]], seed: int
) -> Iterator[Image]:
    """One event a picture; picture i has seed + i. Waits for the device."""
    rows = (pixels * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    for index, (row, labels) in enumerate(zip(rows, flags, strict=True)):
        height, width, channels = row.shape
        own = (seed + index) % SEEDS
        yield Image(index, own, width, height, channels, row.tobytes(), labels)


def generators(seed: int, pictures: int) -> torch.Generator | list[torch.Generator]:
    """Picture i has seed + i, so that each can be drawn again alone. On the CPU: the same noise on
    every device."""
    each = [torch.Generator("cpu").manual_seed((seed + index) % SEEDS) for index in range(pictures)]
    return each[0] if pictures == 1 else each


def bare(error: AtelierError) -> AtelierError:
    """The error without its traceback and causes, whose frames would keep tensors for as long as a
    job keeps its end."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
