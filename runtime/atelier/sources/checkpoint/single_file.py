"""Checkpoints in one file (Stable Diffusion's original layout and its heirs) and LoRA adapters,
told by tensor names.

The names below are those of the original training code bases, which diffusers' `from_single_file`
converts from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from atelier.errors import CheckpointError
from atelier.sources.checkpoint.adapter_kind import is_adapter
from atelier.sources.checkpoint.contents import PICKLES, Checkpoint, Component
from atelier.sources.checkpoint.headers import Header, StoredTensor, read_header
from atelier.sources.checkpoint.listing import entries, safetensors_in

ADAPTER_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
ADAPTER_PICKLES = ("pytorch_lora_weights.bin", "adapter_model.bin")

PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "denoiser",
        (
            "model.diffusion_model.",
            "double_blocks.",
            "single_blocks.",
            "joint_blocks.",
            "transformer_blocks.",
        ),
    ),
    ("vae", ("first_stage_model.", "vae.")),
    ("text_encoder", ("cond_stage_model.", "conditioner.", "text_encoders.", "text_encoder")),
)
"""Part of a pipeline by the prefix of its tensors' names."""

FAMILIES = (
    (
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
        "StableDiffusionXLPipeline",
    ),
    (
        "conditioner.embedders.0.model.transformer.resblocks.0.attn.in_proj_weight",
        "StableDiffusionXLImg2ImgPipeline",
    ),
    (
        "model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias",
        "StableDiffusion3Pipeline",
    ),
    ("model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale", "FluxPipeline"),
    ("double_blocks.0.img_attn.norm.key_norm.scale", "FluxPipeline"),
    ("model.diffusion_model.input_blocks.0.0.weight", "StableDiffusionPipeline"),
)
"""A tensor that only this family has, most particular first."""

INPAINT_CHANNELS = 9
"""Input channels of an inpainting UNet: latents, masked latents and mask."""


def inspect_file(path: Path, allow_pickle: bool) -> Checkpoint:
    """A pipeline or an adapter in one file."""
    if path.suffix in PICKLES:
        fault = (
            f"{path} is a pickle, which can run code when opened: convert it to safetensors or set"
            " ALLOW_PICKLE=true"
        )
        size = path.stat().st_size
        part = Component(
            "checkpoint",
            "",
            "",
            files=(path,),
            bytes=size,
            dtypes={"float32": size // 4},
            linear=size // 4,
        )
        return Checkpoint(
            "single_file", path, "", (part,), problems=() if allow_pickle else (fault,)
        )
    if path.suffix == ".gguf":
        raise CheckpointError(f"{path} is weights in GGUF, which ENGINE=llamacpp serves")
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} is no checkpoint: a single file must be .safetensors")
    header = read_header(path)
    if is_adapter(header.tensors):
        return Checkpoint("adapter", path, "", (_part("adapter", header),))
    components = tuple(_parts(header))
    family = _family(header.tensors)
    names = {one.name for one in components}
    problems = []
    if "denoiser" in names and not {"vae", "text_encoder"} <= names:
        lacking = " and ".join(part for part in ("text_encoder", "vae") if part not in names)
        problems.append(
            f"{path} holds a denoiser without {lacking}: use the model's pipeline folder instead"
        )
    elif "denoiser" not in names:
        first = next(iter(header.tensors), "none")
        problems.append(
            f"{path} holds no denoiser that is known by its tensor names (first: {first!r})"
        )
    return Checkpoint("single_file", path, family, components, problems=tuple(problems))


def is_adapter_folder(path: Path) -> bool:
    """Whether a folder holds LoRA weights and nothing larger."""
    names = {one.name for one in entries(path)}
    if names & {*ADAPTER_NAMES, *ADAPTER_PICKLES, "adapter_config.json"}:
        return True
    weights = safetensors_in(path)
    if len(weights) != 1 or "config.json" in names:
        return False
    return is_adapter(read_header(weights[0]).tensors)


def inspect_adapter(path: Path, allow_pickle: bool) -> Checkpoint:
    """LoRA weights in a folder: one file by a known name, or the only .safetensors file."""
    here = {one.name: one for one in entries(path)}
    found = [here[name] for name in ADAPTER_NAMES if name in here]
    found += [one for one in safetensors_in(path) if one not in found]
    if found:
        try:
            return Checkpoint("adapter", path, "", (_part("adapter", read_header(found[0])),))
        except CheckpointError as error:
            return Checkpoint("adapter", path, "", (), problems=(error.message,))
    pickles = [here[name] for name in ADAPTER_PICKLES if name in here]
    if not pickles:
        return Checkpoint(
            "adapter", path, "", (), problems=(f"{path} has adapter_config.json but no weights",)
        )
    size = pickles[0].stat().st_size
    part = Component(
        "adapter", "", "", files=(pickles[0],), bytes=size, dtypes={"float32": size // 4}
    )
    fault = (
        f"{pickles[0]} is a pickle, which can run code when opened: convert it to safetensors or"
        " set ALLOW_PICKLE=true"
    )
    return Checkpoint("adapter", path, "", (part,), problems=() if allow_pickle else (fault,))


def _family(tensors: Mapping[str, StoredTensor]) -> str:
    family = next((cls for name, cls in FAMILIES if name in tensors), "")
    first = tensors.get("model.diffusion_model.input_blocks.0.0.weight")
    if first and first.shape[1:2] == (INPAINT_CHANNELS,):
        return family.removesuffix("Pipeline") + "InpaintPipeline"
    return family


def _part(name: str, header: Header) -> Component:
    return Component(
        name,
        "",
        "",
        files=(header.path,),
        bytes=header.bytes,
        dtypes=header.dtypes,
        linear=header.linear,
    )


def _parts(header: Header) -> list[Component]:
    """The file's tensors grouped into parts of a pipeline; what no prefix claims is `other`."""
    groups: dict[str, list[str]] = {}
    for name in header.tensors:
        part = next((part for part, prefixes in PARTS if name.startswith(prefixes)), "other")
        groups.setdefault(part, []).append(name)
    return [_part(part, header.only(names)) for part, names in groups.items()]
