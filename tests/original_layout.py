"""A Stable Diffusion 1 folder as one file in the layout of the original training code, which
single-file checkpoints have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

# Names in the original layout for those of a UNet of two levels with one layer each, as
# `tiny_pipelines` makes it.
UNET = {
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0": "output_blocks.1.2",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.1": "mid.block_2",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
}
LEVELS = 2


def save_original(folder: Path, file: Path) -> Path:
    """Write the weights of the pipeline in `folder` into `file`."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    tensors = {
        f"model.diffusion_model.{name}": weight
        for name, weight in _unet(pipeline.unet.state_dict())
    }
    tensors |= {
        f"first_stage_model.{name}": weight for name, weight in _vae(pipeline.vae.state_dict())
    }
    for name, weight in pipeline.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = (
            weight
        )
    save_file({name: weight.contiguous() for name, weight in tensors.items()}, file)
    return file


def _unet(weights: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in weights.items():
        [part] = [part for part in UNET if name.startswith(f"{part}.")]
        rest = name.removeprefix(f"{part}.")
        if "resnets" in part:
            layer, _, kind = rest.rpartition(".")
            rest = f"{UNET_RESNET[layer]}.{kind}"
        yield f"{UNET[part]}.{rest}", weight


def _vae(weights: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in weights.items():
        for ours, original in VAE.items():
            name = name.replace(ours, original)
        name = re.sub(
            r"down_blocks\.(\d)\.(resnets)?",
            lambda m: f"down.{m[1]}.{'block' if m[2] else ''}",
            name,
        )
        name = re.sub(
            r"up_blocks\.(\d)\.(resnets)?",
            lambda m: f"up.{LEVELS - 1 - int(m[1])}.{'block' if m[2] else ''}",
            name,
        )
        linear = "attn_1" in name and name.endswith("weight") and weight.dim() == 2
        yield name, weight[:, :, None, None] if linear else weight
