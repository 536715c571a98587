"""Stable Diffusion 1.5, 2.1 and XL: a U-Net over discrete timesteps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from atelier_training.dreambooth.buckets import View
from atelier_training.dreambooth.families.base import Family, Rows, Tensors
from atelier_training.dreambooth.objectives import Diffusion, Noised, Objective

CLIP_TOKENS = 77


class StableDiffusion(Family):
    denoiser = "unet"
    trainable_encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    attention_targets = ("to_q", "to_k", "to_v", "to_out.0")
    linear_targets = (*attention_targets, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
    supports_min_snr = True

    def objective(self, min_snr_gamma: float | None) -> Objective:
        return Diffusion(self.scheduler_config(), min_snr_gamma)

    def encode_prompts(self, pipeline: Any, prompts: Sequence[str]) -> Tensors:
        embeds, _ = pipeline.encode_prompt(list(prompts), pipeline.text_encoder.device, 1, False)
        return {"prompt": embeds}

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"prompt": (CLIP_TOKENS, self.denoiser_config()["cross_attention_dim"])}

    def predict(self, denoiser: nn.Module, noised: Noised, rows: Rows) -> torch.Tensor:
        prompt = rows.text["prompt"]
        output: torch.Tensor = denoiser(
            noised.latents.to(prompt.dtype),
            noised.timestep,
            encoder_hidden_states=prompt,
            return_dict=False,
        )[0]
        return output


class StableDiffusionXL(StableDiffusion):
    trainable_encoders = ("text_encoder", "text_encoder_2")

    def encode_prompts(self, pipeline: Any, prompts: Sequence[str]) -> Tensors:
        embeds, _, pooled, _ = pipeline.encode_prompt(
            list(prompts), device=pipeline.text_encoder_2.device, do_classifier_free_guidance=False
        )
        return {"prompt": embeds, "pooled": pooled}

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        pooled = self._read("text_encoder_2", "config.json")["projection_dim"]
        return {**super().text_shapes(), "pooled": (pooled,)}

    def size_condition(self, view: View, picture_size: tuple[int, int]) -> tuple[float, ...]:
        """Original height and width, crop top and left, target height and width (arXiv:2307.01952,
        section 2.2)."""
        width, height = picture_size
        return (height, width, view.top, view.left, view.height, view.width)

    def predict(self, denoiser: nn.Module, noised: Noised, rows: Rows) -> torch.Tensor:
        prompt = rows.text["prompt"]
        output: torch.Tensor = denoiser(
            noised.latents.to(prompt.dtype),
            noised.timestep,
            encoder_hidden_states=prompt,
            added_cond_kwargs={
                "text_embeds": rows.text["pooled"],
                "time_ids": rows.sizes.to(prompt.dtype),
            },
            return_dict=False,
        )[0]
        return output
