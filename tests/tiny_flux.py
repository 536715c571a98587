"""More families for `tiny_pipelines`: FLUX.1 Kontext, both kinds of FLUX.2, and Stable Diffusion
3.5."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from tests import tiny_encoders as encoders
from tests.tiny_families import FLOW_VAE, save
from tests.tiny_pipelines import (
    TEXT_WIDTH,
    clip_text_model,
    clip_tokenizer,
    t5_encoder,
    t5_tokenizer,
    vae,
)


def flux_parts(seed: int) -> dict[str, object]:
    """The components that FLUX.1 and Kontext share."""
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return {
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": vae(**FLOW_VAE),
        "text_encoder": clip_text_model(),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": t5_encoder(),
        "tokenizer_2": t5_tokenizer(),
    }


def flux_kontext(root: Path, seed: int = 0) -> Path:
    """FLUX.1 Kontext: takes a picture as context, if there is one."""
    return save(FluxKontextPipeline(**flux_parts(seed)), root, "flux-kontext")


def stable_diffusion_35(root: Path, seed: int = 0) -> Path:
    """Stable Diffusion 3.5 medium: a second attention in the first blocks; no T5, as many
    deployments leave it out."""
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=TEXT_WIDTH,
        joint_attention_dim=2 * TEXT_WIDTH,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=64,
        out_channels=4,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(**FLOW_VAE),
        text_encoder=clip_text_model(with_projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text_model(with_projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    return save(pipeline, root, "stable-diffusion-35")


def _flux_2_transformer(text_width: int, guidance: bool) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=text_width,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )


def _flux_2_vae() -> AutoencoderKLFlux2:
    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )


def flux_2(root: Path, seed: int = 0) -> Path:
    """FLUX.2-dev: Mistral Small 3 as encoder, states of layers 10, 20 and 30; a tokenizer stands in
    for its processor, which needs torchvision."""
    torch.manual_seed(seed)
    pipeline = Flux2Pipeline(
        transformer=_flux_2_transformer(3 * 16, guidance=True),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_flux_2_vae(),
        text_encoder=encoders.mistral3(layers=30, width=16),
        tokenizer=encoders.byte_tokenizer(),
    )
    return save(pipeline, root, "flux-2")


def flux_2_klein(root: Path, seed: int = 0) -> Path:
    """FLUX.2 klein: Qwen3 as encoder, states of layers 9, 18 and 27; guided by two calls a step."""
    torch.manual_seed(seed)
    pipeline = Flux2KleinPipeline(
        transformer=_flux_2_transformer(3 * 16, guidance=False),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_flux_2_vae(),
        text_encoder=encoders.qwen3_causal(layers=27, width=16),
        tokenizer=encoders.byte_tokenizer(),
    )
    return save(pipeline, root, "flux-2-klein")


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "flux-kontext": flux_kontext,
    "sd35": stable_diffusion_35,
    "flux-2": flux_2,
    "flux-2-klein": flux_2_klein,
}
