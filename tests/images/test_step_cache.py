"""The step cache: fewer steps are computed, each request for itself, and the pictures still show
what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PIL

from atelier.builtin.shapes.checker import check
from atelier.builtin.shapes.evaluate import held_out_cases
from tests.gallery import Exhibit, difference, showing
from tests.tiny_families import qwen_image
from tests.tiny_pipelines import flux_1, stable_diffusion_1, stable_diffusion_xl

BUILT_IN = Path(__file__).parents[2] / "runtime" / "atelier" / "builtin" / "shapes"
FAMILIES = (stable_diffusion_1, stable_diffusion_xl, flux_1, qwen_image)
STEPS = 20


@pytest.fixture(scope="module")
def built_in() -> Iterator[Exhibit]:
    with showing(BUILT_IN) as exhibit:
        yield exhibit


def steps_run(exhibit: Exhibit, **fields: Any) -> int | None:
    request = {"prompt": "a red circle on a blue background", "seed": 1} | fields
    answer = exhibit.post({"num_inference_steps": STEPS} | request)
    assert answer.status_code == 200, answer.text
    run: int | None = answer.json()["predictions"][0].get("steps_run")
    return run


def test_a_higher_bound_leaves_fewer_steps_to_compute(built_in: Exhibit) -> None:
    run = [steps_run(built_in, step_cache=bound) or 0 for bound in ("low", "medium", "high")]
    assert STEPS > run[0] > run[1] > run[2] >= 4
    assert steps_run(built_in, step_cache=0.1) == run[1]


def test_without_it_nothing_is_said_and_nothing_skipped(built_in: Exhibit) -> None:
    assert steps_run(built_in) is None
    assert steps_run(built_in, step_cache="off") is None


def test_a_bound_that_is_none_is_refused_by_name(built_in: Exhibit) -> None:
    answer = built_in.post({"prompt": "a cat", "step_cache": "first-block"})
    assert answer.status_code == 400 and "step_cache" in answer.text


def test_pictures_of_a_batch_are_the_lone_ones_and_right(built_in: Exhibit) -> None:
    cases = held_out_cases(4)
    requests = [
        {
            "prompt": case.prompt,
            "seed": case.seed,
            "num_inference_steps": STEPS,
            "step_cache": bound,
        }
        for case, bound in zip(cases, ("low", "medium", "low", "off"), strict=True)
    ]
    alone = [built_in.draw(request)[0] for request in requests]
    built_in.tally.shared.clear()
    together = built_in.draw(*requests)
    assert built_in.tally.shared["denoise"] > 1
    for one, other in zip(together, alone, strict=True):
        assert difference(one, other) <= 2
    right = [
        check(PIL.fromarray(one), case.scene).right
        for one, case in zip(together, cases, strict=True)
    ]
    assert sum(right) >= len(cases) - 1


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_every_family_has_it(family: Callable[[Path], Path], tmp_path: Path) -> None:
    with showing(family(tmp_path), warmup="off", step_cache="high") as exhibit:
        run = steps_run(exhibit, width=32, height=32, prompt="a cat")
        assert run is not None and 4 <= run <= STEPS
        loose = steps_run(exhibit, width=32, height=32, prompt="a cat", step_cache=0.99)
        assert loose is not None and loose < STEPS
