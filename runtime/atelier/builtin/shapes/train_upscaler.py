"""Trains the upscaler of the built-in model's pictures: `python -m
atelier.builtin.shapes.train_upscaler --out FILE.safetensors`, one core, about five minutes.

It learns from crops at the outlines of drawn scenes, half of which went through the model's
autoencoder. Everything is drawn from the seed and computed by one thread, so that a second run on
the same machine gives the same file. `evaluate_upscaler` judges it.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F

from atelier.builtin.shapes.enlarger import build_network, enlarge, save_network
from atelier.builtin.shapes.loop import learning_rate
from atelier.builtin.shapes.muon import Muon
from atelier.builtin.shapes.rasterizer import encode, place
from atelier.builtin.shapes.resolution import SCALE, in_two_sizes
from atelier.builtin.shapes.scene import random_scene

VAE = Path(__file__).parent / "vae"
CROP = 48  # pixels of the small picture
CROPS = 4  # of a scene
CHUNK = 16
KERNEL_RATE, RATE = 4e-3, 2e-3
OUTLINE = 24  # grey levels between neighbours
LOG_EVERY = 100


@dataclass(frozen=True)
class UpscalerOptions:
    scenes: int
    steps: int
    batch: int
    seed: int


def at_outlines(
    small: torch.Tensor, large: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one picture in both sizes, (3, height, width) each: `CROPS` crops that an outline runs
    through. Most of a picture is flat, and there is nothing to learn there."""
    levels = small.float()[None]
    edge = F.max_pool2d(levels, 3, 1, 1) + F.max_pool2d(-levels, 3, 1, 1)
    places = (edge.amax(1)[0] > OUTLINE).nonzero()
    chosen = places[torch.randint(len(places), (CROPS,), generator=generator)]
    within = torch.randint(CROP, (CROPS, 2), generator=generator)
    begins = (chosen - within).clamp(min=0, max=small.shape[-1] - CROP)

    def cut(picture: torch.Tensor, scale: int) -> torch.Tensor:
        side = CROP * scale
        return torch.stack(
            [picture[:, y : y + side, x : x + side] for y, x in (begins * scale).tolist()]
        )

    return cut(small, 1), cut(large, SCALE)


def make_crops(options: UpscalerOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops in both sizes, uint8, of scenes on the training side of the split."""
    rng = random.Random(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    vae = AutoencoderKL.from_pretrained(VAE)
    pairs = []
    for start in range(0, options.scenes, CHUNK):
        count = min(CHUNK, options.scenes - start)
        codes = torch.tensor([encode(random_scene(rng, held_out=False)) for _ in range(count)])
        layout, found = place(codes, generator)
        through = vae if start // CHUNK % 2 else None
        small, large = in_two_sizes(codes[found], layout[found], through)
        pairs += [at_outlines(*pair, generator) for pair in zip(small, large, strict=True)]
    small, large = (torch.cat(column) for column in zip(*pairs, strict=True))
    return small, large


def turned(rows: torch.Tensor, how: int) -> torch.Tensor:
    """One of the eight ways in which a square can lie."""
    rows = torch.rot90(rows, how % 4, (-2, -1))
    return rows.flip(-1) if how >= 4 else rows


def optimizers_for(network: nn.Sequential) -> list[torch.optim.Optimizer]:
    """Muon for the kernels inside, Adam for the last, the slopes and the biases."""
    kernels = [one for one in network[:-1].parameters() if one.ndim == 4]
    others = [one for one in network.parameters() if one.ndim < 4]
    return [
        Muon(kernels, lr=torch.tensor(KERNEL_RATE), weight_decay=0.0),
        torch.optim.Adam(
            [*others, network.get_parameter(f"{len(network) - 1}.weight")],
            lr=torch.tensor(RATE),
            betas=(0.9, 0.99),
        ),
    ]


def train(options: UpscalerOptions, small: torch.Tensor, large: torch.Tensor) -> nn.Sequential:
    """A network that was taught to make `large` of `small`."""
    torch.manual_seed(options.seed)
    network = build_network().train()
    optimizers = optimizers_for(network)
    peaks = [float(one.param_groups[0]["lr"]) for one in optimizers]
    begun, total = time.monotonic(), 0.0
    for step in range(options.steps):
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            rate = peak * learning_rate((step + 1) / options.steps)
            optimizer.param_groups[0]["lr"] = torch.tensor(rate)
        rows = torch.randint(len(small), (options.batch,))
        how = int(torch.randint(8, ()))
        given, wanted = (turned(one[rows], how).float() / 255.0 for one in (small, large))
        # The mean of absolute differences is least where most pixels stay as they are: it taught
        # nothing.
        loss = F.mse_loss(enlarge(network, given), wanted)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        total += loss.item()
        if (step + 1) % LOG_EVERY == 0:
            seconds = round(time.monotonic() - begun, 1)
            told = {"step": step + 1, "seconds": seconds, "loss": round(total / LOG_EVERY, 7)}
            print(json.dumps(told), flush=True)
            total = 0.0
    return network.eval()


def main(options: UpscalerOptions, out: Path) -> None:
    torch.set_num_threads(1)
    begun = time.monotonic()
    small, large = make_crops(options)
    print(json.dumps({"crops": len(small), "seconds": round(time.monotonic() - begun, 1)}))
    save_network(train(options, small, large), out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file for the weights")
    parser.add_argument("--scenes", type=int, default=800)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    main(UpscalerOptions(given.scenes, given.steps, given.batch, given.seed), given.out)
