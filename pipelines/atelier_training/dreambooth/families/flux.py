"""FLUX.1: a transformer over packed latents with rotary positions, flow matching, guidance embedded
in dev."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import nn

from atelier_training.dreambooth.families.base import Family, Rows, Tensors
from atelier_training.dreambooth.families.stable_diffusion_3 import (
    JOINT_ATTENTION,
    JOINT_FEED_FORWARD,
)
from atelier_training.dreambooth.objectives import FlowMatching, Noised, Objective

T5_TOKENS = 512
TRAINING_GUIDANCE = (
    1.0  # a distilled model fine-tuned at 1 keeps its response to other values at inference
)


class Flux(Family):
    denoiser = "transformer"
    trainable_encoders = ("text_encoder",)
    attention_targets = JOINT_ATTENTION
    linear_targets = (*JOINT_ATTENTION, *JOINT_FEED_FORWARD, "proj_mlp")
    # Its backward pass reads where it may not: the gradient is a slice of the single blocks' joint
    # output (seen in torch 2.11).
    trains_with_cudnn_attention = False

    def objective(self, min_snr_gamma: float | None) -> Objective:
        """Its shift depends on the picture's size at inference only; training draws unshifted
        levels."""
        return FlowMatching(shift=1.0, timestep_scale=1.0)

    def encode_prompts(self, pipeline: Any, prompts: Sequence[str]) -> Tensors:
        embeds, pooled, _ = pipeline.encode_prompt(
            list(prompts),
            None,
            device=pipeline.text_encoder.device,
            max_sequence_length=self.text_tokens or T5_TOKENS,
        )
        return {"prompt": embeds, "pooled": pooled}

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        config = self.denoiser_config()
        return {
            "prompt": (self.text_tokens or T5_TOKENS, config["joint_attention_dim"]),
            "pooled": (config["pooled_projection_dim"],),
        }

    def predict(self, denoiser: nn.Module, noised: Noised, rows: Rows) -> torch.Tensor:
        prompt = rows.text["prompt"]
        batch, channels, height, width = noised.latents.shape
        place: dict[str, Any] = {"device": prompt.device, "dtype": prompt.dtype}
        guided = bool(self.denoiser_config().get("guidance_embeds"))
        packed: torch.Tensor = denoiser(
            hidden_states=FluxPipeline._pack_latents(
                noised.latents.to(prompt.dtype), batch, channels, height, width
            ),
            timestep=noised.timestep.to(prompt.dtype),
            guidance=torch.full((batch,), TRAINING_GUIDANCE, **place) if guided else None,
            encoder_hidden_states=prompt,
            pooled_projections=rows.text["pooled"],
            txt_ids=torch.zeros(prompt.shape[1], 3, **place),
            img_ids=FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, **place),
            return_dict=False,
        )[0]
        return unpack(packed, height, width)


def unpack(packed: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, H/2 * W/2, 4C) tokens of 2 x 2 pixels to latents (B, C, H, W)."""
    grid = packed.unflatten(1, (height // 2, width // 2)).unflatten(-1, (-1, 2, 2))  # B h w C 2 2
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
