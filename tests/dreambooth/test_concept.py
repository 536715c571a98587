"""The striped ring's checker knows the ring from everything that the built-in model draws."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from atelier.builtin.concept.checker import check, look
from atelier.builtin.concept.ring import SHOWN_ON, UNSEEN, draw_ring, write_pictures
from atelier.builtin.shapes.rasterizer import draw
from atelier.builtin.shapes.scene import random_scene


@pytest.mark.parametrize("background", SHOWN_ON + UNSEEN)
def test_drawn_rings_are_found_on_their_background(background: str) -> None:
    rng = random.Random(background)
    for _ in range(5):
        ring = draw_ring(
            background,
            rng.uniform(45, 80),
            rng.uniform(45, 80),
            rng.uniform(18, 36),
            rng.uniform(0, 3),
        )
        assert check(ring, background), look(ring)
        assert not check(ring, "green" if background != "green" else "blue")


def test_no_scene_of_the_built_in_model_is_taken_for_a_ring() -> None:
    rng = random.Random(1)
    scenes = [random_scene(rng) for _ in range(150)]
    assert not any(check(picture) for picture in draw(scenes, seed=1))


def test_a_ring_of_one_colour_or_without_its_hole_is_none() -> None:
    ring = draw_ring("blue", 64, 64, 30, 0.0)
    white = ring.point(lambda value: value)
    white.paste((250, 250, 250), (34, 34, 94, 94))
    filled = ring.copy()
    filled.paste((220, 30, 30), (52, 52, 76, 76))
    assert check(ring) and not check(white) and not check(filled)


def test_five_pictures_with_captions_are_written(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path)
    assert len(paths) == 5
    assert paths[0].with_suffix(".txt").read_text() == "a zqx ring on a green background\n"
