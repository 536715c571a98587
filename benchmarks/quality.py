"""What the step cache and fp8 cost in pictures of the built-in model: `python -m benchmarks.quality
[--prompts 60] [--steps 28]`.

Each arm draws the same held-out prompts with the same seeds. The checker says how many show what
their prompt asks for; the peak signal-to-noise ratio is against the exact picture in float32. fp8
is emulated on the processor, in every linear layer of the blocks: on a card only layers with sides
of 1,024 and more are replaced, and the built-in model has none.
"""

from __future__ import annotations

import argparse
import base64
import io
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import torch
from PIL import Image

from atelier.builtin.shapes.checker import check
from atelier.builtin.shapes.evaluate import Case, held_out_cases, make_pictures
from atelier.images.fp8 import quantize_linears
from atelier.tune.quality import psnr
from benchmarks.arms import server_process

BOUNDS = ("off", "low", "medium", "high")
AT_ONCE = 4
GUIDANCE = 5.0
SHAPES = "builtin/shapes"


@dataclass(frozen=True)
class Arm:
    """Pictures as base64 of PNG, and the steps that were computed for each."""

    name: str
    pictures: list[str]
    steps: list[int]

    def row(self, cases: Sequence[Case], exact: Sequence[str]) -> str:
        """A line of the table."""
        right = [
            check(Image.open(io.BytesIO(base64.b64decode(data))), case.scene).right
            for data, case in zip(self.pictures, cases, strict=True)
        ]
        decibels = [psnr(one, other) for one, other in zip(self.pictures, exact, strict=True)]
        steps, share = statistics.mean(self.steps), 100 * sum(right) / len(right)
        return (
            f"| {self.name} | {steps:.1f} | {share:.0f} %"
            f" | {statistics.median(decibels):.1f} | {min(decibels):.1f} |"
        )


def served(url: str, cases: Sequence[Case], steps: int, bound: str) -> Arm:
    """The cases drawn over HTTP with a bound of the step cache."""

    def draw(case: Case) -> tuple[str, int]:
        instance = {"prompt": case.prompt, "seed": case.seed, "num_inference_steps": steps}
        instance |= {"step_cache": bound, "guidance_scale": GUIDANCE}
        answer = httpx.post(
            f"{url}/v1/models/model:predict", json={"instances": [instance]}, timeout=600
        )
        told = answer.raise_for_status().json()["predictions"][0]
        return told["image"]["b64"], told.get("steps_run", steps)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        drawn = list(pool.map(draw, cases))
    return Arm(f"step cache {bound}", [data for data, _ in drawn], [run for _, run in drawn])


def emulated(cases: Sequence[Case], steps: int) -> tuple[Arm, Arm]:
    """The bare pipeline in float32, and with fp8 in its blocks."""
    from diffusers import StableDiffusion3Pipeline

    from atelier.settings import load_settings
    from atelier.sources import fetch

    pipeline = StableDiffusion3Pipeline.from_pretrained(fetch(load_settings(model_id=SHAPES)))
    pipeline.set_progress_bar_config(disable=True)

    def drawn(name: str) -> Arm:
        pictures = make_pictures(pipeline, cases, steps, GUIDANCE, batch=4, zeros=256)
        return Arm(name, [encoded(one) for one in pictures], [steps] * len(cases))

    exact = drawn("float32")
    replaced = quantize_linears(pipeline.transformer, "cpu", smallest_side=16)
    return exact, drawn(f"fp8 in {replaced} layers")


def encoded(picture: Image.Image) -> str:
    """PNG as base64."""
    out = io.BytesIO()
    picture.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def main() -> None:
    """Draw every arm and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--steps", type=int, default=28)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cases = held_out_cases(given.prompts)
    with server_process(model_id=SHAPES, device="cpu") as url:
        arms = [served(url, cases, given.steps, bound) for bound in BOUNDS]
    exact, fp8 = emulated(cases, given.steps)
    print("| arm | steps computed | right | PSNR, median dB | worst |\n|---|---|---|---|---|")
    for arm in arms:
        print(arm.row(cases, arms[0].pictures))
    for arm in (exact, fp8):
        print(arm.row(cases, exact.pictures))


if __name__ == "__main__":
    main()
