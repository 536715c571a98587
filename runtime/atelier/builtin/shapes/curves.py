"""The card's curves from a run's log: `python -m atelier.builtin.shapes.curves LOG PNG`. Pillow
alone."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

_WIDTH, _HEIGHT, _EDGE = 360, 220, 36
_INK, _GRID, _PAPER = (30, 60, 210), (215, 215, 215), (255, 255, 255)

Point = tuple[float, float]


def panel(
    title: str, points: Sequence[Point], low: float, high: float, logarithmic: bool
) -> Image.Image:
    """One curve over seconds, between `low` and `high`."""
    image = Image.new("RGB", (_WIDTH, _HEIGHT), _PAPER)
    pen = ImageDraw.Draw(image)
    scale = math.log if logarithmic else float
    last = max(seconds for seconds, _ in points)

    def at(seconds: float, value: float) -> Point:
        height = (scale(value) - scale(low)) / (scale(high) - scale(low))
        return _EDGE + seconds / last * (_WIDTH - _EDGE - 10), _HEIGHT - 24 - height * (
            _HEIGHT - 50
        )

    for step in range(5):
        share = step / 4
        value = low * (high / low) ** share if logarithmic else low + (high - low) * share
        pen.line([at(0, value), at(last, value)], fill=_GRID)
        pen.text((2, at(0, value)[1] - 6), f"{value:.2g}", fill="black")
    pen.text((_EDGE, 4), title, fill="black")
    pen.text((_WIDTH - 70, _HEIGHT - 16), f"{last:.0f} seconds", fill="black")
    pen.line(
        [at(seconds, min(max(value, low), high)) for seconds, value in points], fill=_INK, width=2
    )
    return image


def curves(log: Path) -> Image.Image:
    """Loss of the autoencoder, loss of the denoiser, and its score on held-out prompts, side by
    side."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    series = {
        (stage, field): [(row["seconds"], row[field]) for row in rows if row["stage"] == stage]
        for stage, field in (("vae", "loss"), ("denoiser", "loss"), ("score", "right"))
    }
    panels = [
        panel("autoencoder loss", series["vae", "loss"], 0.004, 0.4, True),
        panel("flow matching loss", series["denoiser", "loss"], 0.2, 2.0, True),
        panel("held-out prompts all right", series["score", "right"], 0.0, 1.0, False),
    ]
    sheet = Image.new("RGB", (_WIDTH * len(panels), _HEIGHT), _PAPER)
    for index, image in enumerate(panels):
        sheet.paste(image, (index * _WIDTH, 0))
    return sheet


if __name__ == "__main__":
    curves(Path(sys.argv[1])).quantize(32).save(sys.argv[2], optimize=True)
