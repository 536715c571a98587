"""Judges a picture by its pixels alone: which things are there, and whether that is what the prompt
says.

numpy and Pillow only; it knows the palette and the outlines, and nothing of the model. About 5 ms a
picture.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from atelier.builtin.shapes.forms import FORMS
from atelier.builtin.shapes.prompts import parse
from atelier.builtin.shapes.scene import COLOURS, PALETTE, Relation, Scene, Thing

PIXELS = 128
_SMALLEST_AREA = 45  # pixels; the smallest drawn star has about 110
_FAR_FROM_PALETTE = 70.0  # RGB distance from which a colour counts as none of the palette
_FAR_FROM_BACKGROUND = 45.0
_PURITY = 0.75  # share of a thing's pixels that must have its colour
_LIKENESS = 0.78  # overlap (intersection over union) below which an outline is no known shape
_LARGE_FROM = 17.5  # half extent in pixels; drawn small things end at 14, large ones start at 21
_PALETTE = np.array([PALETTE[name] for name in COLOURS], dtype=np.float32)


@dataclass(frozen=True)
class Seen:
    """One thing found in a picture; None for a colour that is not of the palette or an outline that
    is no shape."""

    colour: str | None
    shape: str | None
    x: float
    y: float
    extent: float
    likeness: float

    @property
    def size(self) -> str:
        return "large" if self.extent >= _LARGE_FROM else "small"


@dataclass(frozen=True)
class Verdict:
    """Aspect by aspect, under the assignment of seen things to asked ones that gets most right."""

    count: bool
    colour: bool
    shape: bool
    size: bool
    relation: bool
    background: bool
    seen: tuple[Seen, ...]
    seen_background: str | None

    @property
    def right(self) -> bool:
        return (
            self.count
            and self.colour
            and self.shape
            and self.size
            and self.relation
            and self.background
        )

    def __bool__(self) -> bool:
        return self.right


def check(image: Image.Image, wanted: Scene | str) -> Verdict:
    """Whether `image` shows `wanted`, a scene or a prompt (ValueError if it is not one of the
    grammar's sentences)."""
    scene = parse(wanted) if isinstance(wanted, str) else wanted
    seen, background = look(image)
    on_background = scene.background in (None, background)
    if len(seen) < len(scene.things):
        return Verdict(False, False, False, False, False, on_background, seen, background)
    best: tuple[bool, bool, bool, bool] = (False, False, False, False)
    for order in itertools.permutations(seen, len(scene.things)):
        best = max(best, _compare(scene, order), key=sum)
    return Verdict(len(seen) == len(scene.things), *best, on_background, seen, background)


def _compare(scene: Scene, order: tuple[Seen, ...]) -> tuple[bool, bool, bool, bool]:
    pairs: list[tuple[Thing, Seen]] = list(zip(scene.things, order, strict=True))
    return (
        all(asked.colour in (None, found.colour) for asked, found in pairs),
        all(asked.shape in (None, found.shape) for asked, found in pairs),
        all(asked.size in (None, found.size) for asked, found in pairs),
        all(_holds(relation, order) for relation in scene.relations),
    )


def _holds(relation: Relation, order: tuple[Seen, ...]) -> bool:
    """A relation holds if the way from object to subject leads more along its axis than across, in
    its direction."""
    subject, other = order[relation.subject], order[relation.object]
    dx, dy = subject.x - other.x, subject.y - other.y
    if abs(dx) > abs(dy):
        return relation.name == ("left of" if dx < 0 else "right of")
    return relation.name == ("above" if dy < 0 else "below")


def look(image: Image.Image) -> tuple[tuple[Seen, ...], str | None]:
    """The things in `image`, largest first, and the colour of the background (None if not of the
    palette)."""
    if image.size != (PIXELS, PIXELS):
        image = image.resize((PIXELS, PIXELS), Image.Resampling.BOX)
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    labels = np.argmin(((pixels[:, :, None] - _PALETTE) ** 2).sum(-1), axis=-1)
    border = np.ones(labels.shape, dtype=bool)
    border[3:-3, 3:-3] = False
    common = np.bincount(labels[border]).argmax()
    ground = np.median(pixels[border & (labels == common)], axis=0)
    off_ground = np.sqrt(((pixels - ground) ** 2).sum(-1))
    masks = [
        mask
        for mask in _components(off_ground > _FAR_FROM_BACKGROUND)
        if mask.sum() >= _SMALLEST_AREA
    ]
    seen = [_identify(pixels, labels, off_ground, mask, ground) for mask in masks]
    seen.sort(key=lambda s: -s.extent)
    return tuple(seen), _colour_name(ground)


def _identify(
    pixels: np.ndarray,
    labels: np.ndarray,
    off_ground: np.ndarray,
    mask: np.ndarray,
    ground: np.ndarray,
) -> Seen:
    inside = pixels[mask & (labels == np.bincount(labels[mask]).argmax())]
    core = np.median(inside, axis=0)
    # The outline runs where a pixel is half thing, half background.
    mask = mask & (off_ground > 0.5 * np.sqrt(((core - ground) ** 2).sum()))
    pure = (np.sqrt(((pixels[mask] - core) ** 2).sum(-1)) < 60.0).mean() >= _PURITY
    area = float(mask.sum())
    rows, columns = np.nonzero(mask)
    x, y = columns.mean() + 0.5, rows.mean() + 0.5
    best = ("", 0.0, 0.0)
    for name in FORMS:
        unit_area, offset = _moments(name)
        extent = float(np.sqrt(area / unit_area))
        grid = np.arange(PIXELS) + 0.5
        u, v = np.meshgrid((grid - x) / extent, (grid - (y - offset * extent)) / extent)
        form = FORMS[name](u, v) < 0
        likeness = float((form & mask).sum() / (form | mask).sum())
        if likeness > best[1]:
            best = (name, likeness, extent)
    shape, likeness, extent = best
    return Seen(
        _colour_name(core) if pure else None,
        shape if likeness >= _LIKENESS else None,
        x,
        y,
        extent,
        likeness,
    )


def _colour_name(rgb: np.ndarray) -> str | None:
    distances = np.sqrt(((_PALETTE - rgb) ** 2).sum(-1))
    nearest = int(distances.argmin())
    return COLOURS[nearest] if distances[nearest] < _FAR_FROM_PALETTE else None


@lru_cache
def _moments(name: str) -> tuple[float, float]:
    """Area of the unit form, and how far below its box's centre its centroid lies (in half
    extents)."""
    grid = (np.arange(512) + 0.5) / 256.0 - 1.0
    u, v = np.meshgrid(grid, grid)
    inside = FORMS[name](u, v) < 0
    return float(inside.mean() * 4.0), float(v[inside].mean())


def _components(mask: np.ndarray) -> list[np.ndarray]:
    """The 4-connected parts of `mask`, as masks: runs along rows, joined where they touch the row
    above."""
    parent: list[int] = []
    runs: list[tuple[int, int, int]] = []

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    above: list[int] = []
    for row, line in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], line.astype(np.int8), [0]))))
        here = []
        for start, stop in zip(edges[0::2], edges[1::2], strict=True):
            here.append(len(runs))
            parent.append(len(runs))
            runs.append((row, int(start), int(stop)))
            for other in above:
                if runs[other][1] < stop and start < runs[other][2]:
                    parent[root(other)] = root(here[-1])
        above = here
    parts: dict[int, np.ndarray] = {}
    for index, (row, start, stop) in enumerate(runs):
        part = parts.setdefault(root(index), np.zeros(mask.shape, dtype=bool))
        part[row, start:stop] = True
    return list(parts.values())
