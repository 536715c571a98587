"""Aspect-ratio buckets: which size a picture is trained at, and the crops that bring it there.

A bucket has about resolution x resolution pixels, sides in multiples of `step`, and a ratio between
1:2 and 2:1.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageOps


@dataclass(frozen=True)
class View:
    """One training sample cut from a picture: target size, crop offset (top, left) in the resized
    picture, mirrored."""

    picture: int
    width: int
    height: int
    top: int
    left: int
    resized_width: int
    resized_height: int
    flipped: bool

    def cut(self, image: Image.Image) -> Image.Image:
        resized = image.resize((self.resized_width, self.resized_height), Image.Resampling.LANCZOS)
        cropped = resized.crop(
            (self.left, self.top, self.left + self.width, self.top + self.height)
        )
        return ImageOps.mirror(cropped) if self.flipped else cropped


def bucket_sizes(resolution: int, step: int = 64) -> list[tuple[int, int]]:
    """Widths and heights, the square first."""
    step = min(step, resolution // 4)
    step -= step % 16 if step >= 16 else 0
    sizes = {(resolution, resolution)}
    for width in range(step, 2 * resolution + 1, step):
        height = int(resolution * resolution / width) // step * step
        if height and 0.5 <= width / height <= 2:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes, key=lambda size: abs(size[0] - size[1]))


def size_for(width: int, height: int, resolution: int, buckets: bool) -> tuple[int, int]:
    """The bucket whose aspect ratio is nearest."""
    if not buckets:
        return resolution, resolution
    ratio = width / height
    return min(bucket_sizes(resolution), key=lambda size: (abs(size[0] / size[1] - ratio), size))


def plan_views(
    sizes: Sequence[tuple[int, int]],
    *,
    resolution: int,
    buckets: bool,
    views: int,
    flip: bool,
    seed: int,
) -> list[View]:
    """All views of all pictures of the given (width, height), the same for the same arguments."""
    rng = random.Random(seed)
    planned: list[View] = []
    for index, (width, height) in enumerate(sizes):
        to_width, to_height = size_for(width, height, resolution, buckets)
        scale = max(to_width / width, to_height / height)
        resized = max(to_width, round(width * scale)), max(to_height, round(height * scale))
        spare_x, spare_y = resized[0] - to_width, resized[1] - to_height
        for view in range(views):
            centred = views == 1 or view == 0
            left = spare_x // 2 if centred else rng.randint(0, spare_x)
            top = spare_y // 2 if centred else rng.randint(0, spare_y)
            mirrored = (False, True) if flip else (False,)
            planned += [
                View(index, to_width, to_height, top, left, *resized, flipped)
                for flipped in mirrored
            ]
    return planned
