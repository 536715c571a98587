"""The evaluation scores what was trained, and the contact sheet shows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from atelier.builtin.concept.ring import draw_ring
from atelier.builtin.shapes.rasterizer import draw as draw_scenes
from atelier.builtin.shapes.scene import Scene, Thing
from atelier_training.dreambooth.errors import OptionError
from atelier_training.dreambooth.evaluate import (
    DrawnAnswer,
    Judges,
    _pixel_scores,
    evaluate_training,
)
from atelier_training.dreambooth.families import family_of
from atelier_training.dreambooth.likeness import Clip, mean_of_pairs
from atelier_training.dreambooth.options import TrainOptions
from atelier_training.dreambooth.questions import Questions
from atelier_training.dreambooth.samples import Style, Wish, draw
from atelier_training.dreambooth.train import train
from tests.tiny_pipelines import clip_tokenizer

QUESTIONS = {
    "subject": ["a zqx ring"],
    "prior": ["a ring"],
    "seeds": 2,
    "steps": 2,
    "width": 64,
    "height": 64,
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model with random weights."""
    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("clip"), clip_tokenizer()
    width = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = width | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": 77}
    vision = width | {"image_size": 32, "patch_size": 8}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dino")
    config = ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_scores_sheet_and_card_are_written(
    options: Callable[..., TrainOptions], clip: Path, dino: Path, pictures: Path, tmp_path: Path
) -> None:
    run = options(learning_rate=2e-2)
    train(run)
    questions = Questions.model_validate(QUESTIONS)
    output = tmp_path / "scores"
    scores = evaluate_training(
        run.model, run.output, questions, output, Judges(pictures, clip, dino)
    )
    expected = {
        f"{name}{when}"
        for name in ("clip_i", "clip_t_subject", "clip_t_prior", "dino")
        for when in ("", "_before")
    }
    assert set(scores) == expected
    assert all(-1 <= value <= 1 for value in scores.values())
    assert scores["clip_i"] != scores["clip_i_before"]
    assert json.loads((output / "scores.json").read_text()) == scores
    assert f"| dino | {scores['dino']} |" in (run.output / "README.md").read_text()
    assert (output / "contact-sheet.html").read_text().count("data:image/png;base64,") == 2 * 2 * 2
    assert Image.open(output / "contact-sheet.png").width > 4 * 2 * 128


def test_a_picture_is_most_like_itself(clip: Path, pictures: Path) -> None:
    judge = Clip(clip)
    first, second = (Image.open(path).convert("RGB") for path in sorted(pictures.iterdir())[:2])
    alike = mean_of_pairs(judge.pictures([first]), judge.pictures([first]))
    assert alike == pytest.approx(1, abs=1e-5)
    assert mean_of_pairs(judge.pictures([first]), judge.pictures([second])) < alike


def test_pixel_scores_count_rings_and_kept_scenes() -> None:
    ring = draw_ring("purple", 64, 64, 30, 0.5)
    circle = draw_scenes([Scene((Thing("blue", "circle"),), (), "yellow")], seed=0)[0]
    prompt = "a blue circle on a yellow background"
    subject = DrawnAnswer([Wish("a zqx ring", 0)] * 4, [circle] * 4, [ring, ring, ring, circle])
    prior = DrawnAnswer([Wish(prompt, 0)] * 4, [circle] * 4, [circle, circle, ring, ring])
    scores = _pixel_scores({"subject": subject, "prior": prior})
    assert scores == {
        "subject_before": 0.0,
        "subject": 0.75,
        "prior_before": 1.0,
        "prior": 0.5,
        "prior_kept": 0.5,
        "leak": 0.5,
    }


def test_pictures_drawn_together_are_those_drawn_alone(checkpoint: Callable[[str], Path]) -> None:
    family = family_of(checkpoint("sd3"))
    pipeline = family.load(family.components, torch.float32)
    wishes = [Wish("a ring", 1), Wish("a hat", 2), Wish("a ring", 3)]
    style = Style(steps=2, size=(64, 64))
    together = draw(pipeline, wishes, style)
    for wish, picture in zip(wishes, together, strict=True):
        alone = pipeline(
            wish.prompt,
            generator=torch.Generator().manual_seed(wish.seed),
            **style.arguments(pipeline) | {"output_type": "pil"},
        ).images[0]
        assert np.abs(np.asarray(alone, dtype=int) - np.asarray(picture, dtype=int)).max() <= 1


def test_questions_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "questions.json"
    path.write_text('{"subject": [], "colour": 1}')
    with pytest.raises(OptionError, match=r"(?s)subject.*colour"):
        Questions.read(path)
    with pytest.raises(OptionError, match="name their folder with --data"):
        Judges(dino=tmp_path)
