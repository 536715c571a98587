"""What CONTROLNETS, IP_ADAPTERS, EMBEDDINGS and UPSCALERS name: fetched, looked at by headers,
and held against the model where they depend on it, before any weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from atelier.settings import Settings
from atelier.sources.adapters import fetch_named
from atelier.sources.checkpoint import controls, image_prompts, inversions, upscaler
from atelier.sources.checkpoint.contents import Checkpoint
from atelier.sources.checkpoint.controls import ControlFolder, inspect_control
from atelier.sources.checkpoint.image_prompts import ImagePromptFile, inspect_image_prompt
from atelier.sources.checkpoint.inversions import check_inversion
from atelier.sources.checkpoint.upscaler import UpscalerFile, inspect_upscaler


@dataclass(frozen=True)
class Conditioning:
    """What a model draws with besides the prompt's plain words: nothing unless settings name it."""

    controls: tuple[ControlFolder, ...] = ()
    image_prompts: tuple[ImagePromptFile, ...] = ()
    embeddings: Mapping[str, Path] = field(default_factory=dict)
    upscalers: tuple[UpscalerFile, ...] = ()


def find_conditioning(
    settings: Settings, checkpoint: Checkpoint, here: bool = False
) -> Conditioning:
    """Everything that the settings name; with `here`, only what needs no download.

    Raises:
        SourceError, SettingsError, CheckpointError: one of them cannot be had, or does not fit the
            checkpoint.
    """
    pipeline = settings.pipeline_class or checkpoint.pipeline_class
    nets = fetch_named(settings, controls.VARIABLE, settings.controlnets, here)
    prompts = fetch_named(settings, image_prompts.VARIABLE, settings.ip_adapters, here)
    words = fetch_named(settings, inversions.VARIABLE, settings.embeddings, here)
    networks = fetch_named(settings, upscaler.VARIABLE, settings.upscalers, here)
    return Conditioning(
        tuple(inspect_control(name, path, checkpoint, pipeline) for name, path in nets.items()),
        tuple(
            inspect_image_prompt(name, path, checkpoint, pipeline) for name, path in prompts.items()
        ),
        {name: check_inversion(name, path, checkpoint, pipeline) for name, path in words.items()},
        tuple(inspect_upscaler(name, path) for name, path in networks.items()),
    )
