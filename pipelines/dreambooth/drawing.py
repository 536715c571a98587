"""Pictures from a pipeline, in batches, each from its own seed: for class pictures, validation and evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image


@dataclass(frozen=True)
class Wish:
    """One picture to draw."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Style:
    """How all pictures of a call are drawn. None means the pipeline's own default; `size` is (width, height) in pixels."""

    steps: int = 20
    guidance: float | None = None
    size: tuple[int, int] | None = None
    batch: int = 8

    def arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {"num_inference_steps": self.steps}
        if self.guidance is not None:
            arguments["guidance_scale"] = self.guidance
        if self.size:
            arguments |= {"width": self.size[0], "height": self.size[1]}
        return arguments


@torch.no_grad()
def draw(pipeline: Any, wishes: Sequence[Wish], style: Style) -> Iterator[Image.Image]:
    """One picture for each wish, in order. The seed alone decides the noise, whatever the batch."""
    for start in range(0, len(wishes), style.batch):
        part = wishes[start : start + style.batch]
        yield from pipeline(
            [wish.prompt for wish in part],
            generator=[torch.Generator("cpu").manual_seed(wish.seed) for wish in part],
            **style.arguments(),
        ).images
