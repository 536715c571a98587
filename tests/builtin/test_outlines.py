"""Outlines that the built-in model's control for edges reads, and whether pictures keep to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atelier.builtin.shapes import train_control
from atelier.builtin.shapes.outlines import OutlinedCase, keeps_to, outlined_cases, outlines
from atelier.builtin.shapes.rasterizer import encode, paint, place
from atelier.builtin.shapes.scene import COLOURS, Scene, Thing, is_held_out
from atelier.images.preprocessing import canny
from atelier.sources import inspect
from atelier.sources.checkpoint.controls import inspect_control
from tests.gallery import showing
from tests.images.test_controls import text

SHAPES = Path(train_control.__file__).parent


@pytest.fixture(scope="module")
def cases() -> list[OutlinedCase]:
    return outlined_cases(12)


def test_outlines_are_what_canny_makes_of_white_on_black() -> None:
    scene = Scene((Thing("white", "star", "large"),), (), "black")
    codes = torch.tensor([encode(scene)])
    layout = place(codes, torch.Generator().manual_seed(1))[0]

    def shown(batch: torch.Tensor) -> Image.Image:
        values = ((batch[0] + 1) * 127.5).round().byte().permute(1, 2, 0)
        return Image.fromarray(values.numpy())

    by_canny = np.asarray(canny(shown(paint(codes, layout))))
    assert np.array_equal(np.asarray(shown(outlines(codes, layout))), by_canny)
    assert 100 < (by_canny[..., 0] > 0).sum() < 500
    recoloured = codes.clone()
    recoloured[:, 1], recoloured[:, 2] = COLOURS.index("red"), COLOURS.index("blue")
    assert torch.equal(outlines(recoloured, layout), outlines(codes, layout))


def test_a_picture_keeps_to_its_own_outlines_alone(cases: list[OutlinedCase]) -> None:
    assert all(keeps_to(case.picture, case) for case in cases)
    others = [*cases[3:], *cases[:3]]  # as many things, elsewhere or of another shape
    assert not any(keeps_to(other.picture, case) for other, case in zip(others, cases, strict=True))
    for case in cases:
        moved = np.roll(np.asarray(case.picture), 6, axis=1)
        assert not keeps_to(Image.fromarray(moved), case)


def test_cases_are_held_out_and_come_with_the_same_seed(cases: list[OutlinedCase]) -> None:
    from atelier.builtin.shapes.prompts import parse

    assert [case.prompt for case in outlined_cases(12)] == [case.prompt for case in cases]
    assert all(is_held_out(parse(case.prompt)) for case in cases)


def test_the_control_begins_without_effect_and_fits_the_model(tmp_path: Path) -> None:
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel.from_pretrained(SHAPES / "transformer")
    control = train_control.build_control(transformer)
    made = control(
        torch.randn(2, 16, 16, 16),
        torch.randn(2, 16, 16, 16),
        pooled_projections=torch.randn(2, 160),
        timestep=torch.full((2,), 500.0),
        return_dict=False,
    )[0]
    assert len(made) == 3 and not any(one.any() for one in made)
    control.save_pretrained(tmp_path)
    found = inspect_control("edges", tmp_path, inspect(SHAPES), "StableDiffusion3Pipeline")
    assert found.component.parameters * 2 < 6_000_000


def test_the_served_model_keeps_to_outlines(cases: list[OutlinedCase]) -> None:
    with showing(SHAPES, controlnets="edges=builtin/shapes/edges") as exhibit:
        requests = [
            {
                "prompt": case.prompt,
                "seed": case.seed,
                "control": [{"name": "edges", "image": text(case.outline)}],
            }
            for case in cases[:6]
        ]
        drawn = exhibit.draw(*requests, guidance_scale=4.0, max_sequence_length=32)
    pictures = [Image.fromarray(one) for one in drawn]
    kept = [keeps_to(one, case) for one, case in zip(pictures, cases, strict=False)]
    assert sum(kept) >= 4
