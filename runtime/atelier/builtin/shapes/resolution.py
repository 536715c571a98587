"""Scenes in two resolutions, what the upscaler learns from and is judged by.

The large picture is painted; the small one is it with every four pixels as one, or what the model's
autoencoder gives back of that: the faults of its decoder are in everything that the model draws.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch.nn import functional as F

from atelier.builtin.shapes.rasterizer import PIXELS, encode, paint, place
from atelier.builtin.shapes.scene import Scene, random_scene

SCALE = 2


@torch.no_grad()
def in_two_sizes(
    codes: torch.Tensor, layout: torch.Tensor, vae: AutoencoderKL | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of `codes` at `layout` as `rasterizer.paint` takes them, (N, 3, 128, 128) and
    (N, 3, 256, 256) uint8; the small ones as `vae` gives them back, if there is one."""
    large = paint(codes, layout, SCALE * PIXELS)
    small = F.avg_pool2d(large, SCALE)
    if vae is not None:
        small = vae.decode(vae.encode(small).latent_dist.mode()).sample.clamp(-1.0, 1.0)
    small, large = (((one + 1.0) * 127.5).round().byte() for one in (small, large))
    return small, large


@dataclass(frozen=True)
class SizedCase:
    """A scene, its picture in both sizes."""

    scene: Scene
    small: Image.Image
    large: Image.Image


def sized_cases(count: int, seed: int = 2026, vae: AutoencoderKL | None = None) -> list[SizedCase]:
    """Cases of combinations that training never saw, with one, two and three things in turn."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    cases: list[SizedCase] = []
    while len(cases) < count:
        scene = random_scene(rng, count=1 + len(cases) % 3, held_out=True)
        codes = torch.tensor([encode(scene)])
        layout, found = place(codes, generator)
        if bool(found):
            small, large = (
                Image.fromarray(one[0].permute(1, 2, 0).numpy())
                for one in in_two_sizes(codes, layout, vae)
            )
            cases.append(SizedCase(scene, small, large))
    return cases


def psnr(made: Image.Image, wanted: Image.Image) -> float:
    """How near a picture is to another of its size, in decibels: the peak signal-to-noise ratio
    over all channels, infinite for the same picture."""
    difference = np.asarray(made, dtype=np.float64) - np.asarray(wanted, dtype=np.float64)
    error = float((difference**2).mean())
    return 10.0 * math.log10(255.0**2 / error) if error else math.inf
