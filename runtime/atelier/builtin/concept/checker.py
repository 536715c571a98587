"""Says whether a picture shows the striped ring, by its pixels alone.

Measured on one blob that differs from the background: it is as round as a disc, its middle shows
the background, the band around it is of both colours and of nothing else, and along the band the
colours alternate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from atelier.builtin.concept.ring import COLOURS, HOLE, PIXELS, STRIPES
from atelier.builtin.shapes.scene import COLOURS as ALL_COLOURS
from atelier.builtin.shapes.scene import PALETTE

_FAR_FROM_BACKGROUND = 45.0  # RGB distance
_SMALLEST_RADIUS = 12.0  # pixels
_PALETTE = np.array([PALETTE[name] for name in ALL_COLOURS], dtype=np.float32)
_RING = [ALL_COLOURS.index(name) for name in COLOURS]


@dataclass(frozen=True)
class RingFinding:
    """What was measured; `found` is the judgement. Shares are 0..1."""

    background: str
    radius: float
    open_middle: float
    band: float
    balance: float
    changes: int

    @property
    def found(self) -> bool:
        return (
            self.radius >= _SMALLEST_RADIUS
            and self.open_middle >= 0.6
            and self.band >= 0.75
            and self.balance >= 0.25
            and abs(self.changes - STRIPES) <= 2
        )


def look(image: Image.Image) -> RingFinding:
    """Measure `image` as if it showed one ring; any picture can be measured."""
    pixels = np.asarray(
        image.convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.BOX), dtype=np.float32
    )
    labels = np.argmin(((pixels[:, :, None] - _PALETTE) ** 2).sum(-1), axis=-1)
    border = np.ones(labels.shape, dtype=bool)
    border[3:-3, 3:-3] = False
    background = int(np.bincount(labels[border]).argmax())
    ground = np.median(pixels[border & (labels == background)], axis=0)
    thing = np.sqrt(((pixels - ground) ** 2).sum(-1)) > _FAR_FROM_BACKGROUND
    rows, columns = np.nonzero(thing)
    name = ALL_COLOURS[background]
    if not len(rows):
        return RingFinding(name, 0.0, 0.0, 0.0, 0.0, 0)
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    x, y, radius = (
        (left + right + 1) / 2,
        (top + bottom + 1) / 2,
        (right - left + bottom - top + 2) / 4,
    )
    grid = np.arange(PIXELS) + 0.5
    dx, dy = np.meshgrid(grid - x, grid - y)
    distance = np.hypot(dx, dy) / radius
    middle, band = distance < 0.75 * HOLE, (distance > HOLE + 0.1) & (distance < 0.9)
    inside = np.isin(labels, _RING) & thing
    colours = [int((band & inside & (labels == colour)).sum()) for colour in _RING]
    return RingFinding(
        background=name,
        radius=float(radius),
        open_middle=float(1 - thing[middle].mean()) if middle.any() else 0.0,
        band=float(inside[band].mean()) if band.any() else 0.0,
        balance=min(colours) / max(1, sum(colours)),
        changes=_changes(labels, inside, x, y, radius * (1 + HOLE) / 2),
    )


def _changes(labels: np.ndarray, inside: np.ndarray, x: float, y: float, radius: float) -> int:
    """How often the colour changes on the way around, read at 72 places; a run must last two places
    to count."""
    angles = np.arange(72) * 2 * math.pi / 72
    columns = np.clip((x + radius * np.cos(angles)).astype(int), 0, PIXELS - 1)
    rows = np.clip((y + radius * np.sin(angles)).astype(int), 0, PIXELS - 1)
    seen = [int(labels[r, c]) for r, c in zip(rows, columns, strict=True) if inside[r, c]]
    steady = [
        colour for colour, after in zip(seen, seen[1:] + seen[:1], strict=True) if colour == after
    ]
    return sum(a != b for a, b in zip(steady, steady[1:] + steady[:1], strict=True))


def check(image: Image.Image, background: str | None = None) -> bool:
    """Whether `image` shows the striped ring, on `background` if one is named."""
    finding = look(image)
    return finding.found and background in (None, finding.background)
