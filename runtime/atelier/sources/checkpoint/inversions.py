"""Textual inversions: which file an entry of EMBEDDINGS means, and which of its tensors goes into
which text encoder. Told from headers alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atelier.errors import CheckpointError
from atelier.sources.checkpoint.adapter_kind import is_inversion, look_at
from atelier.sources.checkpoint.contents import Checkpoint
from atelier.sources.checkpoint.headers import read_header
from atelier.sources.checkpoint.listing import is_safetensors, safetensors_in

VARIABLE = "EMBEDDINGS"

KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""ComfyUI's names of the parts for each CLIP encoder; a file for one encoder has any name."""

PIPELINES = re.compile(r"(StableDiffusion(XL)?|LatentConsistencyModel)(Img2Img|Inpaint)?Pipeline")
"""Those whose prompts are looked up for words."""


@dataclass(frozen=True)
class Inversion:
    """A word that prompts can say. `parts` has the tensor for each text encoder."""

    word: str
    file: Path
    parts: Mapping[str, str]
    vectors: int


def word_of(name: str) -> str:
    """How a prompt says an embedding of this name: in angle brackets, so that no word is taken."""
    return f"<{name}>"


def check_inversion(name: str, path: Path, checkpoint: Checkpoint, pipeline: str) -> Path:
    """The path, of an inversion for a checkpoint served by a pipeline class. A checkpoint that does
    not tell its encoders' widths, being one file, is held against it once it is loaded.

    Raises:
        CheckpointError: as `inspect_inversion`.
    """
    widths = {
        one.name: one.config["hidden_size"]
        for one in checkpoint.components
        if one.name in KEYS and isinstance(one.config.get("hidden_size"), int)
    }
    if widths or not PIPELINES.fullmatch(pipeline):
        inspect_inversion(name, path, pipeline, widths)
    else:
        inversion_in(name, path)
    return path


def inspect_inversion(name: str, path: Path, kind: str, widths: Mapping[str, int]) -> Inversion:
    """The inversion at a path, for a pipeline of class `kind` whose CLIP encoders have `widths`.

    Raises:
        CheckpointError: there is none, or several, or it is something else, or does not go with
            the pipeline.
    """
    file = inversion_in(name, path)
    tensors = read_header(file).tensors
    where = f"{VARIABLE}: {name}: {file.name}"
    if not PIPELINES.fullmatch(kind) or not widths:
        raise CheckpointError(f"{where} cannot be used: {kind} takes no textual inversions here")
    parts = {}
    for encoder, wanted in widths.items():
        key = KEYS[encoder]
        if key not in tensors and len(widths) == 1 and len(tensors) == 1:
            key = next(iter(tensors))
        if key not in tensors:
            raise CheckpointError(
                f"{where} has nothing for the {encoder} of {kind}: it must have"
                f" {' and '.join(KEYS[one] for one in widths)}, and has {', '.join(tensors)}"
            )
        shape = tensors[key].shape
        if shape[-1:] != (wanted,) or len(shape) > 2:
            raise CheckpointError(
                f"{where} was made for another family: {key} has the shape {list(shape)}, the"
                f" {encoder} of {kind} takes {wanted} numbers"
            )
        parts[encoder] = key
    shapes = [tensors[key].shape for key in parts.values()]
    counts = {shape[0] if len(shape) == 2 else 1 for shape in shapes}
    if len(counts) > 1:
        raise CheckpointError(f"{where} has not as many vectors for each text encoder")
    return Inversion(word_of(name), file, parts, counts.pop())


def inversion_in(name: str, path: Path) -> Path:
    """The file of an entry of EMBEDDINGS: itself, or the only one in safetensors in the folder.

    Raises:
        CheckpointError: there is none, or several, or it is something else.
    """
    files = [path] if path.is_file() else safetensors_in(path)
    if len(files) != 1 or not is_safetensors(files[0]):
        told = ", ".join(one.name for one in files) or "none"
        raise CheckpointError(
            f"{VARIABLE}: {name} must be one .safetensors file, or a folder with one; {path} has"
            f" {told}"
        )
    tensors = read_header(files[0]).tensors
    if not is_inversion(tensors):
        look = look_at(tensors)
        what = look.fault or f"it is a {look}: set it in LORA_PATHS"
        raise CheckpointError(f"{VARIABLE}: {name} is no textual inversion: {path.name}: {what}")
    return files[0]
