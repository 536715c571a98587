"""The autoencoder's part of the training: learning it on drawn pictures, and the corpus as its
latents."""

from __future__ import annotations

import random

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from atelier.builtin.shapes.checker import check
from atelier.builtin.shapes.loop import LearningRun, steps
from atelier.builtin.shapes.model import LATENT_CHANNELS, LATENT_SIZE
from atelier.builtin.shapes.muon import Muon
from atelier.builtin.shapes.rasterizer import draw, encode, paint, place
from atelier.builtin.shapes.scene import random_scene

KL_WEIGHT = 5e-5
_SCENES = 20_000  # to draw from; their places are new every time
_CHUNK = 1024


def train_vae(run: LearningRun, vae: AutoencoderKL) -> None:
    """Reconstruction by absolute and squared error, with a light pull of the latents towards a unit
    normal."""
    options = run.options
    rng = random.Random(options.seed)
    rows = [encode(random_scene(rng, held_out=False)) for _ in range(_SCENES)]
    codes = torch.tensor(rows, dtype=torch.uint8, device=options.device)

    def loss() -> torch.Tensor:
        batch = codes[torch.randint(len(codes), (options.vae_batch,), device=options.device)]
        picture = paint(batch, place(batch)[0])
        with torch.autocast(options.device, torch.bfloat16, cache_enabled=False):
            posterior = vae.encode(picture).latent_dist
            restored = vae.decode(posterior.sample()).sample
        difference, mean, logvar = (
            restored.float() - picture,
            posterior.mean.float(),
            posterior.logvar.float(),
        )
        divergence = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        return difference.abs().mean() + difference.square().mean() + KL_WEIGHT * divergence

    kernels = [parameter for parameter in vae.parameters() if parameter.ndim == 4]
    others = [parameter for parameter in vae.parameters() if parameter.ndim != 4]
    optimizers = [
        Muon(kernels, lr=torch.tensor(4e-3, device=options.device), weight_decay=0.0),
        torch.optim.AdamW(
            others,
            lr=torch.tensor(2e-3, device=options.device),
            betas=(0.9, 0.98),
            weight_decay=0.0,
            fused=True,
            capturable=options.device == "cuda",
        ),
    ]
    for _ in steps(run, "vae", options.vae_seconds, 0.0, optimizers, loss):
        pass


@torch.no_grad()
def encode_corpus(
    run: LearningRun, vae: AutoencoderKL, codes: torch.Tensor
) -> tuple[torch.Tensor, float, float]:
    """Latents of every scene (N, 16, 16, 16) bfloat16, brought to mean 0 and deviation 1; the shift
    and the scale."""
    latents = torch.empty(
        len(codes),
        LATENT_CHANNELS,
        LATENT_SIZE,
        LATENT_SIZE,
        dtype=torch.bfloat16,
        device=codes.device,
    )
    for start in range(0, len(codes), _CHUNK):
        chunk = codes[start : start + _CHUNK]
        with torch.autocast(run.options.device, torch.bfloat16):
            latents[start : start + _CHUNK] = vae.encode(
                paint(chunk, place(chunk)[0])
            ).latent_dist.mode()
    sample = latents[:50_000].float()
    shift, scale = float(sample.mean()), float(1.0 / sample.std())
    latents.sub_(shift).mul_(scale)
    return latents, shift, scale


@torch.no_grad()
def round_trip(vae: AutoencoderKL, scenes: int) -> float:
    """Share of drawn pictures that the checker still finds right after encoding and decoding."""
    rng = random.Random(0)
    wanted = [random_scene(rng) for _ in range(scenes)]
    drawn = np.stack([np.asarray(picture) for picture in draw(wanted, seed=0)])
    device = next(vae.parameters()).device
    pictures = torch.from_numpy(drawn).to(device).permute(0, 3, 1, 2) / 127.5 - 1.0
    restored = vae.decode(vae.encode(pictures).latent_dist.mode()).sample.clamp(-1.0, 1.0)
    pixels = ((restored + 1.0) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return (
        sum(bool(check(Image.fromarray(p), scene)) for p, scene in zip(pixels, wanted, strict=True))
        / scenes
    )
