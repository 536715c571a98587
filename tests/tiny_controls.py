"""ControlNets, T2I-Adapters and IP-Adapters for the tiny checkpoints, with random weights: those
that begin as zero are drawn too, or they would change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    FluxControlNetModel,
    SD3ControlNetModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests import tiny_pipelines
from tests.tiny_pipelines import TEXT_WIDTH

FIRST_WITH_ATTENTION = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
"""As Stable Diffusion 1 has it; T2I-Adapters count on it."""

READS = ("cond_embedding", "controlnet_x_embedder", "pos_embed_input")
"""Layers that read a control's picture; made stronger, so that the picture matters."""

EYES = 16
"""Width of what the image encoder gives."""


def stable_diffusion_1(root: Path, seed: int = 0) -> Path:
    """The tiny Stable Diffusion 1 with attention where the real one has it."""
    folder = tiny_pipelines.stable_diffusion_1(root, seed)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder)
    torch.manual_seed(seed)
    config = {**pipeline.unet.config, **FIRST_WITH_ATTENTION}
    pipeline.unet = UNet2DConditionModel.from_config(config)
    pipeline.save_pretrained(folder)
    return folder


VISION: dict[str, Any] = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
"""Of an image encoder."""

CHECKPOINTS: dict[str, Callable[[Path], Path]] = tiny_pipelines.FAMILIES | {
    "sd15": stable_diffusion_1
}


def control(checkpoint: Path, into: Path, seed: int) -> Path:
    """A ControlNet for the checkpoint's family."""
    torch.manual_seed(seed)
    pipeline: Any = DiffusionPipeline.from_pretrained(checkpoint)
    if hasattr(pipeline, "unet"):
        net: Any = ControlNetModel.from_unet(
            pipeline.unet, conditioning_embedding_out_channels=(4, 8), load_weights_from_unet=False
        )
    elif "Flux" in type(pipeline).__name__:
        net = FluxControlNetModel.from_config(dict(pipeline.transformer.config))
    else:
        config = dict(pipeline.transformer.config) | {"extra_conditioning_channels": 0}
        net = SD3ControlNetModel.from_config(config)
    for name, parameter in net.named_parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
        if any(part in name for part in READS):
            parameter.data *= 8
    net.save_pretrained(into)
    return into


def t2i_adapter(into: Path, large: bool = False, channels: int = 3) -> Path:
    torch.manual_seed(5)
    net = T2IAdapter(
        in_channels=channels,
        channels=[8, 16],
        num_res_blocks=1,
        downscale_factor=4 if large else 2,
        adapter_type="full_adapter_xl" if large else "full_adapter",
    )
    for parameter in net.parameters():
        parameter.data *= 4
    net.save_pretrained(into)
    return into


def ip_adapter(checkpoint: Path, folder: Path, name: str, seed: int, plus: bool = False) -> Path:
    """A file of the published form, with the image encoder's folder beside it."""
    torch.manual_seed(seed)
    pipeline: Any = DiffusionPipeline.from_pretrained(checkpoint)
    tensors: dict[str, torch.Tensor] = {}
    if isinstance(pipeline, StableDiffusion3Pipeline):
        return _timed_ip_adapter(pipeline.transformer, folder, name)
    if hasattr(pipeline, "unet"):
        width = pipeline.unet.config.cross_attention_dim
        layers = [one for one in pipeline.unet.attn_processors if one.endswith("attn2.processor")]
        for index, layer in enumerate(layers):
            attention = pipeline.unet.get_submodule(layer.removesuffix(".processor"))
            for part in ("k", "v"):
                key = f"ip_adapter.{2 * index + 1}.to_{part}_ip.weight"
                tensors[key] = torch.randn(attention.inner_dim, width)
        prefix = "image_proj"
    else:
        width = pipeline.transformer.config.joint_attention_dim
        inner = pipeline.transformer.inner_dim
        for index in range(pipeline.transformer.config.num_layers):
            for part in ("k", "v"):
                key = f"double_blocks.{index}.processor.ip_adapter_double_stream_{part}_proj"
                tensors[f"{key}.weight"] = torch.randn(inner, width)
                tensors[f"{key}.bias"] = torch.randn(inner)
        prefix = "ip_adapter_proj_model"
    projection = _resampler(width) if plus else _projection(width)
    tensors |= {f"{prefix}.{name}": tensor for name, tensor in projection.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name)
    if not (folder / "image_encoder").exists():
        config = CLIPVisionConfig(projection_dim=EYES, **VISION)
        torch.manual_seed(9)
        CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    return folder / name


def _timed_ip_adapter(denoiser: Any, folder: Path, name: str) -> Path:
    """The same of Stable Diffusion 3, whose layers and projection know the step's time."""
    modules: dict[str, torch.nn.Module] = {
        "image_proj": IPAdapterTimeImageProjection(
            embed_dim=TEXT_WIDTH, output_dim=denoiser.inner_dim, hidden_dim=64, heads=1,
            num_queries=4, timestep_in_dim=32,
        )
    }  # fmt: skip
    for index in range(len(denoiser.attn_processors)):
        modules[f"ip_adapter.{index}"] = SD3IPAdapterJointAttnProcessor2_0(
            denoiser.inner_dim, denoiser.inner_dim, denoiser.config.attention_head_dim, 64
        )
    tensors = {
        f"{prefix}.{key}": torch.randn_like(value) if value.ndim > 1 else value
        for prefix, module in modules.items()
        for key, value in module.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name)
    if not (folder / "image_encoder").exists():
        config = SiglipVisionConfig(**VISION)
        torch.manual_seed(9)
        SiglipVisionModel(config).save_pretrained(folder / "image_encoder")
    return folder / name


def _projection(width: int) -> dict[str, torch.Tensor]:
    """Of one vector a picture to four tokens."""
    return {
        "proj.weight": torch.randn(4 * width, EYES),
        "proj.bias": torch.randn(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }


def _resampler(width: int, inner: int = 64) -> dict[str, torch.Tensor]:
    """Of one vector a patch to four tokens, as plus adapters have it."""
    sizes: dict[str, tuple[int, ...]] = {
        "latents": (1, 4, inner),
        "proj_in.weight": (inner, TEXT_WIDTH),
        "proj_in.bias": (inner,),
        "proj_out.weight": (width, inner),
        "proj_out.bias": (width,),
        "norm_out.weight": (width,),
        "norm_out.bias": (width,),
    }
    for layer in range(4):
        sizes |= {
            f"layers.{layer}.{norm}.{kind}": (inner,)
            for norm in ("0.norm1", "0.norm2", "1.0")
            for kind in ("weight", "bias")
        }
        sizes |= {
            f"layers.{layer}.0.to_q.weight": (inner, inner),
            f"layers.{layer}.0.to_kv.weight": (2 * inner, inner),
            f"layers.{layer}.0.to_out.weight": (inner, inner),
            f"layers.{layer}.1.1.weight": (4 * inner, inner),
            f"layers.{layer}.1.3.weight": (inner, 4 * inner),
        }
    return {name: torch.randn(shape) for name, shape in sizes.items()}


def controlled_settings(root: Path) -> dict[str, str]:
    """Settings of a server of a checkpoint with a control `edges` and an image prompt `look`."""
    checkpoint = stable_diffusion_1(root)
    look = ip_adapter(checkpoint, root / "ip", "look.safetensors", 2)
    return {
        "model_id": str(checkpoint),
        "controlnets": f"edges={control(checkpoint, root / 'net', 1)}",
        "ip_adapters": str(look),
    }
