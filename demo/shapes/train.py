"""Trains the built-in model from nothing: `python -m demo.shapes.train --out FOLDER`, one GPU, a quarter of an hour.

Stages: the corpus, the autoencoder on drawn pictures, all pictures as latents, then transformer and text encoders
together. Each training stage is given seconds and its learning rate follows them; a stopped run goes on from
FOLDER/state.pt. Writes FOLDER/checkpoint (a diffusers folder in float16) and FOLDER/log.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline

from demo.shapes.checker import check
from demo.shapes.corpus import PROMPTS_PER_SCENE, Corpus, make_corpus
from demo.shapes.denoiser import Denoiser
from demo.shapes.draw import paint, place
from demo.shapes.evaluate import held_out_cases, make_pictures, score
from demo.shapes.model import LATENT_CHANNELS, LATENT_SIZE, build_pipeline
from demo.shapes.muon import Muon

KL_WEIGHT = 5e-4
EMA_DECAY = 0.9995
UNPROMPTED = 0.1  # share of samples that train the empty prompt, for guidance
CHECKPOINT_EVERY = 75.0  # seconds


@dataclass(frozen=True)
class Options:
    out: Path
    scenes: int
    vae_seconds: float
    seconds: float
    vae_batch: int
    batch: int
    device: str
    compile: bool
    seed: int
    trial_prompts: int


class Run:
    """The folder of a run: its log, and the state that a stopped run goes on from."""

    def __init__(self, options: Options) -> None:
        self.options = options
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / "state.pt"
        self.state: dict[str, Any] = torch.load(path, map_location=options.device) if path.exists() else {}

    def log(self, **values: float | str) -> None:
        line = json.dumps({key: round(v, 6) if isinstance(v, float) else v for key, v in values.items()})
        print(line, flush=True)
        with (self.options.out / "log.jsonl").open("a") as log:
            log.write(line + "\n")

    def save(self, **entries: Any) -> None:
        self.state.update(entries)
        part = self.options.out / "state.part"
        torch.save(self.state, part)
        part.replace(self.options.out / "state.pt")


def learning_rate(progress: float) -> float:
    """Share of the peak rate at `progress` in 0..1: a short warm-up, a plateau, then straight down to nothing."""
    return min(1.0, progress / 0.02, max(0.0, 1.0 - progress) / 0.45)


def steps(
    run: Run,
    stage: str,
    seconds: float,
    used: float,
    optimizers: list[torch.optim.Optimizer],
    loss: Callable[[], torch.Tensor],
) -> Iterator[float]:
    """One optimisation step of `loss` per item, until `seconds` are used, of which `used` are already; yields them."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    begun, count, total = time.monotonic() - used, 0, torch.zeros((), device=run.options.device)
    while (used := time.monotonic() - begun) < seconds:
        for group in groups:
            group["lr"] = group.setdefault("peak", group["lr"]) * learning_rate(used / seconds)
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        total += value.detach()
        count += 1
        if count % 100 == 0:
            run.log(stage=stage, step=count, seconds=used, loss=float(total) / 100)
            total.zero_()
        yield used


def pictures(codes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Freshly placed pictures of scenes `codes`."""
    layout, _ = place(codes, generator)
    return paint(codes, layout)


def train_vae(run: Run, vae: AutoencoderKL, codes: torch.Tensor) -> None:
    """Reconstruction by absolute and squared error, with a light pull of the latents towards a unit normal."""
    options = run.options
    generator = torch.Generator(options.device).manual_seed(options.seed)
    vae.to(memory_format=torch.channels_last)

    def loss() -> torch.Tensor:
        rows = torch.randint(len(codes), (options.vae_batch,), device=options.device)
        picture = pictures(codes[rows], generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast(options.device, torch.bfloat16):
            posterior = vae.encode(picture).latent_dist
            restored = vae.decode(posterior.sample()).sample
        difference, mean, logvar = restored.float() - picture, posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        return difference.abs().mean() + difference.square().mean() + KL_WEIGHT * divergence

    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0)
    for _ in steps(run, "vae", options.vae_seconds, 0.0, [optimizer], loss):
        pass


@torch.no_grad()
def encode_corpus(run: Run, vae: AutoencoderKL, codes: torch.Tensor) -> tuple[torch.Tensor, float, float]:
    """Latents of every scene (N, 16, 16, 16) bfloat16, brought to mean 0 and deviation 1; the shift and the scale."""
    latents = torch.empty(
        len(codes), LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE, dtype=torch.bfloat16, device=codes.device
    )
    generator = torch.Generator(run.options.device).manual_seed(run.options.seed + 1)
    for start in range(0, len(codes), 2048):
        with torch.autocast(run.options.device, torch.bfloat16):
            encoded = vae.encode(pictures(codes[start : start + 2048], generator)).latent_dist.mode()
        latents[start : start + 2048] = encoded
    sample = latents[:50_000].float()
    shift, scale = float(sample.mean()), float(1.0 / sample.std())
    latents.sub_(shift).mul_(scale)
    return latents, shift, scale


def optimizers_for(denoiser: Denoiser) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, biases, norms and the outer layers."""
    matrices, others = [], []
    for name, parameter in denoiser.named_parameters():
        inside = "transformer_blocks." in name or "encoder.layers." in name
        (matrices if inside and parameter.ndim == 2 else others).append(parameter)
    return [Muon(matrices, lr=2e-3), torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)]


