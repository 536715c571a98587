"""Pipelines of published models' exact shapes with random weights: the arithmetic is the same, and
nothing is downloaded.

Text encoders are left out: requests bring embeddings of the right shape, as a server with a warm
prompt cache has them. Shapes are those of the models' published `config.json` files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)


@dataclass(frozen=True)
class Subject:
    """A pipeline on the device, its denoiser, and the arguments of a request for it."""

    pipeline: Any
    denoiser: torch.nn.Module
    steps: int
    arguments: Callable[[int, int], dict[str, Any]]


def _random(module: torch.nn.Module, device: str, dtype: torch.dtype) -> Any:
    """The module on the device with small random weights; norms keep their ones."""
    module = module.to_empty(device=device).to(dtype)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1)
            else:
                parameter.normal_(0, 0.02)
        for buffer in module.buffers():
            buffer.normal_(0, 0.02) if buffer.is_floating_point() else buffer.zero_()
    return module.eval()


def _make(cls: Any, device: str, dtype: torch.dtype, **config: Any) -> Any:
    with torch.device("meta"):
        module = cls(**config)
    return _random(module, device, dtype)


def _vae(latent_channels: int, device: str, dtype: torch.dtype, **config: Any) -> AutoencoderKL:
    levels = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    sizes = {
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "force_upcast": False,
    }
    return _make(
        AutoencoderKL,
        device,
        dtype,
        down_block_types=levels[0],
        up_block_types=levels[1],
        latent_channels=latent_channels,
        **sizes,
        **config,
    )


def stable_diffusion_35_medium(device: str, dtype: torch.dtype) -> Subject:
    transformer = _make(
        SD3Transformer2DModel,
        device,
        dtype,
        sample_size=128,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)),
        qk_norm="rms_norm",
    )
    vae = _vae(
        16, device, dtype, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        **dict.fromkeys(
            (
                "text_encoder",
                "text_encoder_2",
                "text_encoder_3",
                "tokenizer",
                "tokenizer_2",
                "tokenizer_3",
            )
        ),
    )

    def arguments(side: int, seed: int) -> dict[str, Any]:
        draw = _drawer(device, dtype, seed)
        return {
            "prompt_embeds": draw(1, 333, 4096),
            "negative_prompt_embeds": draw(1, 333, 4096),
            "pooled_prompt_embeds": draw(1, 2048),
            "negative_pooled_prompt_embeds": draw(1, 2048),
            "guidance_scale": 5.0,
            "width": side,
            "height": side,
        }

    return Subject(pipeline, transformer, 28, arguments)


def stable_diffusion_xl(device: str, dtype: torch.dtype) -> Subject:
    unet = _make(
        UNet2DConditionModel,
        device,
        dtype,
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2048,
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    pipeline = StableDiffusionXLPipeline(
        unet=unet,
        vae=_vae(4, device, dtype),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
    )

    def arguments(side: int, seed: int) -> dict[str, Any]:
        draw = _drawer(device, dtype, seed)
        return {
            "prompt_embeds": draw(1, 77, 2048),
            "negative_prompt_embeds": draw(1, 77, 2048),
            "pooled_prompt_embeds": draw(1, 1280),
            "negative_pooled_prompt_embeds": draw(1, 1280),
            "guidance_scale": 5.0,
            "width": side,
            "height": side,
        }

    return Subject(pipeline, unet, 30, arguments)


def flux_1_dev(device: str, dtype: torch.dtype) -> Subject:
    transformer = _make(
        FluxTransformer2DModel,
        device,
        dtype,
        patch_size=1,
        in_channels=64,
        num_layers=19,
        num_single_layers=38,
        attention_head_dim=128,
        num_attention_heads=24,
        joint_attention_dim=4096,
        pooled_projection_dim=768,
        guidance_embeds=True,
    )
    vae = _vae(
        16, device, dtype, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1159
    )
    pipeline = FluxPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
    )

    def arguments(side: int, seed: int) -> dict[str, Any]:
        draw = _drawer(device, dtype, seed)
        return {
            "prompt_embeds": draw(1, 512, 4096),
            "pooled_prompt_embeds": draw(1, 768),
            "guidance_scale": 3.5,
            "width": side,
            "height": side,
        }

    return Subject(pipeline, transformer, 28, arguments)


def _drawer(device: str, dtype: torch.dtype, seed: int) -> Callable[..., torch.Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, device=device, dtype=dtype)


SUBJECTS: dict[str, Callable[[str, torch.dtype], Subject]] = {
    "sd35-medium": stable_diffusion_35_medium,
    "sdxl": stable_diffusion_xl,
    "flux1-dev": flux_1_dev,
}
