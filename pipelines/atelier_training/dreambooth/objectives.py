"""What the denoiser learns: how a latent is made noisy, what is to be predicted, and how much each
noise level counts.

Two kinds: discrete diffusion (noise or velocity prediction) and flow matching. Pure functions of
tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler


@dataclass(frozen=True)
class Noised:
    """`latents` (B, C, H, W) as the denoiser sees them, `timestep` (B,) in the denoiser's unit,
    `target` (B, C, H, W) and `weight` (B,) of the squared error."""

    latents: torch.Tensor
    timestep: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor


class Objective(ABC):
    @abstractmethod
    def levels(self, rows: int, generator: torch.Generator) -> torch.Tensor:
        """(rows,) noise levels drawn from the training distribution, on the generator's device."""

    @abstractmethod
    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> Noised:
        """Mix `noise` into `latents`, both (B, C, H, W), at `levels` (B,)."""


class Diffusion(Objective):
    """The discrete process of Stable Diffusion 1, 2 and XL; levels are timesteps."""

    def __init__(self, scheduler_config: dict[str, object], min_snr_gamma: float | None) -> None:
        scheduler = DDPMScheduler.from_config(scheduler_config)
        self.prediction = str(scheduler.config["prediction_type"])
        if self.prediction not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"prediction_type {self.prediction!r} is neither epsilon nor v_prediction"
            )
        self.alphas = scheduler.alphas_cumprod.float()
        self.min_snr_gamma = min_snr_gamma

    def levels(self, rows: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randint(
            len(self.alphas), (rows,), generator=generator, device=generator.device
        )

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> Noised:
        alpha = self.alphas.to(levels.device)[levels]
        signal, spread = alpha.sqrt().view(-1, 1, 1, 1), (1 - alpha).sqrt().view(-1, 1, 1, 1)
        noisy = signal * latents + spread * noise
        target = noise if self.prediction == "epsilon" else signal * noise - spread * latents
        return Noised(noisy, levels, target, self._weight(alpha / (1 - alpha)))

    def _weight(self, snr: torch.Tensor) -> torch.Tensor:
        """Min-SNR: min(snr, gamma) on the clean picture's scale, divided by what the prediction
        already weighs."""
        if self.min_snr_gamma is None:
            return torch.ones_like(snr)
        clipped = snr.clamp(max=self.min_snr_gamma)
        return (
            clipped / snr.clamp(min=1e-8) if self.prediction == "epsilon" else clipped / (snr + 1)
        )


class FlowMatching(Objective):
    """The straight path of SD3 and FLUX; levels are sigmas in 0..1, logit-normal as in
    arXiv:2403.03206, section 3.1."""

    def __init__(self, shift: float, timestep_scale: float) -> None:
        self.shift = shift
        self.timestep_scale = timestep_scale

    def levels(self, rows: int, generator: torch.Generator) -> torch.Tensor:
        sigma = torch.randn(rows, generator=generator, device=generator.device).sigmoid()
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> Noised:
        sigma = levels.view(-1, 1, 1, 1)
        noisy = (1 - sigma) * latents + sigma * noise
        return Noised(noisy, levels * self.timestep_scale, noise - latents, torch.ones_like(levels))
