"""Every pipeline family is loaded, served and batched by the same code: a checkpoint of each, from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from diffusers import DiffusionPipeline

from tests import tiny_classics, tiny_families, tiny_pipelines
from tests.gallery import Exhibit, Gallery, difference, draw_bare

BUILDERS = tiny_pipelines.FAMILIES | tiny_families.FAMILIES | tiny_classics.FAMILIES

SMALL = {"height": 64, "width": 64}
GUIDED = {"guidance_scale": 4.0, "negative_prompt": "blurry"}
EVERY_STAGE = frozenset({"encode", "denoise", "decode"})


@dataclass(frozen=True)
class Family:
    """How a family is asked for a picture, and which stages share module calls between requests; `why` tells why others
    do not."""

    name: str
    fields: dict[str, Any] = field(default_factory=lambda: SMALL | GUIDED)
    shares: frozenset[str] = EVERY_STAGE
    why: str = ""
    bare: dict[str, Any] = field(default_factory=dict)  # what diffusers must be told besides, to draw the same size

    @property
    def build(self) -> Callable[[Path], Path]:
        return BUILDERS[self.name]


FAMILIES = [
    Family("sd15"),
    Family("sd21"),
    Family("sdxl"),
    Family("sd3"),
    Family("sd35"),
    Family("flux", SMALL | {"guidance_scale": 4.0}),
    Family("flux-kontext", SMALL | {"guidance_scale": 4.0, "_auto_resize": False}, bare={"max_area": 64 * 64}),
    Family("flux-2", SMALL | {"guidance_scale": 4.0, "max_sequence_length": 300}),
    Family("flux-2-klein", SMALL | {"guidance_scale": 4.0, "max_sequence_length": 64}),
    Family("qwen-image", SMALL | {"true_cfg_scale": 4.0, "negative_prompt": "blurry"}),
    Family("z-image"),
    Family("glm-image", SMALL | {"guidance_scale": 1.5}),
    Family("pixart-sigma"),
    Family("sana"),
    Family("cogview-4"),
    Family("lumina-2"),
    Family("chroma"),
    Family("aura-flow"),
    Family("hunyuan-dit", SMALL | GUIDED | {"use_resolution_binning": False}),
    Family("kandinsky-22"),
    Family("kandinsky-3"),
    Family("kandinsky-5", {"guidance_scale": 1.0}),
    Family("lcm", SMALL | {"guidance_scale": 7.0}),
    Family("pag", shares=frozenset(), why="its calls exchange attention processors of the shared UNet"),
]

REQUESTS = [
    {"prompt": "a red cat", "seed": 1, "num_inference_steps": 3},
    {"prompt": "a blue dog in the sea", "seed": 2, "num_inference_steps": 5},
    {"prompt": "two green birds", "seed": 3, "num_inference_steps": 4},
]


@pytest.fixture(scope="module")
def gallery() -> Iterator[Gallery]:
    opened = Gallery()
    yield opened
    opened.close()


@dataclass(frozen=True)
class Shown:
    family: Family
    checkpoint: Path
    exhibit: Exhibit


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def shown(
    request: pytest.FixtureRequest, gallery: Gallery, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shown]:
    checkpoint = request.param.build(tmp_path_factory.mktemp("checkpoints"))
    with gallery.showing(checkpoint) as exhibit:
        yield Shown(request.param, checkpoint, exhibit)


def test_a_family_draws_over_http_what_diffusers_draws(shown: Shown) -> None:
    """Alone and three at once with other prompts, seeds and steps: each picture is the bare pipeline's."""
    bare = DiffusionPipeline.from_pretrained(shown.checkpoint)
    bare.set_progress_bar_config(disable=True)
    expected = []
    for fields in REQUESTS:
        arguments = (
            {name: value for name, value in fields.items() if name != "seed"} | shown.family.fields | shown.family.bare
        )
        expected.append(draw_bare(bare, fields["seed"], **arguments))

    assert difference(shown.exhibit.draw(REQUESTS[0], **shown.family.fields)[0], expected[0]) <= 1
    for drawn, wanted in zip(shown.exhibit.draw(*REQUESTS, **shown.family.fields), expected, strict=True):
        assert difference(drawn, wanted) <= 1
    shared = {stage for stage, requests in shown.exhibit.tally.shared.items() if requests > 1}
    assert shared == shown.family.shares, shown.family.why
