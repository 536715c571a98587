"""Adapters in the layouts that people have, over HTTP: each draws what diffusers, PEFT or the
layout's own formula draws, alone and among strangers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file

from tests.gallery import Exhibit, Pixels, difference, draw_bare, showing
from tests.tiny_adapters import (
    bare,
    denoiser,
    layers,
    loha,
    lokr,
    lora,
    merged,
    save_by_peft,
    write,
)
from tests.tiny_pipelines import FAMILIES

FIELDS: dict[str, Any] = {
    "prompt": "a cat",
    "num_inference_steps": 2,
    "width": 32,
    "height": 32,
    "guidance_scale": 4.0,
}
SEED = 7
STRONG = 3
"""Grey levels that an adapter changes at least."""


@dataclass
class Room:
    """A family's server, and by adapter what draws with it alone: a pipeline made by others."""

    family: str
    checkpoint: Path
    folder: Path
    alone: dict[str, Callable[[], Any]] = field(default_factory=dict)
    drawn: dict[str, Pixels] = field(default_factory=dict)
    exhibit: Exhibit | None = None

    def with_diffusers(self, name: str) -> Any:
        pipeline = bare(self.checkpoint)
        pipeline.load_lora_weights(self.folder, weight_name=f"{name}.safetensors")
        return pipeline

    def with_peft(self, name: str) -> Any:
        pipeline = bare(self.checkpoint)
        part = "unet" if hasattr(pipeline, "unet") else "transformer"
        tuned = PeftModel.from_pretrained(getattr(pipeline, part), self.folder / name)
        setattr(pipeline, part, tuned.get_base_model())
        return pipeline

    def expected(self, name: str) -> Pixels:
        if name not in self.drawn:
            self.drawn[name] = draw_bare(self.alone[name](), SEED, **FIELDS)
        return self.drawn[name]

    def draw(self, *names: str) -> list[Pixels]:
        assert self.exhibit is not None
        lora: list[dict[str, float]] = [{name: 1.0} if name else {} for name in names]
        return self.exhibit.draw(*({"seed": SEED, "lora": each} for each in lora), **FIELDS)


ATTENTION = ("attn1.to_q", "attn2.to_v", "attn.to_q", "attn.to_v")
OTHERS = ("resnets.0.conv1", "proj_in", "ff.net.0.proj")


def furnish(room: Room) -> None:
    """Write the family's adapters."""
    pipeline = bare(room.checkpoint)
    module, sdxl = denoiser(pipeline), room.family == "sdxl"
    prefix = "lora_unet_" if hasattr(pipeline, "unet") else "lora_transformer_"
    names = layers(module, *ATTENTION, *OTHERS)
    if sdxl:  # in Stability's names, as kohya's SDXL adapters are
        names = [one for one in names if one.startswith(("down_blocks.1.att", "down_blocks.1.res"))]
    for name, make in {
        "loha": loha,
        "lokr": lokr,
        "lokr_full": lambda weight: lokr(weight, whole=True),
    }.items():
        file = room.folder / f"{name}.safetensors"
        write(file, prefix, module, names, make, original=sdxl)
        room.alone[name] = lambda file=file: merged(room.checkpoint, file, prefix, original=sdxl)
    file = room.folder / "kohya.safetensors"
    if room.family == "flux":
        _write_flux(file)
    else:
        write(file, prefix, module, names, lora, original=sdxl)
    formula = room.family == "sd3"  # diffusers knows no kohya layout for it
    room.alone["kohya"] = (
        (lambda: merged(room.checkpoint, file, prefix))
        if formula
        else (lambda: room.with_diffusers("kohya"))
    )
    for kind in ("LoRA", "LoHa"):
        save_by_peft(room.checkpoint, room.folder / f"peft_{kind}", kind)
        room.alone[f"peft_{kind}"] = lambda kind=kind: room.with_peft(f"peft_{kind}")
    room.alone[""] = lambda: bare(room.checkpoint)


def _write_flux(file: Path) -> None:
    """kohya's FLUX: projections of the original code, fused."""
    torch.manual_seed(8)
    sizes = {"double_blocks_0_img_attn_qkv": (96, 32), "double_blocks_0_txt_attn_proj": (32, 32),
             "single_blocks_0_linear2": (32, 160)}  # fmt: skip
    save_file(
        {
            f"lora_unet_{name}.{own}": one
            for name, shape in sizes.items()
            for own, one in lora(torch.zeros(shape)).items()
        },
        file,
    )


@pytest.fixture(scope="module", params=["sd15", "sdxl", "sd3", "flux"])
def room(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Room]:
    root = tmp_path_factory.mktemp(request.param)
    made = Room(request.param, FAMILIES[request.param](root), root / "adapters")
    furnish(made)
    with showing(made.checkpoint, lora_paths=[str(made.folder)], warmup="off") as exhibit:
        made.exhibit = exhibit
        yield made


def test_every_layout_draws_what_others_draw_with_it(room: Room) -> None:
    plain = room.expected("")
    for name in room.alone:
        [drawn] = room.draw(name)
        assert difference(drawn, room.expected(name)) <= 1, name
        assert (difference(room.expected(name), plain) > STRONG) == bool(name), name


def test_all_layouts_at_once_draw_what_each_draws_alone(room: Room) -> None:
    names = [*room.alone, "loha"]
    for name, drawn in zip(names, room.draw(*names), strict=True):
        assert difference(drawn, room.expected(name)) <= 1, name
