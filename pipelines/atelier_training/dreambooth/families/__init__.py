"""One adapter per model family: how it encodes, adds noise and predicts. `family_of` finds it by
the checkpoint's class."""

from __future__ import annotations

import json
from pathlib import Path

from atelier_training.dreambooth.errors import OptionError
from atelier_training.dreambooth.families.base import Family, Rows
from atelier_training.dreambooth.families.flux import Flux
from atelier_training.dreambooth.families.stable_diffusion import StableDiffusion, StableDiffusionXL
from atelier_training.dreambooth.families.stable_diffusion_3 import StableDiffusion3

__all__ = ["Family", "Rows", "family_of"]

FAMILIES: dict[str, type[Family]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
}


def family_of(model: Path, text_tokens: int | None = None) -> Family:
    """The family of the checkpoint in folder `model`; `text_tokens` overrides its T5 encoder's
    length.

    Raises:
        OptionError: the folder is no diffusers checkpoint, or of a class that cannot be trained
            here.
    """
    index = model / "model_index.json"
    if not index.is_file():
        raise OptionError(f"model={model} is no diffusers checkpoint: {index.name} is missing")
    name = json.loads(index.read_text()).get("_class_name")
    if name not in FAMILIES:
        raise OptionError(f"model={model} is a {name}; trainable: {', '.join(FAMILIES)}")
    family = FAMILIES[name](model)
    family.text_tokens = text_tokens
    return family
