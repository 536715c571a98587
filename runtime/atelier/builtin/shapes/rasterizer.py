"""Scenes to pixels: places are drawn at random under the scene's relations, then painted with
smooth edges.

Everything is one batch of tensors on one device, so that a GPU paints tens of thousands of pictures
a second. A scene travels as a row of CODE_LENGTH small integers (`encode`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from PIL import Image

from atelier.builtin.shapes.forms import FORMS
from atelier.builtin.shapes.scene import COLOURS, PALETTE, RELATIONS, SHAPES, SIZES, Scene

PIXELS = 128
# count, background, (colour, shape, size) of three things, name of relation 0, subject and name of
# relation 1
CODE_LENGTH = 14
_MARGIN, _GAP, _CANDIDATES = 4.0, 4.0, 48
_CHUNK = 32  # pictures painted at once on the CPU, which is far slower on tensors beyond its cache
# Half extents in pixels, (low, high) for [unsaid, small, large]; three things need to be smaller to
# fit.
_EXTENTS = {
    False: ((13.0, 24.0), (11.0, 14.0), (23.0, 27.0)),
    True: ((12.0, 17.0), (11.0, 13.0), (21.0, 24.0)),
}
_TOWARDS = ((0.0, -1.0), (0.0, 1.0), (-1.0, 0.0), (1.0, 0.0))  # of RELATIONS, y pointing down


def encode(scene: Scene) -> list[int]:
    """A fully specified scene as CODE_LENGTH integers."""
    if scene.background is None or any(t.colour is None or t.shape is None for t in scene.things):
        raise ValueError(
            f"only a scene with every colour and shape given can be drawn, not {scene}"
        )
    if len(scene.relations) != len(scene.things) - 1:
        raise ValueError(
            f"{len(scene.things)} things need {len(scene.things) - 1} relations, not"
            f" {scene.relations}"
        )
    row = [len(scene.things), COLOURS.index(scene.background)]
    for thing in scene.things:
        size = 0 if thing.size is None else 1 + SIZES.index(thing.size)
        row += [COLOURS.index(str(thing.colour)), SHAPES.index(str(thing.shape)), size]
    row += [0] * (11 - len(row))
    for relation in scene.relations:
        row += (
            [relation.subject, RELATIONS.index(relation.name)]
            if len(row) > 11
            else [RELATIONS.index(relation.name)]
        )
    return row + [0] * (CODE_LENGTH - len(row))


def place(
    codes: torch.Tensor, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Places for scenes `codes` (N, CODE_LENGTH).

    Returns (N, 3, 3) of x, y and half extent in pixels, and (N,) whether a place was found.
    """
    n, device = codes.shape[0], codes.device
    codes = codes.long()
    present = torch.arange(3, device=device) < codes[:, :1]  # N 3

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(n, _CANDIDATES, *shape, generator=generator, device=device)

    extents, towards, _ = _tables(device)
    ranges = extents[(codes[:, 0] == 3).long()]  # N 3 2
    low, high = torch.gather(ranges, 1, codes[:, 4:11:3, None].expand(-1, -1, 2))[:, None].unbind(
        -1
    )
    extent = (low + (high - low) * uniform(3)) * present[:, None]  # N C 3

    shared = codes[:, 12, None]  # the thing that thing 2 is tied to
    middle = torch.gather(extent, 2, shared[:, None].expand(-1, _CANDIDATES, 1))[..., 0]
    steps = []
    for name, reach in (
        (codes[:, 11], extent[..., 0] + extent[..., 1]),
        (codes[:, 13], middle + extent[..., 2]),
    ):
        along = reach + _GAP + 24.0 * uniform() ** 2
        aside = along * 0.6 * (2.0 * uniform() - 1.0)
        axis = towards[name][:, None]  # N 1 2
        steps.append(along[..., None] * axis + aside[..., None] * axis.flip(-1))
    first, second = steps[0], torch.zeros_like(steps[0])
    third = torch.where(shared[:, :, None] == 1, second, first) - steps[1]
    at = torch.stack([first, second, third], dim=2)  # N C 3 2
    at = torch.where(
        present[:, None, :, None], at, at[:, :, 1:2] * (codes[:, 0] > 1)[:, None, None, None]
    )
    at = torch.where((codes[:, 0] == 1)[:, None, None, None], torch.zeros_like(at), at)

    lowest, highest = (at - extent[..., None]).amin(2), (at + extent[..., None]).amax(2)  # N C 2
    room = PIXELS - 2.0 * _MARGIN - (highest - lowest)
    apart = torch.ones(n, _CANDIDATES, dtype=torch.bool, device=device)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        clear = (
            (at[:, :, i] - at[:, :, j]).abs()
            >= (extent[..., i] + extent[..., j] + _GAP - 1e-3)[..., None]
        ).any(-1)
        apart &= clear | ~(present[:, i] & present[:, j])[:, None]
    fits = (room > 0).all(-1) & apart
    chosen = fits.float().argmax(1)
    at = at - lowest[:, :, None] + _MARGIN + (room.clamp(min=0.0) * uniform(2))[:, :, None]
    layout = torch.cat([at, extent[..., None]], dim=-1)
    return layout[torch.arange(n, device=device), chosen], fits.any(1)


