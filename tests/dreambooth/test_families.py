"""Every family trains, and plain diffusers reads what was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from atelier_training.dreambooth.adaptation import build_trainee
from atelier_training.dreambooth.errors import OptionError
from atelier_training.dreambooth.families import family_of
from atelier_training.dreambooth.options import TrainOptions
from atelier_training.dreambooth.train import train
from tests.tiny_pipelines import FAMILIES

Build = Callable[..., TrainOptions]
# Steps this large change a picture of random weights visibly within three of them.
LOUD = {
    "learning_rate": 2e-2,
    "validate_every": 3,
    "validation_prompts": ("a zqx ring",),
    "validation_steps": 2,
}


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
    """The picture differs from the base model's, and it is the one that the model in training
    drew."""
    assert np.abs(after - draw(options.model)).max() > 8
    assert np.abs(after - last_validation(options)).max() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_loads_with_plain_diffusers_and_draws_what_training_drew(
    family: str, options: Build
) -> None:
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


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_the_teacher_is_the_model_without_its_adapter(family: str, options: Build) -> None:
    run = options(family, prior="teacher", class_prompt="a ring")
    trainee = build_trainee(family_of(run.model), run, torch.device("cpu"), torch.float32)
    latents, noise = torch.randn(2, 3, 4, 32, 32)
    text = {n: torch.randn(3, *shape) for n, shape in family_of(run.model).text_shapes().items()}
    levels = trainee.draw_levels(3, torch.Generator())

    def losses() -> torch.Tensor:
        return trainee(
            latents, noise, levels, torch.zeros(3, 0), text, [], taught=2, base_text=text
        )

    fresh = losses()
    assert fresh[0] > 0.1 and (fresh[1:] == 0).all(), (
        "an adapter that does nothing has nothing to learn from its teacher"
    )
    with torch.no_grad():
        for name, parameter in trainee.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    changed = losses()
    assert (changed[1:] > 0).all() and changed[0] != fresh[0]
    changed.sum().backward()
    assert all(p.grad is not None for p in trainee.parameters() if p.requires_grad)


def test_a_teacher_and_trained_text_encoders_go_together(options: Build) -> None:
    train(
        options(
            prior="teacher",
            class_prompt="a ring",
            class_pictures=2,
            class_steps=2,
            train_text_encoder=True,
        )
    )
    with pytest.raises(OptionError, match="use method=lora or dora"):
        options(prior="teacher", method="full")
