"""IP-Adapters: a file of tensors, an image encoder's folder, and whether both fit the model at
hand. Told from configurations and headers alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atelier.errors import CheckpointError
from atelier.sources.checkpoint.contents import Checkpoint
from atelier.sources.checkpoint.folder import read_json
from atelier.sources.checkpoint.headers import StoredTensor, read_header
from atelier.sources.checkpoint.listing import is_safetensors, safetensors_in

VARIABLE = "IP_ADAPTERS"
ENCODER = "image_encoder"

PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
)
"""Those that image prompts are served with."""

FAMILIES = {
    "double_blocks.": "FLUX",
    "norm_ip": "Stable Diffusion 3",
    "": "Stable Diffusion 1 to XL",
}
"""Whom an adapter was made for, by what names of its tensors have in them; the first counts."""

ENCODER_CLASSES = {"Stable Diffusion 3": "SiglipVisionModel"}
CLIP = "CLIPVisionModelWithProjection"
WHOLE = {"SiglipVisionModel": "SiglipModel"}
"""A model of texts too, whose part for pictures is read."""

KEYS = re.compile(r"(to_k_ip|ip_adapter_double_stream_k_proj)\.weight$")
PROJECTION = re.compile(r"^(image_proj|ip_adapter_proj_model)\.")
FACES = re.compile(r"to_k_lora|perceiver_resampler|^image_proj\.proj\.0\.")
"""Tensors of adapters that look at a face by a recogniser that is not here."""


@dataclass(frozen=True)
class ImagePromptFile:
    """An IP-Adapter as it lies on this machine, with its image encoder. `projected`: it reads one
    vector of the picture, not one for each patch. `timed`: it knows the time of the step, as those
    of Stable Diffusion 3 do, which read SigLIP."""

    name: str
    path: Path
    encoder: Path
    parameters: int
    encoder_parameters: int
    projected: bool
    timed: bool
    encoder_class: str


def inspect_image_prompt(
    name: str, path: Path, checkpoint: Checkpoint, pipeline: str
) -> ImagePromptFile:
    """The IP-Adapter in a file, or in a folder with one file, for a checkpoint served by a pipeline
    class.

    Raises:
        CheckpointError: it is none, it is damaged, it has no image encoder, or it was made for
            another model; the message says which.
    """
    where = f"{VARIABLE}: {name} ({path})"
    if pipeline not in PIPELINES:
        raise CheckpointError(
            f"{where}: {pipeline} takes no image prompts here; those that do:"
            f" {', '.join(PIPELINES)}"
        )
    file = _file(where, path)
    header = read_header(file)
    keys = {one: tensor for one, tensor in header.tensors.items() if KEYS.search(one)}
    projection = {
        PROJECTION.sub("", one): tensor
        for one, tensor in header.tensors.items()
        if PROJECTION.match(one)
    }
    if not keys or not projection:
        raise CheckpointError(f"{where} is not an IP-Adapter: it has no tensors of one")
    if any(map(FACES.search, header.tensors)):
        raise CheckpointError(
            f"{where} is for faces: it needs a recogniser that is not served here; take a plain"
            " IP-Adapter, or a plus one"
        )
    family = next(
        name for mark, name in FAMILIES.items() if any(mark in one for one in header.tensors)
    )
    _check_family(where, family, pipeline)
    _check_width(where, family, keys, checkpoint)
    encoder_class = ENCODER_CLASSES.get(family, CLIP)
    encoder = _encoder(where, file, encoder_class)
    _check_encoder(where, projection, encoder, encoder_class)
    weights = [read_header(one) for one in safetensors_in(encoder)]
    return ImagePromptFile(
        name,
        file,
        encoder,
        sum(header.dtypes.values()),
        sum(sum(one.dtypes.values()) for one in weights),
        "proj.weight" in projection,
        family == "Stable Diffusion 3",
        encoder_class,
    )


def _file(where: str, path: Path) -> Path:
    if path.is_file():
        if not is_safetensors(path):
            raise CheckpointError(f"{where} is no .safetensors file; others are not read")
        return path
    files = safetensors_in(path)
    if len(files) != 1:
        named = ", ".join(one.name for one in files) or "none"
        raise CheckpointError(
            f"{where} has {len(files)} files in safetensors ({named}): name the one to use"
        )
    return files[0]


def _check_family(where: str, family: str, pipeline: str) -> None:
    mine = "FLUX" if pipeline.startswith("Flux") else "Stable Diffusion 1 to XL"
    if pipeline.startswith("StableDiffusion3"):
        mine = "Stable Diffusion 3"
    if family != mine:
        raise CheckpointError(f"{where} was made for {family}, and the model is a {pipeline}")


def _check_width(
    where: str, family: str, keys: Mapping[str, StoredTensor], checkpoint: Checkpoint
) -> None:
    """The width that its keys are made from is the text's, in Stable Diffusion 3 the denoiser's."""
    names = ["joint_attention_dim" if family == "FLUX" else "cross_attention_dim"]
    if family == "Stable Diffusion 3":
        names = ["num_attention_heads", "attention_head_dim"]
    configs = [one.config for one in checkpoint.components]
    factors = next(
        ([one[name] for name in names] for one in configs if all(name in one for name in names)), []
    )
    wanted = (
        math.prod(factors) if factors and all(isinstance(one, int) for one in factors) else None
    )
    width = next(iter(keys.values())).shape[1]
    if wanted is not None and width != wanted:
        raise CheckpointError(
            f"{where} was made for another model: it reads {width} numbers a token, and that of"
            f" {checkpoint.path.name} reads {wanted}"
        )


def _encoder(where: str, file: Path, encoder_class: str) -> Path:
    """The folder `image_encoder` beside the file, as published adapters have it."""
    folder = file.parent / ENCODER
    if not (folder / "config.json").is_file() or not safetensors_in(folder):
        raise CheckpointError(
            f"{where} has no image encoder: put the folder {ENCODER} of a"
            f" {encoder_class} with weights in safetensors beside {file.name}"
        )
    return folder


def _check_encoder(
    where: str, projection: Mapping[str, StoredTensor], encoder: Path, encoder_class: str
) -> None:
    """The projection reads what the encoder gives: a projected vector, or hidden states."""
    config = read_json(encoder / "config.json")
    architectures = config.get("architectures") or [encoder_class]
    if not {encoder_class, WHOLE.get(encoder_class)} & set(architectures):
        raise CheckpointError(
            f"{where}: {encoder} is {', '.join(architectures)}; it must be {encoder_class}"
        )
    config = config.get("vision_config") or config
    vector, states = projection.get("proj.weight"), projection.get("proj_in.weight")
    read = vector or states
    if read is None:
        raise CheckpointError(
            f"{where} is of a kind that is not served here; take a plain IP-Adapter, or a plus one"
        )
    given = config.get("projection_dim", 512) if vector else config.get("hidden_size", 768)
    if read.shape[1] != given:
        raise CheckpointError(
            f"{where} wants another image encoder: it reads {read.shape[1]} numbers, and {encoder}"
            f" gives {given}"
        )
