"""Checkpoints of real pipeline classes with random weights and the fewest parameters that still
run, made from configs.

One function per family; each saves a folder under `root` and returns it. Nothing is downloaded:
tokenizers are built here. The weights are drawn from `seed`; the pictures are noise, but every code
path is the family's own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

TEXT_WIDTH = 32
MAX_TOKENS = 77


def clip_tokenizer() -> CLIPTokenizer:
    """One token per byte, no merges; any text can be written with it."""
    letters = sorted(ByteLevel.alphabet())
    symbols = [
        *letters,
        *(letter + "</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return CLIPTokenizer(
        vocab={s: i for i, s in enumerate(symbols)}, merges=[], model_max_length=MAX_TOKENS
    )


def t5_tokenizer() -> T5TokenizerFast:
    letters = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters += [(chr(code), -3.0) for code in range(33, 127)]
    return T5TokenizerFast(vocab=letters, extra_ids=0, model_max_length=MAX_TOKENS)


def clip_text_model(with_projection: bool = False) -> CLIPTextModel | CLIPTextModelWithProjection:
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=37,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config) if with_projection else CLIPTextModel(config)


def t5_encoder() -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=TEXT_WIDTH,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
    )
    return T5EncoderModel(config)


def vae(latent_channels: int = 4, **config: float | bool | None) -> AutoencoderKL:
    """Two levels: a latent is half as wide and high as its picture."""
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=latent_channels,
        sample_size=64,
        **config,
    )


def _unet(**config: object) -> UNet2DConditionModel:
    sizes: dict[str, object] = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "sample_size": 32,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "cross_attention_dim": TEXT_WIDTH,
    }
    return UNet2DConditionModel(**{**sizes, **config})


def _save(pipeline: DiffusionPipeline, root: Path, name: str) -> Path:
    pipeline.save_pretrained(root / name)
    return root / name


def _stable_diffusion(root: Path, name: str, prediction: str, seed: int) -> Path:
    torch.manual_seed(seed)
    pipeline = StableDiffusionPipeline(
        unet=_unet(),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction,
        ),
        vae=vae(),
        text_encoder=clip_text_model(),
        tokenizer=clip_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _save(pipeline, root, name)


def stable_diffusion_1(root: Path, seed: int = 0) -> Path:
    """Stable Diffusion 1.5: predicts noise."""
    return _stable_diffusion(root, "stable-diffusion-1", "epsilon", seed)


def stable_diffusion_2(root: Path, seed: int = 0) -> Path:
    """Stable Diffusion 2.1 (768): predicts velocity."""
    return _stable_diffusion(root, "stable-diffusion-2", "v_prediction", seed)


def stable_diffusion_xl(root: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    unet = _unet(
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + TEXT_WIDTH,
        cross_attention_dim=2 * TEXT_WIDTH,
    )
    pipeline = StableDiffusionXLPipeline(
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        vae=vae(force_upcast=False),
        text_encoder=clip_text_model(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text_model(with_projection=True),
        tokenizer_2=clip_tokenizer(),
        add_watermarker=False,
    )
    return _save(pipeline, root, "stable-diffusion-xl")


def stable_diffusion_3(root: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=1,
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
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer()),
            d_model=2 * TEXT_WIDTH,
            d_kv=8,
            d_ff=37,
            num_layers=1,
            num_heads=4,
        )
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(
            shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=clip_text_model(with_projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text_model(with_projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5,
        tokenizer_3=t5_tokenizer(),
    )
    return _save(pipeline, root, "stable-diffusion-3")


def flux_1(root: Path, seed: int = 0) -> Path:
    """FLUX.1-dev: guidance is embedded."""
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
    pipeline = FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(
            shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=clip_text_model(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
    )
    return _save(pipeline, root, "flux-1")


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "sd15": stable_diffusion_1,
    "sd21": stable_diffusion_2,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "flux": flux_1,
}
