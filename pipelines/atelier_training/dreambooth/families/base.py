"""What the training loop asks of a model family."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import nn

from atelier_training.dreambooth.buckets import View
from atelier_training.dreambooth.objectives import Noised, Objective
from atelier_training.dreambooth.options import TrainOptions

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Rows:
    """A batch of equal shape: clean latents and noise (B, C, H, W), levels (B,), conditions with B
    rows each."""

    latents: torch.Tensor
    noise: torch.Tensor
    levels: torch.Tensor
    text: Tensors
    sizes: torch.Tensor


class Family(ABC):
    """Bound to one checkpoint folder; holds no weights."""

    denoiser: ClassVar[str]
    trainable_encoders: ClassVar[tuple[str, ...]]
    attention_targets: ClassVar[tuple[str, ...]]
    linear_targets: ClassVar[tuple[str, ...]]
    supports_min_snr: ClassVar[bool] = False
    trains_with_cudnn_attention: ClassVar[bool] = True

    text_tokens: int | None = None
    """Tokens of the T5 encoder, for families that have one; None: the pipeline's default."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self.index: dict[str, Any] = json.loads((model / "model_index.json").read_text())

    @property
    def components(self) -> list[str]:
        """Names of the checkpoint's components that are present."""
        return [
            n
            for n, v in self.index.items()
            if isinstance(v, list) and v[0] is not None and not n.startswith("_")
        ]

    @property
    def text_parts(self) -> list[str]:
        return [name for name in self.components if name.startswith(("text_encoder", "tokenizer"))]

    def load(self, parts: Sequence[str], dtype: torch.dtype, **options: Any) -> Any:
        """The checkpoint's pipeline with only `parts` (and the scheduler) loaded, on the CPU, in
        eval mode."""
        left_out: dict[str, Any] = {
            name: None for name in self.components if name not in parts and name != "scheduler"
        }
        pipeline = DiffusionPipeline.from_pretrained(
            self.model, dtype=dtype, use_safetensors=True, **left_out, **options
        )
        pipeline.set_progress_bar_config(disable=True)
        for module in pipeline.components.values():
            if isinstance(module, nn.Module):
                module.requires_grad_(False).eval()
        return pipeline

    def scheduler_config(self) -> dict[str, Any]:
        return self._read("scheduler", "scheduler_config.json")

    def denoiser_config(self) -> dict[str, Any]:
        return self._read(self.denoiser, "config.json")

    def _read(self, component: str, name: str) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((self.model / component / name).read_text())
        return config

    def targets(self, options: TrainOptions) -> list[str]:
        """Name endings of the layers that get an adapter."""
        return list(
            self.attention_targets if options.targets == "attention" else self.linear_targets
        )

    @abstractmethod
    def objective(self, min_snr_gamma: float | None) -> Objective:
        """How this checkpoint is noised."""

    @abstractmethod
    def encode_prompts(self, pipeline: Any, prompts: Sequence[str]) -> Tensors:
        """Conditions of `prompts`, one row each; differentiable with respect to the text
        encoders."""

    @abstractmethod
    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one row of each tensor that `encode_prompts` gives, from the configuration
        alone."""

    @abstractmethod
    def predict(self, denoiser: nn.Module, noised: Noised, rows: Rows) -> torch.Tensor:
        """The denoiser's prediction, (B, C, H, W)."""

    def encode_picture(self, vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of the latents of `pixels` (B, 3, H, W) in -1..1, in the denoiser's
        scale."""
        posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        scale = vae.config.scaling_factor
        return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale

    def size_condition(self, view: View, picture_size: tuple[int, int]) -> tuple[float, ...]:
        """Numbers that tell the denoiser of the original size and crop; none unless the family has
        them."""
        return ()

    def losses(
        self,
        denoiser: nn.Module,
        objective: Objective,
        rows: Rows,
        target: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B,) weighted mean squared errors, float32; `target` (B, C, H, W) replaces the
        objective's own."""
        noised = objective.add_noise(rows.latents, rows.noise, rows.levels)
        predicted = self.predict(denoiser, noised, rows)
        wanted = noised.target if target is None else target
        return noised.weight * (predicted.float() - wanted.float()).square().flatten(1).mean(1)
