"""Adapters for the tiny checkpoints in the layouts that people have, of random weights, and what
they do to a plain pipeline by the formulas of those who made the layouts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft import LoHaConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

RANK = 3
ALPHA = 6.0
STRENGTH = 0.4

SGM = {"down_blocks_1_attentions_0": "input_blocks_3_1", "down_blocks_1_resnets_0_conv1":
       "input_blocks_3_0_in_layers_2"}  # fmt: skip
"""Names of the tiny SDXL's layers in the original code: two levels of one layer each."""


def bare(checkpoint: Path) -> Any:
    """The pipeline as diffusers loads it."""
    pipeline: Any = DiffusionPipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def denoiser(pipeline: Any) -> Any:
    return getattr(pipeline, "unet", None) or pipeline.transformer


def layers(module: Any, *ends: str) -> list[str]:
    """Linear layers and convolutions whose paths end so."""
    return [
        name
        for name, one in module.named_modules()
        if name.endswith(ends) and isinstance(one, torch.nn.Linear | torch.nn.Conv2d)
    ]


def flat(prefix: str, name: str, original: bool = False) -> str:
    """A layer in kohya's names; `original` for those of Stability's SDXL."""
    told = name.replace(".", "_")
    for ours, theirs in SGM.items() if original else ():
        told = told.replace(ours, theirs)
    return prefix + told


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape) * STRENGTH


def lora(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """kohya's tensors of a LoRA for a weight."""
    return {
        "lora_down.weight": _random(RANK, *weight.shape[1:]),
        "lora_up.weight": _random(weight.shape[0], RANK, *[1] * (weight.dim() - 2)),
        "alpha": torch.tensor(ALPHA),
    }


def loha(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """LyCORIS's tensors of a LoHa; a convolution of 3 x 3 has a core of its own."""
    out, inner = weight.shape[:2]
    if weight.dim() == 4 and weight.shape[2] > 1:
        factors = {}
        for index in (1, 2):
            factors |= {
                f"hada_t{index}": _random(RANK, RANK, *weight.shape[2:]),
                f"hada_w{index}_a": _random(RANK, out),
                f"hada_w{index}_b": _random(RANK, inner),
            }
        return {**factors, "alpha": torch.tensor(ALPHA)}
    return {
        "hada_w1_a": _random(out, RANK),
        "hada_w1_b": _random(RANK, inner),
        "hada_w2_a": _random(out, RANK),
        "hada_w2_b": _random(RANK, inner),
        "alpha": torch.tensor(ALPHA),
    }


def lokr(weight: torch.Tensor, whole: bool = False) -> dict[str, torch.Tensor]:
    """LyCORIS's tensors of a LoKr of factor 2, with a second factor of low rank or `whole`, in
    which case the scale means nothing."""
    out, inner = weight.shape[0] // 2, weight.shape[1] // 2
    rest = weight.shape[2:]
    if whole:
        second = {"lokr_w2": _random(out, inner, *rest)}
    else:
        size = int(torch.tensor(rest).prod()) if rest else 1
        second = {"lokr_w2_a": _random(out, RANK), "lokr_w2_b": _random(RANK, inner * size)}
    return {"lokr_w1": _random(2, 2), **second, "alpha": torch.tensor(ALPHA)}


def change(own: dict[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    """What a layer's tensors add to its weight, by LyCORIS's formulas."""
    if "hada_t1" in own:
        first, second = (
            torch.einsum(
                "ijkl,jr,ip->prkl", own[f"hada_t{n}"], own[f"hada_w{n}_b"], own[f"hada_w{n}_a"]
            )
            for n in (1, 2)
        )
        return first * second * ALPHA / RANK
    if "hada_w1_a" in own:
        first = own["hada_w1_a"] @ own["hada_w1_b"]
        return (first * (own["hada_w2_a"] @ own["hada_w2_b"]) * ALPHA / RANK).reshape(weight.shape)
    if "lokr_w1" in own and "lokr_w2" in own:
        second, scale = own["lokr_w2"], 1.0
    elif "lokr_w1" in own:
        second, scale = own["lokr_w2_a"] @ own["lokr_w2_b"], ALPHA / RANK
    else:
        down, up = own["lora_down.weight"], own["lora_up.weight"]
        return (up.flatten(1) @ down.flatten(1)).reshape(weight.shape) * ALPHA / RANK
    second = second.reshape(second.shape[0], weight.shape[1] // 2, *weight.shape[2:])
    first = own["lokr_w1"].reshape(2, 2, *[1] * (second.dim() - 2))
    return torch.kron(first, second).reshape(weight.shape) * scale


def write(
    file: Path, prefix: str, module: Any, names: Iterable[str], make: Any, **more: Any
) -> None:
    """An adapter of these layers in kohya's names."""
    torch.manual_seed(sum(file.stem.encode()))
    tensors = {
        f"{flat(prefix, name, **more)}.{own}": one
        for name in names
        for own, one in make(module.get_submodule(name).weight).items()
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)


def merged(checkpoint: Path, file: Path, prefix: str, weight: float = 1.0, **more: Any) -> Any:
    """A plain pipeline with an adapter's change in its weights."""
    pipeline = bare(checkpoint)
    module = denoiser(pipeline)
    tensors = load_file(file)
    for name, one in module.named_modules():
        told = flat(prefix, name, **more) + "."
        own = {key.removeprefix(told): t for key, t in tensors.items() if key.startswith(told)}
        if own:
            one.weight.data += weight * change(own, one.weight)
    return pipeline


def save_by_peft(checkpoint: Path, folder: Path, kind: str) -> None:
    """What `save_pretrained` of PEFT leaves, of a denoiser with a scale that only its
    configuration has."""
    module = denoiser(bare(checkpoint))
    common = {"target_modules": ["to_q", "to_v"], "r": RANK, "init_weights": False}
    if kind == "LoHa":
        config: Any = LoHaConfig(alpha=9, **common)
    else:
        init = common.pop("init_weights")
        config = LoraConfig(lora_alpha=9, init_lora_weights=init, use_rslora=True, **common)
    torch.manual_seed(5)
    tuned = get_peft_model(module, config)
    for name, one in tuned.named_parameters():
        if "lora_" in name or "hada_" in name:
            one.data *= 4
    tuned.save_pretrained(folder)
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == kind.upper()
