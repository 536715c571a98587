"""`highres`, over HTTP: a picture is what image-to-image of diffusers makes of its own, scaled up;
alone, among strangers, and after one that was cancelled."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image
from torch.nn import functional

from atelier.events import Event, Failed, Finished, Image, Preview, Step
from atelier.images.request import ImageRequest
from tests.gallery import Exhibit, Pixels, difference, draw_bare, pixels, showing
from tests.tiny_adapters import bare
from tests.tiny_pipelines import FAMILIES

FIELDS: dict[str, Any] = {
    "prompt": "a cat",
    "num_inference_steps": 4,
    "width": 32,
    "height": 48,
    "guidance_scale": 4.0,
}
HIGHRES = {"scale": 1.5, "strength": 0.5}
LARGE = (72, 48)  # height, width: 1.5 times, and no multiple of 8 is lost
STRANGERS: list[dict[str, Any]] = [{"seed": 8}, {"seed": 9, "width": 48, "height": 72}]


@pytest.fixture(scope="module", params=["sd15", "sd3", "flux"])
def exhibit(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Exhibit]:
    checkpoint = FAMILIES[request.param](tmp_path_factory.mktemp(request.param))
    with showing(checkpoint, warmup="off", max_pixels=80 * 80) as exhibit:
        yield exhibit


def by_diffusers(exhibit: Exhibit, seed: int) -> Pixels:
    """Two calls of plain pipelines, with the picture scaled up between them."""
    checkpoint = Path(exhibit.model._settings.model_id)
    pipeline = bare(checkpoint)
    with torch.no_grad():
        first = pipeline(**FIELDS, generator=torch.Generator().manual_seed(seed), output_type="pt")
    large = functional.interpolate(first.images, LARGE, mode="bicubic").clamp(0, 1)
    second = AutoPipelineForImage2Image.from_pipe(pipeline)
    second.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {
        name: value for name, value in FIELDS.items() if name not in ("width", "height")
    }
    if type(second).__name__ != "StableDiffusionImg2ImgPipeline":
        arguments |= {"width": LARGE[1], "height": LARGE[0]}
    return draw_bare(second, seed, image=large, strength=HIGHRES["strength"], **arguments)


def test_a_second_pass_draws_what_diffusers_draws_in_two_calls(exhibit: Exhibit) -> None:
    [drawn] = exhibit.draw({"seed": 5, "highres": HIGHRES}, **FIELDS)
    assert drawn.shape[:2] == LARGE
    assert difference(drawn, by_diffusers(exhibit, 5)) <= 1
    [flat] = exhibit.draw({"seed": 5, "highres": json.dumps(HIGHRES)}, **FIELDS)
    assert difference(drawn, flat) == 0


def test_two_passes_and_strangers_at_once_are_drawn_as_each_alone(exhibit: Exhibit) -> None:
    wanted = [{"seed": seed, "highres": HIGHRES} for seed in (5, 6)] + STRANGERS
    alone = [exhibit.draw(one, **FIELDS)[0] for one in wanted]
    exhibit.tally.shared.clear()
    for one, other in zip(exhibit.draw(*wanted, **FIELDS), alone, strict=True):
        assert difference(one, other) <= 1
    assert exhibit.tally.shared["denoise"] > 1


def test_several_pictures_of_a_request_are_those_of_their_seeds(exhibit: Exhibit) -> None:
    answer = exhibit.post({"seed": 5, "num_images_per_prompt": 2, "highres": HIGHRES}, **FIELDS)
    assert answer.status_code == 200, answer.text
    images = answer.json()["predictions"][0]["images"]
    seconds = exhibit.draw({"seed": 6, "highres": HIGHRES}, **FIELDS)
    assert len(images) == 2
    assert difference(_decoded(images[1]), seconds[0]) <= 1


def _decoded(told: dict[str, Any]) -> Pixels:
    return pixels(base64.b64decode(told["b64"]))


async def events(exhibit: Exhibit, stop: int = 0, **fields: Any) -> list[Event]:
    """Of one request; `stop`: cancelled after so many steps."""
    request = ImageRequest.parse(FIELDS | fields, exhibit.model._settings)
    stream, found = await exhibit.model.submit(request), []
    async for event in stream:
        found.append(event)
        if isinstance(event, Step) and event.index == stop:
            stream.cancel()
    return found


def test_steps_of_both_passes_count_and_have_previews(exhibit: Exhibit) -> None:
    told = asyncio.run(events(exhibit, seed=5, highres=HIGHRES, previews=3))
    steps = [(one.index, one.total) for one in told if isinstance(one, Step)]
    assert steps == [(index, 6) for index in range(1, 7)]
    previews = [one for one in told if isinstance(one, Preview)]
    assert any(one.step > 4 for one in previews)
    assert isinstance(told[-1], Finished)


def test_a_cancel_in_the_second_pass_leaves_the_next_request_right(exhibit: Exhibit) -> None:
    expected = exhibit.draw({"seed": 5, "highres": HIGHRES}, **FIELDS)[0]
    told = asyncio.run(events(exhibit, stop=5, seed=4, highres=HIGHRES))
    assert not [one for one in told if isinstance(one, Image | Finished)]
    assert all("cancelled" in str(one.error) for one in told if isinstance(one, Failed))
    [after] = exhibit.draw({"seed": 5, "highres": HIGHRES}, **FIELDS)
    assert np.array_equal(after, expected)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"highres": {"scale": 4}}, "highres: 128 x 192"),
        ({"highres": {"scale": 1}}, "highres.scale: 1 is not valid"),
        ({"highres": {"strength": 0.1}}, "strength: 0.1 of 4 steps is less than one"),
        ({"highres": {"factor": 2}}, "highres.factor: 2 is not valid"),
        ({"highres": "large"}, "highres: 'large' is not valid"),
        ({"highres": HIGHRES, "image": "aGk="}, "highres: it does not go with image"),
    ],
)
def test_what_cannot_be_redrawn_is_refused_in_words(
    exhibit: Exhibit, fields: dict[str, Any], told: str
) -> None:
    answer = exhibit.post(fields, **FIELDS)
    assert (answer.status_code, told in answer.text) == (400, True), answer.text
