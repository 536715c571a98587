"""Whatever comes at whatever time, every picture is the one that the bare pipeline draws alone.

Requests are drawn at random from a fixed seed, which names the test, so that a failure can be run
again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from PIL import Image as PIL

from atelier.builtin.shapes.checker import check
from atelier.builtin.shapes.evaluate import held_out_cases
from atelier.events import Failed, Image, Step
from atelier.images.model import ImageModel
from atelier.images.request import ImageRequest
from atelier.settings import Settings
from tests.gallery import Pixels, Tally, batch_always, difference, draw_bare, showing
from tests.tiny_families import qwen_image, z_image
from tests.tiny_pipelines import flux_1, stable_diffusion_1, stable_diffusion_3, stable_diffusion_xl

PROMPTS = ("a cat", "a dog", "two birds on a wire", "")
SIZES = ((32, 32), (64, 32))
GUIDANCE = (1.0, 2.5, 7.0)
OF_NOISE = (None, "DDIMScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler")
OF_FLOW = (None, "FlowMatchHeunDiscreteScheduler")
VISITORS = 14
LONGEST_WAIT_S = 0.15

BUILT_IN = Path(__file__).parents[2] / "runtime" / "atelier" / "builtin" / "shapes"

FAMILIES: dict[str, tuple[Callable[[Path], Path], tuple[str | None, ...]]] = {
    "built-in": (lambda root: BUILT_IN, (None,)),
    "sd15": (stable_diffusion_1, OF_NOISE),
    "sdxl": (stable_diffusion_xl, OF_NOISE),
    "sd3": (stable_diffusion_3, OF_FLOW),
    "flux": (flux_1, (None,)),
    "qwen-image": (qwen_image, (None,)),
    "z-image": (z_image, (None,)),
}


@dataclass(frozen=True)
class Visit:
    """A request, when it comes, and after which step it goes away, if it does not wait for the
    end."""

    fields: dict[str, Any]
    arrives_s: float
    leaves_after: int | None

    @classmethod
    def random(cls, dice: random.Random, schedulers: tuple[str | None, ...]) -> Visit:
        width, height = dice.choice(SIZES)
        fields = {
            "prompt": dice.choice(PROMPTS),
            "negative_prompt": dice.choice(("", "blurry")),
            "seed": dice.randrange(1000),
            "num_inference_steps": dice.randint(2, 9),
            "guidance_scale": dice.choice(GUIDANCE),
            "width": width,
            "height": height,
        }
        if scheduler := dice.choice(schedulers):
            fields["scheduler"] = scheduler
        leaves = (
            dice.randint(1, fields["num_inference_steps"] - 1) if dice.random() < 0.25 else None
        )
        return cls(fields, dice.uniform(0, LONGEST_WAIT_S), leaves)


@dataclass
class House:
    model: ImageModel
    tally: Tally
    settings: Settings
    bare: Any
    schedulers: tuple[str | None, ...]

    async def receive(self, visit: Visit) -> Pixels | None:
        """The picture, or None if the visitor left."""
        await asyncio.sleep(visit.arrives_s)
        stream = await self.model.submit(ImageRequest.parse(visit.fields, self.settings))
        drawn = None
        async for event in stream:
            assert not isinstance(event, Failed), event
            if isinstance(event, Step) and event.index == visit.leaves_after:
                stream.cancel()
            elif isinstance(event, Image):
                drawn = np.frombuffer(event.pixels, np.uint8).reshape(
                    event.height, event.width, event.channels
                )
        return drawn

    async def receive_all(self, visits: list[Visit]) -> list[Pixels | None]:
        return await asyncio.gather(*map(self.receive, visits))

    def draw_alone(self, fields: dict[str, Any]) -> Pixels:
        own = self.bare.scheduler
        arguments = {name: value for name, value in fields.items() if name != "scheduler"}
        scheduler = getattr(diffusers, fields.get("scheduler", type(own).__name__))
        self.bare.scheduler = scheduler.from_config(own.config)
        try:
            return draw_bare(self.bare, **arguments)
        finally:
            self.bare.scheduler = own


@pytest.fixture(scope="module", params=FAMILIES)
def house(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    build, schedulers = FAMILIES[request.param]
    checkpoint = build(tmp_path_factory.mktemp("checkpoints"))
    settings, tally = Settings(model_id=str(checkpoint), device="cpu", dtype="float32"), Tally()
    model = ImageModel(settings, tally)
    model.load()
    batch_always(model)
    bare = diffusers.DiffusionPipeline.from_pretrained(checkpoint)
    bare.set_progress_bar_config(disable=True)
    yield House(model, tally, settings, bare, schedulers)
    model.close()


def test_pictures_of_a_batch_are_as_right_as_lone_ones() -> None:
    """The checker looks at pixels only; it says of each picture of the built-in model whether it
    shows its prompt."""
    cases = held_out_cases(6)
    with showing(BUILT_IN) as exhibit:
        requests = [
            {"prompt": case.prompt, "seed": case.seed, "num_inference_steps": 16} for case in cases
        ]
        together = exhibit.draw(*requests)
        alone = [exhibit.draw(request)[0] for request in requests]
        assert exhibit.tally.shared["denoise"] >= len(cases)
    right = [
        check(PIL.fromarray(picture), case.scene).right
        for picture, case in zip(together, cases, strict=True)
    ]
    assert right == [
        check(PIL.fromarray(picture), case.scene).right
        for picture, case in zip(alone, cases, strict=True)
    ]
    assert sum(right) > len(cases) / 2


@pytest.mark.parametrize("seed", range(2))
def test_every_picture_is_the_one_drawn_alone(house: House, seed: int) -> None:
    dice = random.Random(seed)
    visits = [Visit.random(dice, house.schedulers) for _ in range(VISITORS)]
    house.tally.shared.clear()

    pictures = asyncio.run(house.receive_all(visits))

    for visit, picture in zip(visits, pictures, strict=True):
        assert (picture is None) == (visit.leaves_after is not None)
        if picture is not None:
            assert difference(picture, house.draw_alone(visit.fields)) <= 1, visit
    assert house.tally.shared["denoise"] > 1
    assert house.model.depth == 0
