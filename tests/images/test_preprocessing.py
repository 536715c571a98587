"""What is made of a picture before a control reads it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from atelier.images.preprocessing import blur, canny, tile


def picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8), "L").convert("RGB")


def edges(values: np.ndarray) -> np.ndarray:
    return np.asarray(canny(picture(values)))[..., 0] > 0


def test_canny_draws_the_outline_of_a_square_one_pixel_wide() -> None:
    square = np.zeros((48, 64))
    square[10:30, 20:50] = 255
    found = edges(square)
    assert found.shape == (48, 64)
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    assert abs(rows[0] - 9.5) <= 1 and abs(rows[-1] - 29.5) <= 1
    assert abs(columns[0] - 19.5) <= 1 and abs(columns[-1] - 49.5) <= 1
    assert (found[15:25].sum(axis=1) == 2).all()  # a left and a right edge
    assert (found[:, 25:45].sum(axis=0) == 2).all()


def test_canny_finds_slanted_edges_and_none_where_nothing_changes() -> None:
    y, x = np.mgrid[:64, :64]
    found = edges(np.where(x + y > 64, 255, 0))
    assert (found[4:-4].sum(axis=1) >= 1).all() and (found.sum(axis=1) <= 2).all()
    assert not edges(np.full((32, 32), 77)).any()
    assert not edges(x * 2).any()  # a slope below the threshold


def test_a_faint_edge_is_kept_where_it_goes_on_from_a_strong_one() -> None:
    values = np.zeros((60, 40))
    values[:, 20:] = np.linspace(200, 30, 60)[:, None]  # Sobel gives 800 above, 120 below
    assert edges(values)[:, 15:25].any(axis=1).all()
    values[:40, 20:] = 32
    values[40:, 20:] = 30
    assert not edges(values).any()


def test_blur_and_tile_keep_the_size_and_lose_the_detail() -> None:
    y, x = np.mgrid[:64, :96]
    noisy = picture((x + y) % 2 * 255)
    for made in (blur(noisy), tile(noisy)):
        assert made.size == (96, 64) and made.mode == "RGB"
        assert np.asarray(made).std() < 20
    assert np.asarray(tile(picture(np.full((10, 10), 90)))).std() == 0
