"""Previews: a small picture from unfinished latents, by a linear map that is learned from the
pictures the model finishes.

A VAE's decoder is close to linear at low resolution, so a least-squares fit from a latent's
channels to the patch of pixels below it gives a recognisable picture for the cost of one small
matrix product. Every finished picture adds to the fit; the first is drawn while the model warms up.
So no table of families is needed, and a fine-tuned VAE is followed.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import torch
from torch.nn import functional

PATCH = 4  # preview pixels along one side of a latent
SAMPLES = 1024  # latents of a picture that enter the fit
RIDGE = 1e-3  # of the mean variance of a channel: keeps the fit sane while few pictures were seen


class LatentPreview:
    """The running least-squares fit of one model. One thread learns, another may draw."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gram: torch.Tensor | None = None
        self._moment: torch.Tensor | None = None
        self._map: torch.Tensor | None = None

    @property
    def known(self) -> bool:
        """True once a picture was seen."""
        return self._gram is not None

    def learn(self, latents: torch.Tensor, picture: torch.Tensor) -> None:
        """Add a finished picture: its last latents (of one picture) and its pixels, 3 x height x
        width in 0..1."""
        cells = _grid(latents, picture.shape[-2] / picture.shape[-1])
        if cells is None:
            return
        rows, columns, _ = cells.shape
        small = functional.interpolate(
            picture[None].float(), (rows * PATCH, columns * PATCH), mode="area"
        ).cpu()
        target = functional.unfold(small, PATCH, stride=PATCH)[
            0
        ].T  # (rows * columns) x (3 * PATCH * PATCH)
        features = _with_bias(cells.reshape(rows * columns, -1))
        if len(features) > SAMPLES:
            picked = torch.linspace(0, len(features) - 1, SAMPLES).long()
            features, target = features[picked], target[picked]
        gram, moment = features.T @ features, features.T @ target
        if self._gram is None or self._moment is None or self._gram.shape != gram.shape:
            self._gram, self._moment = torch.zeros_like(gram), torch.zeros_like(moment)
        with self._lock:
            self._gram += gram
            self._moment += moment
            self._map = None

    def draw(self, latents: torch.Tensor, aspect: float) -> torch.Tensor | None:
        """The preview, height x width x 3 in uint8 on the CPU; None if no picture was seen or the
        latents have no grid.

        Args:
            latents: of one picture: channels x rows x columns, or tokens x channels as FLUX packs
                them.
            aspect: height / width of the picture.
        """
        cells = _grid(latents, aspect)
        if (
            cells is None
            or self._gram is None
            or self._moment is None
            or cells.shape[-1] + 1 != len(self._gram)
        ):
            return None
        with self._lock:
            if self._map is None:
                ridge = RIDGE * self._gram.diagonal().mean() * torch.eye(len(self._gram))
                self._map = torch.linalg.solve(self._gram + ridge, self._moment)
            linear = self._map
        rows, columns, _ = cells.shape
        patches = (_with_bias(cells.reshape(rows * columns, -1)) @ linear).T[None]
        pixels = functional.fold(patches, (rows * PATCH, columns * PATCH), PATCH, stride=PATCH)[0]
        return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()


def clean_estimate(scheduler: Any, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Where an Euler step leads when followed to the end: x0 = x - sigma * (x' - x) / (sigma' -
    sigma).

    Other schedulers' latents are returned as they are: noisy at first, the picture at last.
    """
    index = getattr(scheduler, "step_index", None)
    if "Euler" not in type(scheduler).__name__ or not index or index >= len(scheduler.sigmas):
        return after
    sigma, following = float(scheduler.sigmas[index - 1]), float(scheduler.sigmas[index])
    return before - sigma * (after - before) / (following - sigma) if following < sigma else after


def _grid(latents: torch.Tensor, aspect: float) -> torch.Tensor | None:
    """Latents as rows x columns x channels, float32 on the CPU."""
    values = latents.detach().float().cpu()
    if (
        values.dim() == 4 and 1 in values.shape[:2]
    ):  # video models: one frame before or after the channels
        values = values.squeeze(0) if values.shape[0] == 1 else values.squeeze(1)
    if values.dim() == 3:
        return values.permute(1, 2, 0)
    if values.dim() != 2:
        return None
    tokens = len(values)
    rows = max(1, round(math.sqrt(tokens * aspect)))
    return values.reshape(rows, tokens // rows, -1) if tokens % rows == 0 else None


def _with_bias(features: torch.Tensor) -> torch.Tensor:
    return torch.cat([features, torch.ones(len(features), 1)], dim=1)
