"""Denoiser calls that two processes share over gloo: pictures equal those of one process, whichever
way a call is shared; what a group cannot do is said."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from atelier.settings import Settings
from tests.gallery import Pixels, difference, showing
from tests.groups import group_of
from tests.processes import CONTEXT
from tests.tiny_families import qwen_image
from tests.tiny_pipelines import flux_1, stable_diffusion_3, stable_diffusion_xl

REQUESTS = [
    {"prompt": "a red cup", "seed": 3, "num_inference_steps": 5, "width": 64, "height": 64},
    {"prompt": "a big cup", "seed": 4, "num_inference_steps": 4, "width": 64, "height": 64},
    {"prompt": "a tall green tree", "seed": 5, "num_inference_steps": 3, "width": 64, "height": 96},
]


def drawn(
    checkpoint: Path, size: int, caplog: pytest.LogCaptureFixture
) -> tuple[list[Pixels], set[str]]:
    """Each request alone, then all at once; and the ways that were proven."""
    given = {"sequence_parallel_size": size, "omp_num_threads": 1, "dtype": "float32"}
    settings = Settings(model_id=str(checkpoint), device="cpu", **given)
    caplog.set_level(logging.INFO, "atelier.images.sharing")
    try:
        with group_of(CONTEXT, settings) as group, showing(checkpoint, group, **given) as shown:
            pictures = [shown.draw(one)[0] for one in REQUESTS] + shown.draw(*REQUESTS)
    finally:
        dist.destroy_process_group()
    said = [record.getMessage() for record in caplog.records]
    return pictures, {found[1] for line in said if (found := re.search(r"by (\w+): shared", line))}


@pytest.mark.parametrize(
    ("family", "ways"),
    [
        (flux_1, {"rows", "sequence"}),
        (qwen_image, {"rows", "sequence"}),
        (stable_diffusion_3, {"rows"}),
        (stable_diffusion_xl, {"rows"}),
    ],
)
def test_two_ranks_draw_what_one_draws(
    family: Callable[[Path], Path],
    ways: set[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    checkpoint = family(tmp_path)
    with showing(checkpoint) as plain:
        expected = [plain.draw(one)[0] for one in REQUESTS]
    pictures, shared = drawn(checkpoint, 2, caplog)
    assert shared == ways
    for picture, lone in zip(pictures, [*expected, *expected], strict=True):
        assert difference(picture, lone) <= 1
