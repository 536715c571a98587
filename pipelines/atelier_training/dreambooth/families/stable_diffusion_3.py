"""Stable Diffusion 3 and 3.5: a joint transformer over text and picture, flow matching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from atelier_training.dreambooth.families.base import Family, Rows, Tensors
from atelier_training.dreambooth.objectives import FlowMatching, Noised, Objective

JOINT_ATTENTION = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
)
JOINT_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")

CLIP_TOKENS, T5_TOKENS = 77, 256


class StableDiffusion3(Family):
    denoiser = "transformer"
    trainable_encoders = ("text_encoder", "text_encoder_2")
    attention_targets = JOINT_ATTENTION
    linear_targets = (*JOINT_ATTENTION, *JOINT_FEED_FORWARD)

    def objective(self, min_snr_gamma: float | None) -> Objective:
        return FlowMatching(
            shift=float(self.scheduler_config().get("shift", 1.0)), timestep_scale=1000.0
        )

    def encode_prompts(self, pipeline: Any, prompts: Sequence[str]) -> Tensors:
        texts = list(prompts)
        embeds, _, pooled, _ = pipeline.encode_prompt(
            texts,
            None,
            None,
            device=pipeline.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_tokens or T5_TOKENS,
        )
        return {"prompt": embeds, "pooled": pooled}

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        config = self.denoiser_config()
        tokens = CLIP_TOKENS + (self.text_tokens or T5_TOKENS)
        return {
            "prompt": (tokens, config["joint_attention_dim"]),
            "pooled": (config["pooled_projection_dim"],),
        }

    def predict(self, denoiser: nn.Module, noised: Noised, rows: Rows) -> torch.Tensor:
        prompt = rows.text["prompt"]
        output: torch.Tensor = denoiser(
            hidden_states=noised.latents.to(prompt.dtype),
            timestep=noised.timestep,
            encoder_hidden_states=prompt,
            pooled_projections=rows.text["pooled"],
            return_dict=False,
        )[0]
        return output
