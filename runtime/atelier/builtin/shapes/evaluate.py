"""Scores a checkpoint on prompts of held-out combinations, by the checker: `python -m
atelier.builtin.shapes.evaluate FOLDER`.

Writes scores.json and a contact sheet into the output folder.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from PIL import Image

from atelier.builtin.shapes.checker import Verdict, check
from atelier.builtin.shapes.prompts import describe
from atelier.builtin.shapes.scene import Scene, random_scene

ASPECTS = ("right", "count", "colour", "shape", "size", "relation", "background")


@dataclass(frozen=True)
class Case:
    """A prompt, the scene that it describes in full, and the seed of its noise."""

    prompt: str
    scene: Scene
    seed: int


@dataclass(frozen=True)
class ShapesScore:
    """Shares in 0..1: per aspect over all prompts, and all-right per number of things."""

    prompts: int
    steps: int
    guidance: float
    aspects: dict[str, float]
    right_by_count: dict[int, float]


def held_out_cases(prompts: int, seed: int = 2024) -> list[Case]:
    """`prompts` prompts of combinations that training never saw: one, two and three things in turn,
    all wordings."""
    rng = random.Random(seed)
    cases = []
    for index in range(prompts):
        scene = random_scene(rng, count=1 + index % 3, held_out=True)
        cases.append(Case(describe(scene, rng, plain=rng.random() < 0.5), scene, index))
    return cases


def make_pictures(
    pipeline: StableDiffusion3Pipeline,
    cases: Sequence[Case],
    steps: int,
    guidance: float,
    batch: int,
    zeros: int,
) -> list[Image.Image]:
    """One picture per case; each from its own seed, so that the batch size does not matter.

    `zeros` embeddings follow each prompt (`max_sequence_length`): 256 is what the pipeline takes,
    fewer cost less.
    """
    pictures: list[Image.Image] = []
    for start in range(0, len(cases), batch):
        part = cases[start : start + batch]
        pictures += pipeline(
            [case.prompt for case in part],
            num_inference_steps=steps,
            guidance_scale=guidance,
            max_sequence_length=zeros,
            generator=[torch.Generator().manual_seed(case.seed) for case in part],
        ).images
    return pictures


def score(
    cases: Sequence[Case], verdicts: Sequence[Verdict], steps: int, guidance: float
) -> ShapesScore:
    def share(values: Sequence[bool]) -> float:
        return round(sum(values) / len(values), 4)

    by_count = {}
    for count in sorted({len(case.scene.things) for case in cases}):
        by_count[count] = share(
            [v.right for c, v in zip(cases, verdicts, strict=True) if len(c.scene.things) == count]
        )
    aspects = {aspect: share([getattr(v, aspect) for v in verdicts]) for aspect in ASPECTS}
    return ShapesScore(len(cases), steps, guidance, aspects, by_count)


def contact_sheet(
    pictures: Sequence[Image.Image], verdicts: Sequence[Verdict], columns: int
) -> Image.Image:
    """Pictures side by side, those judged wrong under a red bar."""
    side, bar = pictures[0].width, 6
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (side + 4), rows * (side + bar + 4)), (120, 120, 120))
    for index, (picture, verdict) in enumerate(zip(pictures, verdicts, strict=True)):
        x, y = index % columns * (side + 4) + 2, index // columns * (side + bar + 4) + 2
        sheet.paste(picture, (x, y + bar))
        sheet.paste((60, 200, 60) if verdict else (230, 0, 0), (x, y, x + side, y + bar))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path(__file__).parent, help="checkpoint to judge"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for scores.json and sheet.png"
    )
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, nargs="+", default=[4.0])
    parser.add_argument("--zeros", type=int, default=256, help="the pipeline's max_sequence_length")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    pipeline = DiffusionPipeline.from_pretrained(arguments.folder).to(arguments.device)
    pipeline.set_progress_bar_config(disable=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    cases = held_out_cases(arguments.prompts)
    rows = []
    for guidance in arguments.guidance:
        pictures = make_pictures(
            pipeline, cases, arguments.steps, guidance, arguments.batch, arguments.zeros
        )
        verdicts = [
            check(picture, case.scene) for picture, case in zip(pictures, cases, strict=True)
        ]
        rows.append(asdict(score(cases, verdicts, arguments.steps, guidance)))
        print(json.dumps(rows[-1]), flush=True)
        sheet = contact_sheet(pictures[:48], verdicts[:48], columns=8)
        sheet.save(arguments.out / f"sheet-guidance{guidance:g}.png", optimize=True)
    (arguments.out / "scores.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
