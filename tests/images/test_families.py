"""Every pipeline family is loaded, served and batched by the same code: a checkpoint of each, from
its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from diffusers import DiffusionPipeline

from tests import tiny_classics, tiny_families, tiny_flux, tiny_pipelines
from tests.gallery import Exhibit, difference, draw_bare, showing

BUILDERS = (
    tiny_pipelines.FAMILIES | tiny_families.FAMILIES | tiny_flux.FAMILIES | tiny_classics.FAMILIES
)

SMALL = {"height": 64, "width": 64}
GUIDED = {"guidance_scale": 4.0, "negative_prompt": "blurry"}
AS_ASKED = {"use_resolution_binning": False}


@dataclass(frozen=True)
class Family:
    """How a family is asked for a picture; `alone` tells why requests do not share its denoiser's
    calls, if they do not."""

    name: str
    fields: dict[str, Any] = field(default_factory=lambda: SMALL | GUIDED)
    alone: str = ""
    bare: dict[str, Any] = field(
        default_factory=dict
    )  # what diffusers must be told besides, to draw the same size

    steps: tuple[int, ...] = (6, 8, 7)
    without: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def build(self) -> Callable[[Path], Path]:
        return BUILDERS[self.name]


FAMILIES = [
    Family("sd15"),
    Family("sd21"),
    Family("sdxl"),
    Family("sd3"),
    Family("sd35", without=("text_encoder_3", "tokenizer_3")),
    Family("flux", SMALL | {"guidance_scale": 4.0}),
    Family(
        "flux-kontext",
        SMALL | {"guidance_scale": 4.0, "_auto_resize": False},
        bare={"max_area": 64 * 64},
    ),
    Family("flux-2", SMALL | {"guidance_scale": 4.0, "max_sequence_length": 300}),
    Family("flux-2-klein", SMALL | {"guidance_scale": 4.0, "max_sequence_length": 64}),
    Family("qwen-image", SMALL | {"true_cfg_scale": 4.0, "negative_prompt": "blurry"}),
    Family("z-image"),
    Family("glm-image", SMALL | {"guidance_scale": 1.5}),
    Family("pixart-sigma", SMALL | GUIDED | AS_ASKED),
    Family("sana", SMALL | GUIDED | AS_ASKED | {"complex_human_instruction": []}),
    Family("cogview-4"),
    Family("lumina-2"),
    Family("chroma"),
    Family("aura-flow"),
    Family("hunyuan-dit", SMALL | GUIDED | AS_ASKED),
    Family("kandinsky-22"),
    Family("kandinsky-3"),
    Family(
        "kandinsky-5", {"guidance_scale": 1.0}, steps=(1, 2, 2), settings={"warmup": "off"}
    ),  # draws nothing smaller than a megapixel
    Family("lcm", SMALL | {"guidance_scale": 7.0}),
    Family("pag", alone="its calls exchange attention processors of the shared UNet"),
]

PROMPTS = ("a red cat", "two blue dogs in the sea", "one big bird in the wind")


def requests_of(family: Family) -> list[dict[str, Any]]:
    """Three requests with prompts, seeds, steps and guidance of their own."""
    requests = []
    for index, (prompt, steps) in enumerate(zip(PROMPTS, family.steps, strict=True)):
        fields = {"prompt": prompt, "seed": index, "num_inference_steps": steps}
        if "guidance_scale" in family.fields:
            fields["guidance_scale"] = family.fields["guidance_scale"] * (1 + index)
        requests.append(fields)
    return requests


@dataclass(frozen=True)
class Shown:
    family: Family
    checkpoint: Path
    exhibit: Exhibit


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def shown(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shown]:
    checkpoint = request.param.build(tmp_path_factory.mktemp("checkpoints"))
    with showing(checkpoint, **request.param.settings) as exhibit:
        yield Shown(request.param, checkpoint, exhibit)


def test_a_family_draws_over_http_what_diffusers_draws(shown: Shown) -> None:
    """Alone and three at once with other prompts, seeds, steps and guidance: each picture is the
    bare pipeline's."""
    bare = DiffusionPipeline.from_pretrained(
        shown.checkpoint, **dict.fromkeys(shown.family.without)
    )
    bare.set_progress_bar_config(disable=True)
    requests = requests_of(shown.family)
    expected = [
        draw_bare(bare, **(shown.family.fields | shown.family.bare | fields)) for fields in requests
    ]

    assert difference(shown.exhibit.draw(requests[0], **shown.family.fields)[0], expected[0]) <= 1
    shown.exhibit.tally.shared.clear()
    for drawn, wanted in zip(
        shown.exhibit.draw(*requests, **shown.family.fields), expected, strict=True
    ):
        assert difference(drawn, wanted) <= 1
    assert not shown.exhibit.verdicts.alone
    if shown.family.alone:
        assert not shown.exhibit.verdicts.stacked, shown.family.alone
    else:
        assert {"transformer", "unet"} & shown.exhibit.verdicts.stacked
        assert shown.exhibit.tally.shared["denoise"] > 1
