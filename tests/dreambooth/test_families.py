"""Every family trains, and plain diffusers reads what was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from pipelines.dreambooth.options import TrainOptions
from pipelines.dreambooth.train import train
from tests.tiny_pipelines import FAMILIES

Build = Callable[..., TrainOptions]
# Steps this large change a picture of random weights visibly within three of them.
LOUD = {"learning_rate": 2e-2, "validate_every": 3, "validation_prompts": ("a zqx ring",), "validation_steps": 2}


def draw(folder: Path, adapter: Path | None = None) -> np.ndarray:
    """What plain diffusers draws for the validation prompt."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if adapter:
        pipeline.load_lora_weights(adapter)
    seed = torch.Generator().manual_seed(0)
    size = {"width": 64, "height": 64, "num_inference_steps": 2}
    return pixels(pipeline("a zqx ring", generator=seed, **size).images[0])


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)


def last_validation(options: TrainOptions) -> np.ndarray:
    """What the model in training drew after the last step."""
    return pixels(Image.open(options.output / "validation" / "step-000003-0.png"))


def assert_learned_and_kept(options: TrainOptions, after: np.ndarray) -> None:
    """The picture differs from the base model's, and it is the one that the model in training drew."""
    assert np.abs(after - draw(options.model)).max() > 8
    assert np.abs(after - last_validation(options)).max() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_loads_with_plain_diffusers_and_draws_what_training_drew(family: str, options: Build) -> None:
    run = options(family, alpha=8, rank=4, **LOUD)
    train(run)
    assert_learned_and_kept(run, draw(run.model, run.output))


@pytest.mark.parametrize("family", FAMILIES)
def test_trained_text_encoders_are_in_the_same_file(family: str, options: Build) -> None:
    run = options(family, train_text_encoder=True, rank=4, **LOUD)
    train(run)
    assert_learned_and_kept(run, draw(run.model, run.output))


@pytest.mark.parametrize("family", ["sd15", "sd3"])
def test_dora_loads_with_plain_diffusers(family: str, options: Build) -> None:
    run = options(family, method="dora", rank=4, **LOUD)
    train(run)
    assert_learned_and_kept(run, draw(run.model, run.output))


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_full_fine_tuning_writes_a_whole_pipeline(family: str, options: Build) -> None:
    run = options(family, method="full", **LOUD | {"learning_rate": 2e-3})
    train(run)
    assert_learned_and_kept(run, draw(run.output / "model"))


def test_linear_targets_train_more_weights_than_attention_alone(options: Build) -> None:
    attention = train(options(output=options().output / "attention", steps=1))
    linear = train(options(output=options().output / "linear", steps=1, targets="linear"))
    assert linear.trained_parameters > 1.5 * attention.trained_parameters
