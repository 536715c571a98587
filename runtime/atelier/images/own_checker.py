"""The safety checker that a pipeline brings along, as Stable Diffusion 1 and 2 do, at one request.

diffusers paints what it finds fault with black and goes on. Here the answer says so too, and with
`SAFETY_CHECKER=own` the setting says what becomes of such a picture instead.
"""

from __future__ import annotations

from typing import Any

import torch

UNSAFE = "unsafe"
"""The label of what it finds fault with: it knows no others."""

CHECKER = "StableDiffusionSafetyChecker"


class OwnChecker:
    """Stands in a request's copy of a pipeline for the checker that all share."""

    def __init__(self, module: Any, blackens: bool) -> None:
        """`blackens`: bad pictures become black, as the pipeline means it; else they stay."""
        self._module = module
        self._blackens = blackens
        self._bad: list[bool] = []

    @staticmethod
    def of(pipeline: Any, blackens: bool) -> OwnChecker | None:
        """The pipeline's, if it has one of the known kind."""
        module = getattr(pipeline, "safety_checker", None)
        return OwnChecker(module, blackens) if type(module).__name__ == CHECKER else None

    def __call__(self, *, images: Any, clip_input: torch.Tensor) -> tuple[Any, list[bool]]:
        """Pictures and whether each is bad; the checker writes into the pictures it is given."""
        own = images.clone() if torch.is_tensor(images) else images.copy()
        seen, bad = self._module(images=own, clip_input=clip_input)
        self._bad = [bool(each) for each in bad]
        return (seen, self._bad) if self._blackens else (images, [False] * len(self._bad))

    def flags(self, count: int) -> list[tuple[str, ...]]:
        """The labels of each of `count` pictures; none for a pipeline that did not ask."""
        bad = self._bad or [False] * count
        return [(UNSAFE,) if each else () for each in bad]
