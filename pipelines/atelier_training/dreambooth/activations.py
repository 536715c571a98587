"""What autograd keeps for the backward pass, counted on a denoiser that has shapes and no storage.

The denoiser runs once on the meta device while every saved tensor is noted. Attention is taken as
fused (nothing of the size tokens x tokens is kept), as it is on every GPU; compiled blocks keep
less than what is counted here.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from atelier_training.dreambooth.adaptation import make_trainable
from atelier_training.dreambooth.families import Family, Rows
from atelier_training.dreambooth.options import TrainOptions

RECOMPUTED = (
    "BasicTransformerBlock",
    "JointTransformerBlock",
    "ResnetBlock2D",
)  # beside a class's _repeated_blocks
OUTSIDE = "outside"


def empty_denoiser(family: Family, options: TrainOptions) -> Any:
    """The denoiser without storage, with what the options train requiring gradients."""
    config = family.denoiser_config()
    with init_empty_weights():
        denoiser = getattr(diffusers, config["_class_name"]).from_config(config)
        denoiser.requires_grad_(False)
        make_trainable(denoiser, family.targets(options), options)
    return denoiser.to("meta")


def activation_bytes(
    family: Family, options: TrainOptions, denoiser: Any, dtype: torch.dtype
) -> int:
    """Bytes kept for one batch. With gradient checkpointing: what lies between the blocks, and the
    largest block."""
    nn.Module.to(denoiser, dtype).train()  # diffusers' own `to` warns of what is meant here
    own = {p.untyped_storage()._cdata for p in (*denoiser.parameters(), *denoiser.buffers())}
    kept: dict[int, tuple[torch.UntypedStorage, str]] = {}
    place = [OUTSIDE]
    between: dict[str, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept.setdefault(storage._cdata, (storage, place[-1]))
        return tensor

    for name, module in denoiser.named_modules():
        if type(module).__name__ in (*RECOMPUTED, *(denoiser._repeated_blocks or ())):
            module.register_forward_pre_hook(_enter(name, place))
            module.register_forward_hook(_leave(name, place, between))
    rows = rows_without_storage(family, options, dtype)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), FusedAttention():
        family.losses(denoiser, family.objective(options.min_snr_gamma), rows)
    by_block: dict[str, int] = defaultdict(int)
    for storage, block in kept.values():
        by_block[block] += storage.nbytes()
    if not options.gradient_checkpointing:
        return sum(by_block.values())
    return by_block.pop(OUTSIDE, 0) + sum(between.values()) + max(by_block.values(), default=0)


def _enter(name: str, place: list[str]) -> Callable[..., None]:
    return lambda module, inputs: place.append(name)


def _leave(name: str, place: list[str], between: dict[str, int]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        place.pop()
        tensors = [
            t
            for t in (output if isinstance(output, tuple) else (output,))
            if isinstance(t, torch.Tensor)
        ]
        between[name] = sum(t.numel() * t.element_size() for t in tensors)

    return hook


def rows_without_storage(family: Family, options: TrainOptions, dtype: torch.dtype) -> Rows:
    """A batch as the run would make it, on the meta device."""
    vae: dict[str, Any] = json.loads((family.model / "vae" / "config.json").read_text())
    side = options.resolution // 2 ** (len(vae["block_out_channels"]) - 1)
    count = options.batch_size * (2 if options.with_prior else 1)
    latents = torch.empty(count, vae["latent_channels"], side, side, device="meta")
    text = {
        name: torch.empty(count, *shape, device="meta", dtype=dtype)
        for name, shape in family.text_shapes().items()
    }
    levels = family.objective(None).levels(count, torch.Generator()).to("meta")
    return Rows(latents, latents, levels, text, torch.empty(count, 6, device="meta"))


class FusedAttention(TorchFunctionMode):
    """Replaces scaled dot product attention by one that only has the shapes of a fused kernel's
    memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            names = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return _Kept.apply(names["query"], names["key"], names["value"])
        return func(*args, **(kwargs or {}))


class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        output = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, output)
        return output
