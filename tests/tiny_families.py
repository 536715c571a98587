"""More families for `tiny_pipelines`: flow-matching transformers with language models as text
encoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from tests import tiny_encoders as encoders
from tests.tiny_pipelines import TEXT_WIDTH, t5_encoder, t5_tokenizer, vae

FLOW_VAE = {
    "shift_factor": 0.06,
    "scaling_factor": 1.5,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def save(pipeline: DiffusionPipeline, root: Path, name: str) -> Path:
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            encoders.strengthened(module)
    pipeline.save_pretrained(root / name)
    return root / name


def qwen_image(root: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    pipeline = QwenImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_video_vae(),
        text_encoder=encoders.qwen_vl(),
        tokenizer=encoders.byte_tokenizer(),
    )
    return save(pipeline, root, "qwen-image")


def _video_vae() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def z_image(root: Path, seed: int = 0) -> Path:
    """Z-Image: its denoiser takes one tensor a sample, in lists."""
    torch.manual_seed(seed)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=[4, 4, 8],
        axes_lens=[256, 64, 64],
    )
    for name in ("x_pad_token", "cap_pad_token"):  # made with torch.empty
        torch.nn.init.normal_(getattr(transformer, name), std=0.02)
    pipeline = ZImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(**FLOW_VAE),
        text_encoder=encoders.qwen3(),
        tokenizer=encoders.byte_tokenizer(),
    )
    return save(pipeline, root, "z-image")


def cogview_4(root: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    transformer = CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=TEXT_WIDTH,
        time_embed_dim=16,
        condition_dim=4,
        sample_size=32,
        rope_axes_dim=(64, 64),
    )
    pipeline = CogView4Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75
        ),
        vae=vae(**FLOW_VAE),
        text_encoder=encoders.glm(),
        tokenizer=encoders.glm_tokenizer(),
    )
    return save(pipeline, root, "cogview-4")


def deep_vae(**config: object) -> AutoencoderKL:
    """Four levels: some pipelines take a factor of eight for granted."""
    return AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        **FLOW_VAE,
        **config,
    )


def lumina_2(root: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    transformer = Lumina2Transformer2DModel(
        sample_size=32,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(400, 64, 64),
        cap_feat_dim=TEXT_WIDTH,
    )
    pipeline = Lumina2Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=deep_vae(),
        text_encoder=encoders.gemma2(),
        tokenizer=encoders.gemma_tokenizer(),
    )
    return save(pipeline, root, "lumina-2")


def chroma(root: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    transformer = ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    pipeline = ChromaPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(**FLOW_VAE),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )
    return save(pipeline, root, "chroma")


def aura_flow(root: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    transformer = AuraFlowTransformer2DModel(
        sample_size=32,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=256,
    )
    pipeline = AuraFlowPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        vae=vae(),
        text_encoder=encoders.umt5(),
        tokenizer=t5_tokenizer(),
    )
    return save(pipeline, root, "aura-flow")


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "qwen-image": qwen_image,
    "z-image": z_image,
    "cogview-4": cogview_4,
    "lumina-2": lumina_2,
    "chroma": chroma,
    "aura-flow": aura_flow,
}
