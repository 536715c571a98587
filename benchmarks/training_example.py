"""The yardstick of `training`: the loop of diffusers' Dreambooth LoRA examples in their default
setting, written anew.

What it does as they do: text embeddings computed once and text encoders freed; the VAE stays on the
device in float32 and encodes every batch; pictures are opened and cropped by a loader at every
step; adapter weights are float32 and the forward pass runs under autocast; AdamW in its plain form;
the loss is read at every step. The model is the same object as ours.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from PIL import Image
from torch.utils.data import DataLoader

from atelier_training.dreambooth.buckets import View
from atelier_training.dreambooth.cache import to_tensor
from atelier_training.dreambooth.families import Family, Rows


def run_example(
    family: Family,
    pipeline: Any,
    pictures: list[Image.Image],
    device: torch.device,
    dtype: torch.dtype,
    side: int,
    batch: int,
    rank: int,
    steps: int,
    warm_up: int,
) -> tuple[float, float]:
    """Steps per second after `warm_up` steps, and seconds of the first."""
    denoiser, vae = getattr(pipeline, family.denoiser), pipeline.vae.to(device, torch.float32)
    denoiser.requires_grad_(False).to(device)
    vae.requires_grad_(False)
    denoiser.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=rank,
            init_lora_weights="gaussian",
            target_modules=list(family.attention_targets),
        )
    )
    cast_training_params(denoiser, dtype=torch.float32)
    denoiser.train()
    trained = [p for p in denoiser.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-4, eps=1e-8)
    rate = get_scheduler("constant", optimizer, num_warmup_steps=500)
    objective = family.objective(None)
    text = {
        n: torch.randn(1, *shape, device=device, dtype=dtype)
        for n, shape in family.text_shapes().items()
    }
    view = View(0, side, side, 0, 0, side, side, False)
    sizes = torch.tensor(family.size_condition(view, (side, side)), device=device).expand(batch, -1)
    generator = torch.Generator("cpu").manual_seed(0)
    loader = DataLoader(
        range(10**6), batch_size=batch, collate_fn=lambda rows: _read(rows, pictures, view)
    )
    began, first = time.perf_counter(), 0.0
    for step, pixels in zip(range(steps + warm_up), loader, strict=False):
        if step == warm_up:
            began = time.perf_counter()
        with torch.no_grad():
            posterior = vae.encode(pixels.to(device)).latent_dist
            shift = getattr(vae.config, "shift_factor", None) or 0.0
            latents = ((posterior.sample() - shift) * vae.config.scaling_factor).to(dtype)
        levels = objective.levels(batch, generator).to(device)
        rows = Rows(
            latents,
            torch.randn_like(latents),
            levels,
            {n: v.expand(batch, *v.shape[1:]) for n, v in text.items()},
            sizes,
        )
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = family.losses(denoiser, objective, rows).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        loss.detach().item()
        if step == 0:
            first = time.perf_counter() - began
    return steps / (time.perf_counter() - began), first


def _read(rows: list[int], pictures: list[Image.Image], view: View) -> torch.Tensor:
    return torch.cat([to_tensor(view.cut(pictures[row % len(pictures)])) for row in rows])
