"""`highres` beside image prompts, adapters and weighted prompts, over HTTP: both passes have them,
alone and among strangers; what does not go with it is a 400 that names both."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoPipelineForImage2Image
from PIL import Image
from torch.nn import functional

from tests.gallery import Exhibit, Pixels, difference, draw_bare, showing
from tests.images.test_controls import entry
from tests.images.test_highres import FIELDS, HIGHRES, LARGE
from tests.tiny_adapters import bare, denoiser, layers, lora, merged, write
from tests.tiny_controls import CHECKPOINTS, control, ip_adapter

PREFIXES = {"sd15": "lora_unet_", "flux": "lora_transformer_"}
WEIGHTED = {"prompt": "a (cat:2)", "prompt_syntax": "weighted"}
LOOK = {"image_prompt": [entry("look", "slope", weight=0.8)]}
RING = {"lora": {"ring": 1.0}}
BESIDE: list[dict[str, Any]] = [LOOK, RING, WEIGHTED, LOOK | RING | WEIGHTED]
TWICE = {"highres": HIGHRES, "seed": 5}


@pytest.fixture(scope="module", params=["sd15", "flux"])
def shown(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Exhibit, Path]]:
    root = tmp_path_factory.mktemp(request.param)
    checkpoint = CHECKPOINTS[request.param](root)
    look = ip_adapter(checkpoint, root / "ip", "look.safetensors", 2)
    control(checkpoint, root / "net", 3)
    module = denoiser(bare(checkpoint))
    names = layers(module, "to_q", "to_v")
    write(root / "ring.safetensors", PREFIXES[request.param], module, names, lora)
    with showing(
        checkpoint,
        warmup="off",
        max_pixels=80 * 80,
        ip_adapters=str(look),
        controlnets=str(root / "net"),
        lora_paths=[str(root / "ring.safetensors")],
    ) as exhibit:
        yield request.param, exhibit, root


def test_both_passes_have_what_a_request_brings(shown: tuple[str, Exhibit, Path]) -> None:
    """Together, with strangers of one pass and of two, as each alone."""
    _, exhibit, _ = shown
    wanted = [TWICE | one for one in BESIDE]
    wanted += [TWICE, TWICE | {"seed": 6}, RING | {"seed": 5}]
    alone = [exhibit.draw(one, **FIELDS)[0] for one in wanted]
    exhibit.tally.shared.clear()
    for one, other in zip(exhibit.draw(*wanted, **FIELDS), alone, strict=True):
        assert difference(one, other) <= 1
    assert exhibit.tally.shared["denoise"] > 1
    plain = alone[len(BESIDE)]
    for one in alone[: len(BESIDE)]:
        assert one.shape[:2] == LARGE
        assert difference(one, plain) > 0


def test_the_second_pass_is_not_drawn_without_it(shown: tuple[str, Exhibit, Path]) -> None:
    """It is what an edit with the same things makes of the first picture, scaled up; that picture
    is sent in 256 levels, where the second pass sees it exactly, so it is not the same bits. The
    tiny FLUX.1 hardly heeds what its prompt says."""
    family, exhibit, _ = shown
    size = {"width": LARGE[1], "height": LARGE[0]}
    for given in (LOOK, RING, *([WEIGHTED] if family == "sd15" else [])):
        first, made = exhibit.draw({"seed": 5} | given, TWICE | given, **FIELDS)
        edit = {"seed": 5, "image": scaled(first), "strength": HIGHRES["strength"]}
        same, without = exhibit.draw(edit | given, edit, **{**FIELDS, **size})
        assert apart(made, same) < apart(made, without) / 3


def apart(one: Pixels, other: Pixels) -> float:
    return float(abs(one.astype(float) - other.astype(float)).mean())


def scaled(picture: Pixels) -> str:
    rows = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255
    large = functional.interpolate(rows, LARGE, mode="bicubic").clamp(0, 1)[0]
    file = io.BytesIO()
    levels = (large * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(levels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("shown", ["sd15"], indirect=True)
def test_an_adapter_in_both_passes_is_what_diffusers_draws_with_it_merged(
    shown: tuple[str, Exhibit, Path],
) -> None:
    family, exhibit, root = shown
    checkpoint = Path(exhibit.model._settings.model_id)
    pipeline = merged(checkpoint, root / "ring.safetensors", PREFIXES[family])
    with torch.no_grad():
        first = pipeline(**FIELDS, generator=torch.Generator().manual_seed(5), output_type="pt")
    large = functional.interpolate(first.images, LARGE, mode="bicubic").clamp(0, 1)
    second: Any = AutoPipelineForImage2Image.from_pipe(pipeline)
    second.set_progress_bar_config(disable=True)
    arguments = {name: FIELDS[name] for name in FIELDS if name not in ("width", "height")}
    expected = draw_bare(second, 5, image=large, strength=HIGHRES["strength"], **arguments)
    [drawn] = exhibit.draw(TWICE | RING, **FIELDS)
    assert difference(drawn, expected) <= 1


@pytest.mark.parametrize("shown", ["flux"], indirect=True)
def test_a_second_pass_has_the_guidance_of_the_first(shown: tuple[str, Exhibit, Path]) -> None:
    """FLUX.1's image-to-image has 7.0 by default, its text-to-image 3.5."""
    _, exhibit, _ = shown
    plain = {name: value for name, value in FIELDS.items() if name != "guidance_scale"}
    told, untold, other = (
        exhibit.draw(TWICE | one, **plain)[0]
        for one in ({"guidance_scale": 3.5}, {}, {"guidance_scale": 7.0})
    )
    assert difference(told, untold) == 0
    assert difference(told, other) > 0


def test_what_does_not_go_with_a_second_pass_is_refused(
    shown: tuple[str, Exhibit, Path],
) -> None:
    _, exhibit, _ = shown
    guided = {"control": [entry("net", "rows")]}
    answer = exhibit.post(TWICE | guided, **FIELDS)
    assert answer.status_code == 400
    assert "highres: it does not go with control; leave one of them out" in answer.text
