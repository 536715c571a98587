"""Which sizes a pipeline draws, and which of them is nearest to one that it does not draw."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from atelier.errors import InvalidRequest

MOST_STRETCHED = 64
"""Longer side over shorter one: a line of pixels costs what a picture costs and shows nothing."""


def size_multiple(pipeline: Any) -> int:
    """The number that width and height must be divisible by: the VAE's factor times the denoiser's
    patch, in pixels."""
    factor = getattr(pipeline, "vae_scale_factor", None) or 8
    processor = getattr(getattr(pipeline, "image_processor", None), "config", {})
    return math.lcm(int(factor) * _patch(pipeline), int(processor.get("vae_scale_factor", 1)))


def _patch(pipeline: Any) -> int:
    config = getattr(getattr(pipeline, "transformer", None), "config", None)
    patch = getattr(config, "patch_size", 1)
    return patch if isinstance(patch, int) else max(patch or [1])


def native_size(pipeline: Any) -> tuple[int, int]:
    """Width and height in pixels that the pipeline draws if none are given: the denoiser's sample
    size times the VAE's factor, or 1024, which is what the families without a sample size use."""
    for name in ("transformer", "unet"):
        sample = getattr(
            getattr(getattr(pipeline, name, None), "config", None), "sample_size", None
        )
        if isinstance(sample, int):
            side = sample * int(getattr(pipeline, "vae_scale_factor", 8))
            return side, side
    side = int(getattr(pipeline, "default_sample_size", 128)) * int(
        getattr(pipeline, "vae_scale_factor", 8)
    )
    return side, side


def longest_side(pipeline: Any) -> int | None:
    """Pixels of the longest side that the denoiser has positions for. None: it computes positions,
    so memory alone is the limit.

    Stable Diffusion 3, AuraFlow, CogView 3 and OmniGen cut theirs out of a square table, which is
    flat in some (1 x positions x channels) and a square in others (rows x columns x channels).
    """
    transformer = getattr(pipeline, "transformer", None)
    for module in transformer.children() if transformer is not None else ():
        table = getattr(module, "pos_embed", None)
        if getattr(module, "pos_embed_max_size", None) and table is not None:
            patches = math.isqrt(table.numel() // table.shape[-1])
            return patches * _patch(pipeline) * int(getattr(pipeline, "vae_scale_factor", 8))
    return None


@dataclass(frozen=True)
class DrawableSizes:
    """The sizes that a pipeline draws: sides divisible by `multiple` and none beyond `longest`, at
    most `pixels` of them in all."""

    multiple: int
    longest: int | None
    pixels: int

    @classmethod
    def of(cls, pipeline: Any, max_pixels: int) -> DrawableSizes:
        """Those of a loaded pipeline, where memory and settings allow `max_pixels`."""
        return cls(size_multiple(pipeline), longest_side(pipeline), max_pixels)

    def __str__(self) -> str:
        longest = f", none beyond {self.longest}" if self.longest else ""
        return (
            f"sides divisible by {self.multiple}{longest}, at most {self.pixels} pixels,"
            f" one side at most {MOST_STRETCHED} times the other"
        )

    def check(self, width: int, height: int, name: str) -> None:
        """See that a size is one of these; `name` is the field at fault, unless one side is.

        Raises:
            InvalidRequest: it is not; the message says which are, and the nearest.
        """
        if fault := self._fault(width, height):
            side, what = fault
            near = "{} x {}".format(*self.nearest(width, height))
            raise InvalidRequest(
                f"{side or name}: {what}; this model draws {self}; the nearest is {near}",
                side or name,
            )

    def nearest(self, width: int, height: int) -> tuple[int, int]:
        """The size among these that keeps the ratio best, as large as the one given where that can
        be, else as large as possible."""
        stretch = min(1.0, MOST_STRETCHED * min(width, height) / max(width, height))
        wide = width * (stretch if width > height else 1.0)
        high = height * (stretch if height > width else 1.0)
        scale = min(
            1.0, (self.longest or math.inf) / max(wide, high), math.sqrt(self.pixels / wide / high)
        )
        wide, high = wide * scale, high * scale
        while max(wide, high) >= self.multiple:
            sizes = [size for size in self._around(wide, high) if self._fault(*size) is None]
            if sizes:
                return min(sizes, key=lambda size: _distance(size, (wide, high)))
            wide, high = wide * 0.9, high * 0.9
        return self.multiple, self.multiple

    def like(self, width: int, height: int) -> tuple[int, int]:
        """The size for an input picture where none is asked for: its own, cut to the multiple. One
        with a longer side than this model draws is scaled down, unless it is stretched too far."""
        cut = [
            max(self.multiple, side // self.multiple * self.multiple) for side in (width, height)
        ]
        scaled = self.longest is not None and max(cut) > self.longest
        if scaled and max(cut) <= MOST_STRETCHED * min(cut):
            return self.nearest(width, height)
        return cut[0], cut[1]

    def _around(self, *sides: float) -> Iterator[tuple[int, int]]:
        """The sizes whose sides are the multiples below and above a length; none is 0."""
        counts = [
            {max(1, rounded(side / self.multiple)) for rounded in (math.floor, math.ceil)}
            for side in sides
        ]
        return ((wide * self.multiple, high * self.multiple) for wide, high in product(*counts))

    def _fault(self, width: int, height: int) -> tuple[str, str] | None:
        """The side that is at fault, or empty for both, and what is wrong with it."""
        for side, value in (("width", width), ("height", height)):
            if value % self.multiple:
                return side, f"{value} is not divisible by {self.multiple}"
        if self.longest is not None and max(width, height) > self.longest:
            return "", f"{width} x {height} is larger than this model draws"
        if width * height > self.pixels:
            return "", f"{width} x {height} pixels are more than fit here"
        if max(width, height) > MOST_STRETCHED * min(width, height):
            return "", f"{width} x {height} pixels are stretched too far"
        return None


def _distance(size: tuple[int, int], wanted: tuple[float, float]) -> tuple[float, float]:
    """How far the ratio is from the one wanted, then the area."""
    ratio = math.log(size[0] / size[1]) - math.log(wanted[0] / wanted[1])
    return round(abs(ratio), 6), abs(size[0] * size[1] - wanted[0] * wanted[1])
