"""Judges the upscaler on pictures of held-out combinations: `python -m
atelier.builtin.shapes.evaluate_upscaler --out FOLDER`.

How near it comes to the scene painted in the large size, beside what resampling makes of the same
picture; and whether the checker accepts what the model draws before and after. Writes scores.json
and a sheet of details.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from PIL import Image
from torch import nn

from atelier.builtin.shapes.checker import check, look
from atelier.builtin.shapes.enlarger import WEIGHTS, enlarged, load_network
from atelier.builtin.shapes.evaluate import Case, held_out_cases, make_pictures
from atelier.builtin.shapes.resolution import SCALE, SizedCase, psnr, sized_cases

MODEL = Path(__file__).parent
STEPS, GUIDANCE, ZEROS, BATCH = 20, 4.0, 32, 8
DETAIL = 44  # pixels of the small picture that the sheet shows

Enlarge = Callable[[Image.Image], Image.Image]


def resampled(how: Image.Resampling) -> Enlarge:
    """As Pillow enlarges."""
    return lambda one: one.resize((SCALE * one.width, SCALE * one.height), how)


RESAMPLED: dict[str, Enlarge] = {
    "nearest": resampled(Image.Resampling.NEAREST),
    "bicubic": resampled(Image.Resampling.BICUBIC),
    "lanczos": resampled(Image.Resampling.LANCZOS),
}


def ways(network: nn.Sequential) -> dict[str, Enlarge]:
    """To enlarge a picture: by the network, and by resampling."""
    return {"upscaler": lambda one: enlarged(network, one), **RESAMPLED}


def mean_psnr(cases: Sequence[SizedCase], enlarge: Enlarge) -> float:
    """Decibels, the mean over the pictures."""
    return sum(psnr(enlarge(case.small), case.large) for case in cases) / len(cases)


def accepted(
    cases: Sequence[Case], pictures: Sequence[Image.Image], enlarge: Enlarge
) -> dict[str, int]:
    """How many pictures the checker accepts as they are, as they are and enlarged, and enlarged
    alone."""
    before = [bool(check(one, case.scene)) for one, case in zip(pictures, cases, strict=True)]
    after = [
        bool(check(enlarge(one), case.scene)) for one, case in zip(pictures, cases, strict=True)
    ]
    both = sum(one and other for one, other in zip(before, after, strict=True))
    return {"pictures": len(pictures), "before": sum(before), "after": sum(after), "both": both}


def detail_sheet(cases: Sequence[SizedCase], ways: dict[str, Enlarge]) -> Image.Image:
    """A row a case: its largest thing as each way makes it, and as it is painted."""
    side, gap = 4 * DETAIL, 6
    columns = [*ways.values(), None]
    sheet = Image.new(
        "RGB", (len(columns) * (side + gap) - gap, len(cases) * (side + gap) - gap), "white"
    )
    for row, case in enumerate(cases):
        thing, room = look(case.small)[0][0], case.small.width - DETAIL
        left, top = (
            SCALE * min(max(round(at) - DETAIL // 2, 0), room) for at in (thing.x, thing.y)
        )
        for column, way in enumerate(columns):
            shown = way(case.small) if way else case.large
            cut = shown.crop((left, top, left + SCALE * DETAIL, top + SCALE * DETAIL))
            cut = cut.resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(cut, (column * (side + gap), row * (side + gap)))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", nargs="?", type=Path, default=WEIGHTS, help="file to judge")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for scores.json and details.png"
    )
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=200)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    enlargers = ways(load_network(arguments.weights))
    vae = AutoencoderKL.from_pretrained(MODEL / "vae")
    painted = sized_cases(arguments.cases)
    told: dict[str, object] = {"cases": arguments.cases}
    for name, cases in (
        ("painted", painted),
        ("autoencoded", sized_cases(arguments.cases, vae=vae)),
    ):
        told[name] = {way: round(mean_psnr(cases, one), 2) for way, one in enlargers.items()}
    pipeline = DiffusionPipeline.from_pretrained(MODEL)
    pipeline.set_progress_bar_config(disable=True)
    prompts = held_out_cases(arguments.prompts)
    pictures = make_pictures(pipeline, prompts, STEPS, GUIDANCE, BATCH, ZEROS)
    told["accepted"] = accepted(prompts, pictures, enlargers["upscaler"])
    print(json.dumps(told))
    (arguments.out / "scores.json").write_text(json.dumps(told, indent=2) + "\n")
    detail_sheet(painted[:4], enlargers).quantize(64).save(
        arguments.out / "details.png", optimize=True
    )


if __name__ == "__main__":
    main()
