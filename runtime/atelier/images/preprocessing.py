"""What controls are made from, out of any picture: edges, a blur, coarse tiles. No models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image as PIL
from PIL import ImageFilter

Grey = np.ndarray[Any, np.dtype[np.int32]]

LOW, HIGH = 100, 200
"""Thresholds of the gradient, sum of both directions by Sobel's masks: those that ControlNets for
Canny edges were trained with (arXiv:2302.05543, appendix)."""

TANGENT = 0.41421356
"""Of 22.5 degrees: what separates the four directions across which an edge is thinned."""

TILES = 8
BLUR = 64
"""Shorter side over radius."""


def canny(picture: PIL.Image) -> PIL.Image:
    """White edges of one pixel on black (Canny 1986), without smoothing first."""
    grey = np.asarray(picture.convert("L"), dtype=np.int32)
    across, down = _gradients(grey)
    strength = np.abs(across) + np.abs(down)
    edges = _connected(_thin(strength, across, down) & (strength > LOW), strength > HIGH)
    return PIL.fromarray((edges * np.uint8(255)).astype(np.uint8), "L").convert("RGB")


def blur(picture: PIL.Image) -> PIL.Image:
    """Without detail, by a Gaussian of a sixty-fourth of the shorter side."""
    return picture.filter(ImageFilter.GaussianBlur(max(1.0, min(picture.size) / BLUR)))


def tile(picture: PIL.Image) -> PIL.Image:
    """Sampled down by eight and up again."""
    small = tuple(max(1, side // TILES) for side in picture.size)
    coarse = picture.resize((small[0], small[1]), PIL.Resampling.BOX)
    return coarse.resize(picture.size, PIL.Resampling.BICUBIC)


PREPROCESSORS: Mapping[str, Callable[[PIL.Image], PIL.Image]] = {
    "canny": canny,
    "blur": blur,
    "tile": tile,
}


def _gradients(grey: Grey) -> tuple[Grey, Grey]:
    """Sobel's, across and down, with the border repeated."""
    wide = np.pad(grey, 1, mode="edge")
    smooth_down = wide[:-2] + 2 * wide[1:-1] + wide[2:]
    smooth_across = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    return smooth_down[:, 2:] - smooth_down[:, :-2], smooth_across[2:] - smooth_across[:-2]


def _thin(strength: Grey, across: Grey, down: Grey) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where the gradient is the largest along its own direction."""
    wide = np.pad(strength, 1)
    height, width = strength.shape

    def beside(rows: int, columns: int) -> Grey:
        found: Grey = wide[1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]
        return found

    x, y = np.abs(across), np.abs(down)
    level, upright = y <= TANGENT * x, x < TANGENT * y
    rising = (across >= 0) == (down >= 0)
    falls, climbs = ~(level | upright) & rising, ~(level | upright) & ~rising
    before = np.select(
        [level, upright, falls, climbs],
        [beside(0, -1), beside(-1, 0), beside(-1, -1), beside(-1, 1)],
    )
    behind = np.select(
        [level, upright, falls, climbs],
        [beside(0, 1), beside(1, 0), beside(1, 1), beside(1, -1)],
    )
    thin: np.ndarray[Any, np.dtype[np.bool_]] = (strength > before) & (strength >= behind)
    return thin


def _connected(
    weak: np.ndarray[Any, np.dtype[np.bool_]], strong: np.ndarray[Any, np.dtype[np.bool_]]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Weak edges that a chain of weak edges joins to a strong one. Every pixel is looked at once,
    in the order of its distance along the chain."""
    width = weak.shape[1] + 2
    open_ = np.pad(weak, 1).ravel()
    front = np.flatnonzero(np.pad(weak & strong, 1).ravel())
    found = np.zeros_like(open_)
    around = np.array([r * width + c for r in (-1, 0, 1) for c in (-1, 0, 1) if r or c])
    while front.size:
        found[front], open_[front] = True, False
        near = np.unique((front[:, None] + around).ravel())
        front = near[open_[near]]
    return found.reshape(weak.shape[0] + 2, width)[1:-1, 1:-1]
