"""ControlNets of every family, over HTTP: a controlled picture is diffusers' own, whoever else is
at work; what the control says shows."""

from __future__ import annotations

import base64
import inspect
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from tests.gallery import Exhibit, Pixels, difference, draw_bare, showing
from tests.tiny_controls import CHECKPOINTS, control, t2i_adapter

FIELDS: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 3, "guidance_scale": 4.0}
SIDE = 32
SIZE = {"width": SIDE, "height": SIDE}

PIPELINES = {
    "sd15": "StableDiffusionControlNetPipeline",
    "sdxl": "StableDiffusionXLControlNetPipeline",
    "sd3": "StableDiffusion3ControlNetPipeline",
    "flux": "FluxControlNetPipeline",
}


def drawn(kind: str, side: int = SIDE) -> Image.Image:
    """Pictures that differ in every part."""
    field = np.indices((side, side)).sum(axis=0) if kind == "slope" else np.indices((side, side))[0]
    values = (field * (3 if kind == "slope" else 2)) % 256
    return Image.fromarray(np.stack([values, values[::-1], values.T], -1).astype(np.uint8))


def text(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def entry(name: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "image": text(drawn(kind)), **more}


@dataclass(frozen=True)
class Controlled:
    """A served family with two controls, and diffusers beside it."""

    family: str
    exhibit: Exhibit
    checkpoint: Path
    nets: dict[str, Path]

    def bare(self, seed: int, *chosen: tuple[str, str], **arguments: Any) -> Pixels:
        """By diffusers alone, `chosen` being names of controls and of pictures."""
        base: Any = DiffusionPipeline.from_pretrained(self.checkpoint)
        pipeline_class = getattr(diffusers, PIPELINES[self.family])
        kind = {"sd3": "SD3ControlNetModel", "flux": "FluxControlNetModel"}.get(
            self.family, "ControlNetModel"
        )
        nets = [getattr(diffusers, kind).from_pretrained(self.nets[name]) for name, _ in chosen]
        pictures = [drawn(picture) for _, picture in chosen]
        several = len(nets) > 1
        known = base.components | {"controlnet": nets if several else nets[0]}
        known["requires_safety_checker"] = False
        wanted = inspect.signature(pipeline_class.__init__).parameters
        pipeline = pipeline_class(**{name: known[name] for name in wanted if name in known})
        pipeline.set_progress_bar_config(disable=True)
        slot = "control_image" if "3" in pipeline_class.__name__ else "image"
        slot = "control_image" if "Flux" in pipeline_class.__name__ else slot
        given = {slot: pictures if several else pictures[0]}
        return draw_bare(pipeline, seed, **FIELDS, **SIZE, **given, **arguments)


@pytest.fixture(scope="module", params=PIPELINES)
def controlled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Controlled]:
    root = tmp_path_factory.mktemp("controls")
    checkpoint = CHECKPOINTS[request.param](root)
    nets = {name: control(checkpoint, root / name, seed) for seed, name in enumerate("ab", 1)}
    named = ",".join(f"{name}={path}" for name, path in nets.items())
    with showing(checkpoint, controlnets=named) as exhibit:
        yield Controlled(request.param, exhibit, checkpoint, nets)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers draws encodings of Stable Diffusion 3's control pictures from torch's global
    generator; a server whose seeds hold takes their mean."""
    sample = DiagonalGaussianDistribution.sample

    def mean(self: Any, generator: Any = None) -> torch.Tensor:
        return sample(self, generator) if generator is not None else self.mode()

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", mean)


@pytest.mark.usefixtures("steady")
def test_a_controlled_picture_is_the_one_that_diffusers_draws(controlled: Controlled) -> None:
    """Alone, with several controls, within a part of the steps; and all of these at once with a
    plain request, whose picture is the plain one."""
    exhibit = controlled.exhibit
    requests: list[dict[str, Any]] = [
        {"control": [entry("a", "slope", weight=0.7)], "seed": 1},
        {"control": [entry("a", "rows", weight=0.4)], "seed": 2},
        {"control": [entry("a", "slope", end=0.5), entry("b", "rows", weight=0.5)], "seed": 3},
        {"seed": 1},
    ]
    base: Any = DiffusionPipeline.from_pretrained(controlled.checkpoint)
    base.set_progress_bar_config(disable=True)
    wanted = [
        controlled.bare(1, ("a", "slope"), controlnet_conditioning_scale=0.7),
        controlled.bare(2, ("a", "rows"), controlnet_conditioning_scale=0.4),
        controlled.bare(
            3,
            ("a", "slope"),
            ("b", "rows"),
            controlnet_conditioning_scale=[1.0, 0.5],
            control_guidance_start=[0.0, 0.0],
            control_guidance_end=[0.5, 1.0],
        ),
        draw_bare(base, 1, **FIELDS, **SIZE),
    ]
    shown = {**FIELDS, **SIZE}
    assert difference(exhibit.draw(requests[0], **shown)[0], wanted[0]) <= 1
    exhibit.tally.shared.clear()  # at the first step calls are compared, at the others shared
    for got, expected in zip(exhibit.draw(*requests, **shown), wanted, strict=True):
        assert difference(got, expected) <= 1
    assert exhibit.tally.shared["control"] > 1
    assert "control:a" in exhibit.verdicts.stacked
    assert not exhibit.verdicts.alone
    assert difference(wanted[0], wanted[3]) > 20


def test_a_control_of_weight_0_is_none(controlled: Controlled) -> None:
    """Bit for bit, and what the picture shows changes the drawing as soon as it has a weight."""
    plain, without, slope, rows = controlled.exhibit.draw(
        {},
        {"control": [entry("a", "slope", weight=0)]},
        {"control": [entry("a", "slope")]},
        {"control": [entry("a", "rows")]},
        **FIELDS,
        **SIZE,
        seed=5,
    )
    assert np.array_equal(plain, without)
    assert difference(plain, slope) > 10
    assert difference(slope, rows) > 5


def test_an_edit_is_controlled_too(controlled: Controlled) -> None:
    if controlled.family == "sd3":
        refused = controlled.exhibit.post(
            {"image": text(drawn("rows")), "control": [entry("a", "slope")]}, **FIELDS
        )
        assert refused.status_code == 400
        assert "takes a ControlNet without image" in refused.json()["error"]
        return
    picture = {"image": text(drawn("rows")), "strength": 1.0, "seed": 3}
    edited, controlled_edit = controlled.exhibit.draw(
        picture, picture | {"control": [entry("a", "slope")]}, **FIELDS
    )
    assert edited.shape == controlled_edit.shape == (SIDE, SIDE, 3)
    assert difference(edited, controlled_edit) > 5


REFUSED = [
    ([entry("c", "rows")], "control.0.name: 'c' is not here; available: a, b"),
    ([entry("a", "rows", weight=11)], "control.0.weight: 11 is not valid"),
    ([entry("a", "rows", start=0.5, end=0.5)], "control.0.end: 0.5 is not valid"),
    ([entry("a", "rows", preprocess="pose")], "control.0.preprocess: 'pose' is not valid"),
    ([entry("a", "rows", strength=1)], "control.0.strength: 1 is not valid"),
    ([{"name": "a", "image": "AAAA"}], "control.0.image: it begins with"),
    ([{"name": "a"}], "control.0.image: is missing"),
    (["a"], "control.0: 'a' is not an object"),
    ([entry("a", "rows")] * 5, "control: 5 entries; at most 4"),
]


@pytest.mark.parametrize("controlled", ["sd15"], indirect=True)
@pytest.mark.parametrize(("control", "told"), REFUSED, ids=[told for _, told in REFUSED])
def test_what_cannot_be_a_control_is_refused_in_words(
    controlled: Controlled, control: list[Any], told: str
) -> None:
    answer = controlled.exhibit.post({"control": control}, **FIELDS)
    assert answer.status_code == 400
    assert told in answer.json()["error"]
    assert answer.json()["error"].startswith("instances[0].") or told.startswith("control.0.")


@pytest.mark.parametrize("controlled", ["sd15"], indirect=True)
def test_the_picture_of_a_control_gives_the_size(controlled: Controlled) -> None:
    wide = {"name": "a", "image": text(drawn("slope").resize((96, 65))), "preprocess": "canny"}
    assert controlled.exhibit.draw({"control": [wide]}, **FIELDS)[0].shape == (64, 96, 3)
    assert controlled.exhibit.draw({"control": [wide]}, **FIELDS, **SIZE)[0].shape == (
        SIDE,
        SIDE,
        3,
    )
    assert controlled.exhibit.model.metadata()["controls"] == ["a", "b"]
    own = {"control": [wide], "controlnet_conditioning_scale": 1.0}
    refused = controlled.exhibit.post(own, **FIELDS)
    assert refused.status_code == 400 and "control says it" in refused.json()["error"]


T2I_PIPELINES = {
    "sd15": diffusers.StableDiffusionAdapterPipeline,
    "sdxl": diffusers.StableDiffusionXLAdapterPipeline,
}


@pytest.mark.parametrize("family", T2I_PIPELINES)
def test_a_t2i_adapter_draws_what_diffusers_draws(family: str, tmp_path: Path) -> None:
    """Alone and at once with others, in colour and in grey, one and two."""
    checkpoint = CHECKPOINTS[family](tmp_path)
    nets = [
        diffusers.T2IAdapter.from_pretrained(
            t2i_adapter(tmp_path / f"lines{channels}", large=family == "sdxl", channels=channels)
        )
        for channels in (3, 1)
    ]
    base: Any = DiffusionPipeline.from_pretrained(checkpoint)
    known = base.components | {"requires_safety_checker": False}
    wanted = inspect.signature(T2I_PIPELINES[family].__init__).parameters
    parts = {name: known[name] for name in wanted if name in known}

    def bare(seed: int, adapter: Any, picture: Any, scale: Any) -> Pixels:
        pipeline = T2I_PIPELINES[family](**parts, adapter=adapter)
        pipeline.set_progress_bar_config(disable=True)
        given = {"image": picture, "adapter_conditioning_scale": scale}
        return draw_bare(pipeline, seed, **FIELDS, **SIZE, **given)

    colour, grey = drawn("slope"), drawn("rows").convert("L")
    expected = [
        bare(1, nets[0], colour, 0.8),
        bare(2, nets[1], grey, 1.0),
        bare(3, diffusers.MultiAdapter(nets), [colour, grey], [0.5, 0.7]),
    ]
    requests = [
        {"control": [entry("lines3", "slope", weight=0.8)], "seed": 1},
        {"control": [entry("lines1", "rows")], "seed": 2},
        {
            "control": [entry("lines3", "slope", weight=0.5), entry("lines1", "rows", weight=0.7)],
            "seed": 3,
        },
    ]
    controls = f"{tmp_path}/lines3,{tmp_path}/lines1"
    with showing(checkpoint, controlnets=controls) as exhibit:
        drawings = exhibit.draw(*requests, **FIELDS, **SIZE)
        for got, one in zip(drawings, expected, strict=True):
            assert difference(got, one) <= 1
        assert not exhibit.verdicts.alone
        for given, told in (
            ({"control": [entry("lines3", "rows", start=0.2)]}, "T2I-Adapters begin at once"),
            (
                {"control": [entry("lines3", "rows"), entry("lines1", "rows", end=0.5)]},
                "T2I-Adapters of this model",
            ),
            ({"control": [entry("lines3", "rows")], "width": 34}, "must be divisible by"),
            ({"control": [entry("lines3", "rows")], "image": text(colour)}, "without image"),
        ):
            refused = exhibit.post(given, **(FIELDS | SIZE | given))
            assert refused.status_code == 400 and told in refused.json()["error"]
