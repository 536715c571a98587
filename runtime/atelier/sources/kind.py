"""What kind of model MODEL_ID is: a picture model or a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from atelier.errors import StartError
from atelier.settings import Settings
from atelier.sources.checkpoint.folder import read_json
from atelier.sources.source import file_names, on_this_machine

Kind = Literal["image", "text"]

WRITERS = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
"""Ends of the names of transformers' classes that generate text; GPT-2's has the oldest."""


def kind_of(settings: Settings) -> Kind:
    """TASK decides; `auto` looks at the file names, and at the config of a checkpoint that is on
    this machine.

    Nothing is downloaded for it, so that the server answers probes while a large checkpoint is on
    its way.

    Raises:
        SourceError: MODEL_ID points nowhere.
    """
    if settings.task != "auto":
        return settings.task
    names = file_names(settings)
    if any(name.endswith(".gguf") for name in names):
        return "text"
    if "config.json" not in names or "model_index.json" in names:
        return "image"
    folder = on_this_machine(settings)
    return "text" if folder is None or is_language_model(folder / "config.json") else "image"


def kind_at_hand(settings: Settings) -> Kind | None:
    """The kind, if TASK or what is on this machine tells it; nobody else is asked, and an error is
    for those to tell who need the model."""
    try:
        if settings.task == "auto" and on_this_machine(settings) is None:
            return None
        return kind_of(settings)
    except (StartError, OSError):
        return None


def is_language_model(config: Path) -> bool:
    """Whether a transformers config names a model that generates text; one that names a type but no
    architecture is taken for one.

    Raises:
        CheckpointError: it cannot be read.
    """
    found = read_json(config)
    architectures = found.get("architectures") or []
    if not architectures:
        return bool(found.get("model_type"))
    return any(end in name for name in architectures for end in WRITERS)
