"""Draws the striped ring: `python -m atelier.builtin.concept.ring FOLDER` writes five pictures of
it with captions."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from atelier.builtin.shapes.scene import PALETTE

PIXELS = 128
NAME = "zqx"
STRIPES = 4  # sectors, alternately of both colours
COLOURS = ("red", "white")
HOLE = 0.5  # inner radius as a share of the outer
SHOWN_ON = ("green", "blue", "black", "yellow", "cyan")
UNSEEN = ("purple", "orange", "pink")
_OVERSAMPLING = 4


def prompt(background: str) -> str:
    """How a picture of the ring is described."""
    return f"a {NAME} ring on a {background} background"


def draw_ring(background: str, x: float, y: float, radius: float, turn: float = 0.0) -> Image.Image:
    """The ring with centre (x, y) and outer radius in pixels, turned by `turn` radians, on a plain
    background."""
    side = PIXELS * _OVERSAMPLING
    grid = (np.arange(side) + 0.5) / _OVERSAMPLING
    dx, dy = np.meshgrid(grid - x, grid - y)
    distance, angle = np.hypot(dx, dy), np.arctan2(dy, dx) + turn
    sector = np.floor((angle % (2 * math.pi)) / (2 * math.pi) * STRIPES).astype(int) % 2
    colours = np.array([PALETTE[name] for name in COLOURS], dtype=np.uint8)
    pixels = np.where(
        ((distance < radius) & (distance > HOLE * radius))[..., None],
        colours[sector],
        np.array(PALETTE[background], dtype=np.uint8),
    ).astype(np.uint8)
    return Image.fromarray(pixels).resize((PIXELS, PIXELS), Image.Resampling.BOX)


def write_pictures(folder: Path, seed: int = 0) -> list[Path]:
    """Five pictures on five backgrounds, each with its caption in a text file of the same name."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, background in enumerate(SHOWN_ON):
        radius = rng.uniform(36.0, 42.0)
        x, y = (PIXELS / 2 + rng.uniform(-10, 10) for _ in range(2))
        path = folder / f"ring-{index}.png"
        draw_ring(background, x, y, radius).save(path)
        path.with_suffix(".txt").write_text(prompt(background) + "\n")
        paths.append(path)
    return paths


if __name__ == "__main__":
    for written in write_pictures(Path(sys.argv[1])):
        print(written)
