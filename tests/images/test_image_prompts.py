"""IP-Adapters, over HTTP: a picture drawn by a picture is diffusers' own, whoever else is at work,
and the next plain request finds the plain denoiser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from transformers import CLIPVisionModelWithProjection, SiglipImageProcessor, SiglipVisionModel

from tests.gallery import Exhibit, Pixels, difference, draw_bare, showing
from tests.images.test_controls import FIELDS, SIZE, drawn, entry, text
from tests.tiny_controls import CHECKPOINTS, control, ip_adapter

FAMILIES = ("sd15", "sdxl", "flux", "sd3")


@dataclass(frozen=True)
class Prompted:
    """A served family with two adapters and a control, and diffusers beside it."""

    family: str
    exhibit: Exhibit
    checkpoint: Path
    folder: Path

    def bare(self, seed: int, *chosen: tuple[str, str, float], **arguments: Any) -> Pixels:
        """By diffusers alone; `chosen` are adapters, pictures and weights."""
        pipeline: Any = DiffusionPipeline.from_pretrained(self.checkpoint)
        pipeline.set_progress_bar_config(disable=True)
        if chosen and self.family == "sd3":
            [(name, picture, weight)] = chosen
            pipeline.register_modules(
                image_encoder=SiglipVisionModel.from_pretrained(self.folder / "image_encoder"),
                feature_extractor=SiglipImageProcessor(size={"height": 32, "width": 32}),
            )
            pipeline.load_ip_adapter(self.folder, subfolder="", weight_name=f"{name}.safetensors")
            pipeline.set_ip_adapter_scale(weight)
            arguments["ip_adapter_image"] = drawn(picture)
        elif chosen:
            encoder = CLIPVisionModelWithProjection.from_pretrained(self.folder / "image_encoder")
            pipeline.register_modules(image_encoder=encoder)
            pipeline.load_ip_adapter(
                str(self.folder),
                subfolder="",
                weight_name=[f"{name}.safetensors" for name, _, _ in chosen],
            )
            pipeline.set_ip_adapter_scale([weight for _, _, weight in chosen])
            arguments["ip_adapter_image"] = [drawn(picture) for _, picture, _ in chosen]
        return draw_bare(pipeline, seed, **FIELDS, **SIZE, **arguments)


@pytest.fixture(scope="module", params=FAMILIES)
def prompted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prompted]:
    root = tmp_path_factory.mktemp("prompts")
    checkpoint = CHECKPOINTS[request.param](root)
    names = "xyp" if request.param == "sd15" else "xy"
    for seed, name in enumerate(names, 1):
        ip_adapter(checkpoint, root / "ip", f"{name}.safetensors", seed, plus=name == "p")
    control(checkpoint, root / "net", 3)
    adapters = ",".join(str(root / "ip" / f"{name}.safetensors") for name in names)
    with showing(checkpoint, ip_adapters=adapters, controlnets=str(root / "net")) as exhibit:
        yield Prompted(request.param, exhibit, checkpoint, root / "ip")


def test_an_image_prompt_draws_what_diffusers_draws(prompted: Prompted) -> None:
    """One adapter, another weight and picture, both together, and a plain request, all at once;
    those of one adaptation share calls."""
    exhibit = prompted.exhibit
    requests: list[dict[str, Any]] = [
        {"image_prompt": [entry("x", "slope", weight=0.8)], "seed": 1},
        {"image_prompt": [entry("x", "rows", weight=0.5)], "seed": 2},
        {"image_prompt": [entry("y", "rows", weight=0.3), entry("x", "slope")], "seed": 3},
        {"seed": 1},
    ]
    both = [("x", "slope", 1.0), ("y", "rows", 0.3)]
    if prompted.family == "sd3":  # it takes one
        del requests[2]["image_prompt"][1], both[0]
    wanted = [
        prompted.bare(1, ("x", "slope", 0.8)),
        prompted.bare(2, ("x", "rows", 0.5)),
        prompted.bare(3, *both),
        prompted.bare(1),
    ]
    shown = {**FIELDS, **SIZE}
    assert difference(exhibit.draw(requests[0], **shown)[0], wanted[0]) <= 1
    for got, expected in zip(exhibit.draw(*requests, **shown), wanted, strict=True):
        assert difference(got, expected) <= 1
    assert difference(wanted[0], wanted[3]) > 20
    exhibit.tally.shared.clear()
    twins = [requests[0], requests[0] | {"seed": 4}]
    alone = [wanted[0], prompted.bare(4, ("x", "slope", 0.8))]
    for got, expected in zip(exhibit.draw(*twins, **shown), alone, strict=True):
        assert difference(got, expected) <= 1
    assert exhibit.tally.shared["denoise"] > 1
    assert not exhibit.verdicts.alone


@pytest.mark.parametrize("prompted", ["sd15"], indirect=True)
def test_a_plus_adapter_goes_alone_and_beside_a_plain_one(prompted: Prompted) -> None:
    requests: list[dict[str, Any]] = [
        {"image_prompt": [entry("p", "slope", weight=0.6)], "seed": 1},
        {"image_prompt": [entry("x", "rows"), entry("p", "slope", weight=0.4)], "seed": 2},
    ]
    wanted = [
        prompted.bare(1, ("p", "slope", 0.6)),
        prompted.bare(2, ("p", "slope", 0.4), ("x", "rows", 1.0)),
    ]
    for got, expected in zip(
        prompted.exhibit.draw(*requests, **FIELDS, **SIZE), wanted, strict=True
    ):
        assert difference(got, expected) <= 1


@pytest.mark.parametrize("prompted", ["sd3"], indirect=True)
def test_two_where_one_is_taken_are_refused(prompted: Prompted) -> None:
    two = {"image_prompt": [entry("x", "rows"), entry("y", "slope")]}
    answer = prompted.exhibit.post(two, **FIELDS, **SIZE)
    assert answer.status_code == 400
    assert "image_prompt: x, y at once; StableDiffusion3Pipeline takes 1" in answer.text
    off = {"image_prompt": [entry("x", "rows"), entry("y", "slope", weight=0)], "seed": 6}
    drawn_by_one = prompted.exhibit.draw(off, **FIELDS, **SIZE)[0]
    assert difference(drawn_by_one, prompted.bare(6, ("x", "rows", 1.0))) <= 1


@pytest.mark.parametrize("prompted", ["sd15", "sd3"], indirect=True)
def test_an_edit_takes_an_image_prompt(prompted: Prompted) -> None:
    edit = {"image": text(drawn("rows")), "strength": 0.7, "seed": 8}
    look = {"image_prompt": [entry("x", "slope")]}
    plain, looking = prompted.exhibit.draw(edit, edit | look, **FIELDS)
    assert difference(plain, looking) > 10


@pytest.mark.parametrize("prompted", ["sd15", "flux", "sd3"], indirect=True)
def test_an_image_prompt_goes_with_a_control(prompted: Prompted) -> None:
    """Each shows, for several pictures of one request too; a weight of 0 is none."""
    look, lie = {"image_prompt": [entry("x", "slope")]}, {"control": [entry("net", "rows")]}
    off = {"image_prompt": [entry("x", "slope", weight=0)]}
    shown = {**FIELDS, **SIZE, "seed": 5}
    plain, both, one, other, without = prompted.exhibit.draw(
        {}, look | lie, look, lie, off, **shown
    )
    assert np.array_equal(plain, without)
    for other_one in (plain, one, other):
        assert difference(both, other_one) > 10
    answer = prompted.exhibit.post(look | lie | {"num_images_per_prompt": 2}, **shown)
    assert len(answer.json()["predictions"][0]["images"]) == 2


@pytest.mark.parametrize("prompted", ["sd15"], indirect=True)
def test_what_cannot_be_an_image_prompt_is_refused_in_words(prompted: Prompted) -> None:
    for given, told in (
        ([entry("z", "rows")], "image_prompt.0.name: 'z' is not here; available: p, x, y"),
        ([entry("x", "rows")] * 2, "image_prompt.1.name: x is named twice"),
        ([entry("x", "rows", start=0.1)], "image_prompt.0.start: 0.1 is not valid"),
        ([entry("x", "rows", weight=-1)], "image_prompt.0.weight: -1 is not valid"),
    ):
        answer = prompted.exhibit.post({"image_prompt": given}, **FIELDS)
        assert answer.status_code == 400 and told in answer.json()["error"]
    assert prompted.exhibit.model.metadata()["image_prompts"] == ["p", "x", "y"]
