"""Trains the built-in model from nothing: `python -m atelier.builtin.shapes.train --out FOLDER`,
one GPU, a quarter of an hour.

Stages: the autoencoder on drawn pictures while the corpus is made, all pictures as latents, then
transformer and text encoders together. Each training stage is given seconds and its learning rate
follows them; a stopped run goes on from FOLDER/state.pt. Writes FOLDER/checkpoint (a diffusers
folder in float16) and FOLDER/log.jsonl.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline

from atelier.builtin.shapes.autoencoder import encode_corpus, round_trip, train_vae
from atelier.builtin.shapes.checker import check
from atelier.builtin.shapes.corpus import PROMPTS_PER_SCENE, make_corpus
from atelier.builtin.shapes.denoiser import Denoiser
from atelier.builtin.shapes.evaluate import held_out_cases, make_pictures, score
from atelier.builtin.shapes.loop import Average, LearningOptions, LearningRun, steps
from atelier.builtin.shapes.model import build_pipeline, save_checkpoint
from atelier.builtin.shapes.muon import Muon

EMA_DECAY = 0.9995
UNPROMPTED = 0.1  # share of samples that train the empty prompt, for guidance
CHECKPOINT_EVERY = 100.0  # seconds


def optimizers_for(module: torch.nn.Module, device: str) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, biases, norms and the outer
    layers."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in module.named_parameters():
        inside = "transformer_blocks." in name or "encoder.layers." in name
        (matrices if inside and parameter.ndim == 2 else others).append(parameter)
    rates = [torch.tensor(rate, device=device) for rate in (2e-3, 1e-3)]
    return [
        Muon(matrices, lr=rates[0]),
        torch.optim.AdamW(
            others,
            lr=rates[1],
            betas=(0.9, 0.98),
            weight_decay=0.0,
            fused=True,
            capturable=device == "cuda",
        ),
    ]


def train_denoiser(
    run: LearningRun,
    pipeline: StableDiffusion3Pipeline,
    latents: torch.Tensor,
    tokens: torch.Tensor,
) -> None:
    """Trains a copy of the pipeline's parts; the pipeline itself holds their running average."""
    options = run.options
    averaged = Denoiser.of(pipeline)
    denoiser = averaged.for_training()
    optimizers = optimizers_for(denoiser, options.device)
    if "denoiser" in run.state:
        denoiser.load_state_dict(run.state["denoiser"])
    if "optimizers" in run.state:
        for optimizer, state in zip(optimizers, run.state["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    if options.compile:
        denoiser.compile()
    average = Average(list(averaged.parameters()), list(denoiser.parameters()))
    empty = torch.tensor(
        pipeline.tokenizer("", padding="max_length")["input_ids"], device=options.device
    )

    def loss() -> torch.Tensor:
        rows = torch.randint(len(latents), (options.batch,), device=options.device)
        which = torch.randint(PROMPTS_PER_SCENE, (options.batch,), device=options.device)
        unprompted = torch.rand(options.batch, 1, device=options.device) < UNPROMPTED
        text = torch.where(unprompted, empty, tokens[rows, which].long())
        with torch.autocast(options.device, torch.bfloat16, cache_enabled=False):
            return denoiser(latents[rows].float(), text)

    used = begun = checkpointed = run.state.get("seconds", 0.0)
    for used in steps(run, "denoiser", options.seconds, begun, optimizers, loss, average):
        # At first the average follows closely, so that it forgets the random weights.
        average.decay.fill_(min(EMA_DECAY, 1.0 - 1.0 / (1.0 + 30.0 * used)))
        if used - checkpointed > CHECKPOINT_EVERY:
            checkpointed = used
            states = [optimizer.state_dict() for optimizer in optimizers]
            run.save(
                denoiser=denoiser.state_dict(),
                average=averaged.state_dict(),
                optimizers=states,
                seconds=used,
            )
            try_out(run, pipeline, used)
    run.save(denoiser=denoiser.state_dict(), average=averaged.state_dict(), seconds=used)


def try_out(run: LearningRun, pipeline: StableDiffusion3Pipeline, used: float) -> None:
    """A point on the card's curve: the score on a few held-out prompts."""
    cases = held_out_cases(run.options.trial_prompts, seed=7)
    pictures = make_pictures(pipeline, cases, 20, 4.0, batch=512, zeros=256)
    verdicts = [check(picture, case.scene) for picture, case in zip(pictures, cases, strict=True)]
    run.log(stage="score", seconds=used, **score(cases, verdicts, 20, 4.0).aspects)


def main(options: LearningOptions) -> None:
    torch.manual_seed(options.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        torch.backends.cudnn.benchmark
    ) = True
    run = LearningRun(options)
    with ThreadPoolExecutor(1) as beside:
        corpus = beside.submit(make_corpus, options.scenes, options.seed)
        pipeline = build_pipeline().to(options.device)
        pipeline.set_progress_bar_config(disable=True)
        if options.autoencoder:
            weights = AutoencoderKL.from_pretrained(options.autoencoder).state_dict()
            run.state["vae"] = {name: tensor.float() for name, tensor in weights.items()}
        elif "vae" not in run.state:
            train_vae(run, pipeline.vae)
            run.save(vae=pipeline.vae.state_dict())
        pipeline.vae.load_state_dict(run.state["vae"])
        run.log(stage="round trip", right=round_trip(pipeline.vae, 100))
        codes, tokens = (
            torch.from_numpy(a).to(options.device)
            for a in (corpus.result().codes, corpus.result().tokens)
        )
    latents, shift, scale = encode_corpus(run, pipeline.vae, codes)
    pipeline.vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    run.log(stage="latents", shift=shift, scale=scale)
    if "average" in run.state:
        Denoiser.of(pipeline).load_state_dict(run.state["average"])
    train_denoiser(run, pipeline, latents, tokens)
    try_out(run, pipeline, run.state["seconds"])
    save_checkpoint(pipeline, options.out / "checkpoint")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=600_000)
    parser.add_argument("--vae-seconds", type=float, default=110.0)
    parser.add_argument(
        "--autoencoder", type=Path, help="folder of a trained one, to be taken as it is"
    )
    parser.add_argument(
        "--seconds", type=float, default=900.0, help="for the transformer and the text encoders"
    )
    parser.add_argument("--vae-batch", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trial-prompts", type=int, default=96)
    main(LearningOptions(**vars(parser.parse_args())))
