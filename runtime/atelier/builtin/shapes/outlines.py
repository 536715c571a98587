"""Scenes as white outlines on black, what the control for edges reads, and whether a picture keeps
to them.

An outline is what `preprocess: canny` makes of the scene painted white on black: the same masks and
thresholds, for a whole batch on one device.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from functools import lru_cache

import torch
from PIL import Image
from torch.nn import functional as F

from atelier.builtin.shapes.checker import Seen, look
from atelier.builtin.shapes.prompts import describe
from atelier.builtin.shapes.rasterizer import encode, paint, place
from atelier.builtin.shapes.scene import COLOURS, random_scene

LOW, HIGH = 100, 200
TANGENT = 0.41421356  # of 22.5 degrees
FAR = 4.0  # pixels between the centres of a thing and its outline
UNLIKE = 0.2  # share by which their sizes may differ


def outlines(codes: torch.Tensor, layout: torch.Tensor) -> torch.Tensor:
    """(N, 3, 128, 128) in -1 and 1 of scenes `codes` at `layout`, as `rasterizer.paint` takes
    them."""
    bare = codes.long().clone()
    bare[:, 1] = COLOURS.index("black")
    bare[:, 2:11:3] = COLOURS.index("white")
    grey = ((paint(bare, layout)[:, :1] + 1.0) * 127.5).round()
    across, down = (
        F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), mask) for mask in _sobel(codes.device)
    )
    strength = across.abs() + down.abs()
    x, y = across.abs(), down.abs()
    level, upright = y <= TANGENT * x, x < TANGENT * y
    rising = (across >= 0) == (down >= 0)
    wide = F.pad(strength, (1, 1, 1, 1))

    def beside(rows: int, columns: int) -> torch.Tensor:
        height, width = strength.shape[-2:]
        return wide[..., 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    before = torch.where(rising, beside(-1, -1), beside(-1, 1))
    behind = torch.where(rising, beside(1, 1), beside(1, -1))
    before = torch.where(upright, beside(-1, 0), torch.where(level, beside(0, -1), before))
    behind = torch.where(upright, beside(1, 0), torch.where(level, beside(0, 1), behind))
    edges = (strength > before) & (strength >= behind) & (strength > LOW)
    return _connected(edges, strength > HIGH).expand(-1, 3, -1, -1) * 2.0 - 1.0


def _connected(weak: torch.Tensor, strong: torch.Tensor) -> torch.Tensor:
    """Weak edges that a few steps along weak ones join to a strong one: white on black, none is
    longer."""
    found = (weak & strong).float()
    for _ in range(4):
        found = F.max_pool2d(found, 3, stride=1, padding=1) * weak
    return found


@lru_cache
def _sobel(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=device)
    return across[None, None], across.T[None, None].contiguous()


@dataclass(frozen=True)
class OutlinedCase:
    """A prompt, the picture of its scene, the outlines of that picture, and a seed."""

    prompt: str
    picture: Image.Image
    outline: Image.Image
    seed: int


def outlined_cases(count: int, seed: int = 2025) -> list[OutlinedCase]:
    """Cases of combinations that training never saw, with one, two and three things in turn."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    cases: list[OutlinedCase] = []
    while len(cases) < count:
        scene = random_scene(rng, count=1 + len(cases) % 3, held_out=True)
        codes = torch.tensor([encode(scene)])
        layout, found = place(codes, generator)
        if not bool(found):
            continue
        picture, outline = (
            Image.fromarray(((one[0] + 1.0) * 127.5).round().byte().permute(1, 2, 0).numpy())
            for one in (paint(codes, layout), outlines(codes, layout))
        )
        prompt = describe(scene, rng, plain=True)
        cases.append(OutlinedCase(prompt, picture, outline, len(cases)))
    return cases


def keeps_to(picture: Image.Image, case: OutlinedCase) -> bool:
    """Whether the checker sees as many things as the outlines show, each of the same shape, where
    its outline is, as large."""
    wanted, seen = look(case.picture)[0], look(picture)[0]
    if len(wanted) != len(seen):
        return False
    return any(
        all(_is_there(*pair) for pair in zip(wanted, order, strict=True))
        for order in itertools.permutations(seen)
    )


def _is_there(wanted: Seen, seen: Seen) -> bool:
    near = abs(wanted.x - seen.x) <= FAR and abs(wanted.y - seen.y) <= FAR
    alike = abs(wanted.extent - seen.extent) <= UNLIKE * wanted.extent
    return near and alike and wanted.shape == seen.shape
