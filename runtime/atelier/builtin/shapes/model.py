"""The pipeline with random weights: the sizes of every part, chosen so that 20 steps take a second
on one core.

Stable Diffusion 3, its third text encoder muted: diffusers loads no SD3 folder without a T5 unless
the caller says so, so there is one of a few parameters whose last norm is zero. The pipeline then
appends `max_sequence_length` zero embeddings to every prompt, as it does without T5; they stay
equal through the network, see `denoiser`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from atelier.builtin.shapes.vocabulary import MAX_TOKENS, build_tokenizer

LATENT_CHANNELS = 16  # what the inpainting pipeline insists on
LATENT_SIZE = 16
TEXT_WIDTHS = (96, 64)
TEXT_LAYERS = 3
WIDTH, HEADS, DEPTH = 160, 5, 6
# any from 3 to 12 scores alike; the lowest leaves most room for strengths of image-to-image
SCHEDULE_SHIFT = 3.0


def build_pipeline() -> StableDiffusion3Pipeline:
    """Every component in float32 on the CPU, weights drawn from torch's default generator."""
    tokenizer = build_tokenizer()
    text_encoders = [_text_encoder(tokenizer, width) for width in TEXT_WIDTHS]
    return StableDiffusion3Pipeline(
        transformer=_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SCHEDULE_SHIFT),
        vae=_vae(),
        text_encoder=text_encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=text_encoders[1],
        tokenizer_2=build_tokenizer(),
        text_encoder_3=_muted_t5(),
        tokenizer_3=T5TokenizerFast(
            vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], extra_ids=0
        ),
    )


def save_checkpoint(pipeline: StableDiffusion3Pipeline, folder: Path) -> None:
    """A diffusers folder whose weights are stored in float16 and, unless the caller says otherwise,
    load in float32.

    transformers loads in the dtype that a component's config names, so only the files are halved.
    """
    pipeline.to("cpu", torch.float32).save_pretrained(folder)
    for path in folder.rglob("*.safetensors"):
        save_file(
            {name: tensor.half() for name, tensor in load_file(path).items()},
            path,
            metadata={"format": "pt"},
        )


def _text_encoder(tokenizer: CLIPTokenizer, width: int) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=width // 32,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def _muted_t5() -> T5EncoderModel:
    config = T5Config(
        vocab_size=3, d_model=sum(TEXT_WIDTHS), d_kv=8, d_ff=8, num_layers=1, num_heads=1
    )
    t5 = T5EncoderModel(config)
    torch.nn.init.zeros_(t5.encoder.final_layer_norm.weight)
    return t5


def _transformer() -> SD3Transformer2DModel:
    transformer = SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=DEPTH,
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        caption_projection_dim=WIDTH,
        joint_attention_dim=sum(TEXT_WIDTHS),
        pooled_projection_dim=sum(TEXT_WIDTHS),
        pos_embed_max_size=LATENT_SIZE,
        qk_norm="rms_norm",
    )
    # Blocks begin as the identity and the output as zero (adaLN-Zero, arXiv:2212.09748).
    for name, parameter in transformer.named_parameters():
        if ".norm1" in name or name.startswith(("norm_out.", "proj_out.")):
            torch.nn.init.zeros_(parameter)
    return transformer


def _vae() -> AutoencoderKL:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(24, 48, 64, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=LATENT_CHANNELS,
        sample_size=128,
        shift_factor=0.0,
        scaling_factor=1.0,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    # Latents begin almost free of noise; at deviation 1 the decoder would at first learn from noise
    # alone.
    torch.nn.init.constant_(vae.encoder.conv_out.bias[LATENT_CHANNELS:], -6.0)
    return vae
