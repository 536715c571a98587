"""Judges a training: the same prompts and seeds before and after, scored, and shown on a contact
sheet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from atelier_training.dreambooth.adaptation import LORA_FILE
from atelier_training.dreambooth.card import add_scores
from atelier_training.dreambooth.data import open_picture, picture_files
from atelier_training.dreambooth.errors import OptionError
from atelier_training.dreambooth.families import family_of
from atelier_training.dreambooth.journal import quiet_libraries
from atelier_training.dreambooth.questions import Questions
from atelier_training.dreambooth.samples import Wish, draw
from atelier_training.dreambooth.sheet import Pair, write_sheet

SCORES = "scores.json"


@dataclass(frozen=True)
class Judges:
    """Local folders: pictures of the subject, a CLIP model, a DINO model. What is missing is not
    scored."""

    data: Path | None = None
    clip: Path | None = None
    dino: Path | None = None

    def __post_init__(self) -> None:
        if self.dino and not self.data:
            raise OptionError(
                f"dino={self.dino} compares with the subject's pictures; name their folder with"
                " --data"
            )


@dataclass(frozen=True)
class DrawnAnswer:
    """The pictures of one list of wishes, before and after the training."""

    wishes: list[Wish]
    before: list[Image.Image]
    after: list[Image.Image]

    def pairs(self, group: str) -> list[Pair]:
        rows = zip(self.wishes, self.before, self.after, strict=True)
        return [Pair(group, wish.prompt, wish.seed, before, after) for wish, before, after in rows]


def evaluate_training(
    model: Path,
    trained: Path,
    questions: Questions,
    output: Path,
    judges: Judges,
    device: str = "auto",
) -> dict[str, float]:
    """Scores by name, all in 0..1 or cosines; also written to `output`/scores.json, the sheet, and
    the model card."""
    with quiet_libraries():
        pipeline = (
            family_of(model).load(family_of(model).components, _dtype(device)).to(_device(device))
        )
        wishes = {
            "subject": questions.wishes(questions.subject),
            "prior": questions.wishes(questions.prior),
        }
        before = {
            name: draw(pipeline, part, questions.style) for name, part in wishes.items() if part
        }
        pipeline = with_training(pipeline, trained).to(_device(device))
        after = {
            name: draw(pipeline, part, questions.style) for name, part in wishes.items() if part
        }
    groups = {name: DrawnAnswer(wishes[name], before[name], after[name]) for name in before}
    scores = _pixel_scores(groups) if questions.judge == "pixels" else {}
    scores |= _likeness_scores(groups, judges)
    output.mkdir(parents=True, exist_ok=True)
    (output / SCORES).write_text(json.dumps(scores, indent=2) + "\n")
    write_sheet(
        output, [pair for name, drawn in groups.items() for pair in drawn.pairs(name)], scores
    )
    add_scores(trained, scores)
    return scores


def with_training(pipeline: Any, trained: Path) -> Any:
    """`pipeline` with the adapter in folder `trained`, or the whole fine-tuned pipeline that lies
    there."""
    if (trained / LORA_FILE).is_file():
        pipeline.load_lora_weights(trained)
        return pipeline
    if not (trained / "model" / "model_index.json").is_file():
        raise OptionError(
            f"trained={trained} holds neither {LORA_FILE} nor a pipeline folder 'model'"
        )
    tuned = DiffusionPipeline.from_pretrained(trained / "model", dtype=pipeline.dtype)
    tuned.set_progress_bar_config(disable=True)
    return tuned


def _pixel_scores(groups: dict[str, DrawnAnswer]) -> dict[str, float]:
    """Shares of pictures that the checkers of the built-in model and of the striped ring find
    right."""
    from atelier.builtin.concept.checker import check as shows_ring
    from atelier.builtin.shapes.checker import check as shows_prompt

    subject = groups["subject"]
    scores = {
        "subject_before": _share(map(shows_ring, subject.before)),
        "subject": _share(map(shows_ring, subject.after)),
    }
    if prior := groups.get("prior"):
        for name, pictures in (("prior_before", prior.before), ("prior", prior.after)):
            scores[name] = _share(
                bool(shows_prompt(picture, wish.prompt))
                for picture, wish in zip(pictures, prior.wishes, strict=True)
            )
        scores["prior_kept"] = scores["prior"] / max(scores["prior_before"], 1e-9)
        scores["leak"] = _share(map(shows_ring, prior.after))
    return scores


def _share(verdicts: Any) -> float:
    values = list(verdicts)
    return sum(values) / len(values)


def _likeness_scores(groups: dict[str, DrawnAnswer], judges: Judges) -> dict[str, float]:
    from atelier_training.dreambooth.likeness import Clip, Dino, mean_of_pairs, mean_of_rows

    scores: dict[str, float] = {}
    real = _subject_pictures(judges.data)
    if judges.clip:
        clip = Clip(judges.clip)
        for name, drawn in groups.items():
            prompts = clip.prompts([wish.prompt for wish in drawn.wishes])
            for suffix, pictures in (("_before", drawn.before), ("", drawn.after)):
                embedded = clip.pictures(pictures)
                scores[f"clip_t_{name}{suffix}"] = mean_of_rows(embedded, prompts)
                if real and name == "subject":
                    scores[f"clip_i{suffix}"] = mean_of_pairs(embedded, clip.pictures(real))
    if judges.dino:
        dino = Dino(judges.dino)
        subject, reference = groups["subject"], dino.pictures(real)
        scores["dino_before"] = mean_of_pairs(dino.pictures(subject.before), reference)
        scores["dino"] = mean_of_pairs(dino.pictures(subject.after), reference)
    return scores


def _subject_pictures(folder: Path | None) -> Sequence[Image.Image]:
    return [open_picture(path) for path in picture_files(folder, "data")] if folder else []


def _device(name: str) -> torch.device:
    return torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    )


def _dtype(name: str) -> torch.dtype:
    return torch.bfloat16 if _device(name).type == "cuda" else torch.float32