@lru_cache
def _tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Extents (2, 3, 2), directions (4, 2) and palette (10, 3) in -1..1; kept, as a recorded step
    may not copy them."""
    extents = torch.tensor([_EXTENTS[False], _EXTENTS[True]], device=device)
    palette = torch.tensor([PALETTE[name] for name in COLOURS], device=device) / 127.5 - 1.0
    return extents, torch.tensor(_TOWARDS, device=device), palette


def paint(codes: torch.Tensor, layout: torch.Tensor, pixels: int = PIXELS) -> torch.Tensor:
    """Pictures (N, 3, pixels, pixels) in -1..1 of scenes `codes` at `layout` from `place`, whose
    places are those of PIXELS."""
    codes, device = codes.long(), codes.device
    layout = layout * (pixels / PIXELS)
    palette = _tables(device)[2]
    grid = torch.arange(pixels, device=device, dtype=torch.float32) + 0.5
    picture = palette[codes[:, 1]][:, :, None, None].expand(-1, -1, pixels, pixels)
    for k in range(3):
        x0, y0, extent = (v[:, None, None] for v in layout[:, k].unbind(-1))
        size = extent.clamp(min=1.0)
        x, y = (grid[None, None, :] - x0) / size, (grid[None, :, None] - y0) / size
        shape = codes[:, 3 + 3 * k, None, None]
        level = FORMS[SHAPES[0]](x, y)
        for index, name in enumerate(SHAPES[1:], start=1):
            level = torch.where(shape == index, FORMS[name](x, y), level)
        cover = (0.5 - level * size).clamp(0.0, 1.0) * (codes[:, 0] > k)[:, None, None]
        colour = palette[codes[:, 2 + 3 * k]][:, :, None, None]
        picture = torch.lerp(picture, colour.expand_as(picture), cover[:, None])
    return picture


def draw(scenes: Sequence[Scene], seed: int) -> list[Image.Image]:
    """One picture per scene, places drawn from `seed`. Raises ValueError if a scene has no place in
    the frame."""
    codes = torch.tensor([encode(scene) for scene in scenes])
    generator = torch.Generator().manual_seed(seed)
    layout, found = place(codes, generator)
    for _ in range(8):
        if bool(found.all()):
            break
        layout[~found], found[~found] = place(codes[~found], generator)
    else:
        raise ValueError(f"no room for {scenes[int((~found).nonzero()[0, 0])]}")
    pixels = torch.cat(
        [paint(c, at) for c, at in zip(codes.split(_CHUNK), layout.split(_CHUNK), strict=True)]
    )
    bytes_ = ((pixels + 1.0) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(picture) for picture in bytes_]