def train_denoiser(run: Run, pipeline: StableDiffusion3Pipeline, latents: torch.Tensor, tokens: torch.Tensor) -> None:
    """Trains in place a copy of the pipeline's parts; the pipeline itself holds their running average."""
    options = run.options
    average = Denoiser.of(pipeline)
    denoiser = average.for_training()
    optimizers = optimizers_for(denoiser)
    if "denoiser" in run.state:
        denoiser.load_state_dict(run.state["denoiser"])
    if "optimizers" in run.state:
        for optimizer, state in zip(optimizers, run.state["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    if options.compile:
        for block in denoiser.transformer.transformer_blocks:
            block.compile()
    empty = torch.tensor(pipeline.tokenizer("", padding="max_length")["input_ids"], device=options.device)
    sources, targets = list(denoiser.parameters()), list(average.parameters())

    def loss() -> torch.Tensor:
        rows = torch.randint(len(latents), (options.batch,), device=options.device)
        which = torch.randint(PROMPTS_PER_SCENE, (options.batch,), device=options.device)
        unprompted = torch.rand(options.batch, 1, device=options.device) < UNPROMPTED
        text = torch.where(unprompted, empty, tokens[rows, which].long())
        with torch.autocast(options.device, torch.bfloat16):
            return denoiser(latents[rows].float(), text)

    used = begun = checkpointed = run.state.get("seconds", 0.0)
    for used in steps(run, "denoiser", options.seconds, begun, optimizers, loss):
        decay = min(EMA_DECAY, 1.0 - 1.0 / (1.0 + 30.0 * used))  # the average forgets its first steps
        with torch.no_grad():
            torch._foreach_lerp_(targets, sources, 1.0 - decay)
        if used - checkpointed > CHECKPOINT_EVERY:
            checkpointed = used
            states = [optimizer.state_dict() for optimizer in optimizers]
            run.save(denoiser=denoiser.state_dict(), average=average.state_dict(), optimizers=states, seconds=used)
            try_out(run, pipeline, used)
    run.save(denoiser=denoiser.state_dict(), average=average.state_dict(), seconds=used)


def try_out(run: Run, pipeline: StableDiffusion3Pipeline, used: float) -> None:
    """A point on the card's curve: the score on a few held-out prompts."""
    cases = held_out_cases(run.options.trial_prompts, seed=7)
    verdicts = [check(p, c.scene) for p, c in zip(make_pictures(pipeline, cases, 20, 4.0, 512), cases, strict=True)]
    run.log(stage="score", seconds=used, **score(cases, verdicts, 20, 4.0).aspects)


def main(options: Options) -> None:
    torch.manual_seed(options.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    run = Run(options)
    begun = time.monotonic()
    corpus: Corpus = make_corpus(options.scenes, options.seed)
    codes, tokens = (torch.from_numpy(a).to(options.device) for a in (corpus.codes, corpus.tokens))
    run.log(stage="corpus", scenes=len(codes), seconds=time.monotonic() - begun)
    pipeline = build_pipeline().to(options.device)
    pipeline.set_progress_bar_config(disable=True)
    if "vae" not in run.state:
        train_vae(run, pipeline.vae, codes)
        run.save(vae=pipeline.vae.state_dict())
    pipeline.vae.load_state_dict(run.state["vae"])
    latents, shift, scale = encode_corpus(run, pipeline.vae, codes)
    pipeline.vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    run.log(stage="latents", seconds=time.monotonic() - begun, shift=shift, scale=scale)
    if "average" in run.state:
        Denoiser.of(pipeline).load_state_dict(run.state["average"])
    train_denoiser(run, pipeline, latents, tokens)
    try_out(run, pipeline, run.state["seconds"])
    pipeline.to("cpu", torch.float16).save_pretrained(options.out / "checkpoint")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=1_000_000)
    parser.add_argument("--vae-seconds", type=float, default=90.0)
    parser.add_argument("--seconds", type=float, default=600.0, help="for the transformer and the text encoders")
    parser.add_argument("--vae-batch", type=int, default=192)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trial-prompts", type=int, default=240)
    main(Options(**vars(parser.parse_args())))
