"""Trains the control for edges of the built-in model: `python -m
atelier.builtin.shapes.train_control --out FILE.safetensors`, one GPU, about three minutes.

The model itself stays as it is. The control is a ControlNet of three blocks without text (as Stable
Diffusion 3.5's are), which reads an outline's latent and adds to the model's blocks. Its
configuration is `edges/config.json`, and FILE goes beside it. Prints the share of held-out cases
whose things lie where the outlines are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from diffusers import (
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Pipeline,
)
from safetensors.torch import save_file
from torch.nn import functional as F

from atelier.builtin.shapes.corpus import PROMPTS_PER_SCENE, make_corpus
from atelier.builtin.shapes.denoiser import Denoiser, noise_levels, zero_counts
from atelier.builtin.shapes.loop import Average, LearningOptions, LearningRun, steps
from atelier.builtin.shapes.outlines import OutlinedCase, keeps_to, outlined_cases, outlines
from atelier.builtin.shapes.rasterizer import paint, place
from atelier.builtin.shapes.train import optimizers_for

MODEL = Path(__file__).parent
CONFIG = MODEL / "edges" / "config.json"
EMA_DECAY = 0.999
UNPROMPTED = 0.1
CHUNK = 1024
GUIDANCE, STEPS = 4.0, 20


def build_control(transformer: torch.nn.Module) -> SD3ControlNetModel:
    """With the model's own embeddings of places and times; it begins without effect."""
    control = SD3ControlNetModel.from_config(json.loads(CONFIG.read_text()))
    for name in ("pos_embed", "time_text_embed"):
        getattr(control, name).load_state_dict(getattr(transformer, name).state_dict())
    return control


@torch.no_grad()
def encoded(
    pipeline: StableDiffusion3Pipeline, codes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of the pictures and of their outlines, (N, 16, 16, 16) bfloat16 each."""
    vae, found = pipeline.vae, []
    for chunk in codes.split(CHUNK):
        layout = place(chunk)[0]
        with torch.autocast(codes.device.type, torch.bfloat16):
            pair = [
                vae.encode(picture).latent_dist.mode().bfloat16()
                for picture in (paint(chunk, layout), outlines(chunk, layout))
            ]
        found.append(pair)
    pictures, hints = (torch.cat(column) for column in zip(*found, strict=True))
    for latents in (pictures, hints):
        latents.sub_(vae.config.shift_factor).mul_(vae.config.scaling_factor)
    return pictures, hints


def train(
    run: LearningRun,
    pipeline: StableDiffusion3Pipeline,
    codes: torch.Tensor,
    tokens: torch.Tensor,
) -> SD3ControlNetModel:
    """The running average of a control that was taught on these scenes."""
    options = run.options
    averaged = build_control(pipeline.transformer).to(options.device)
    control = build_control(pipeline.transformer).to(options.device).train()
    frozen = Denoiser.of(pipeline).for_training().eval().requires_grad_(False)
    latents, hints = encoded(pipeline, codes)
    run.log(stage="latents", scenes=float(len(latents)))
    empty = torch.tensor(
        pipeline.tokenizer("", padding="max_length")["input_ids"], device=options.device
    )
    predict = torch.compile(frozen.velocity) if options.compile else frozen.velocity
    average = Average(list(averaged.parameters()), list(control.parameters()))

    def loss() -> torch.Tensor:
        rows = torch.randint(len(latents), (options.batch,), device=options.device)
        which = torch.randint(PROMPTS_PER_SCENE, (options.batch,), device=options.device)
        silent = torch.rand(options.batch, 1, device=options.device) < UNPROMPTED
        text = torch.where(silent, empty, tokens[rows, which].long())
        picture, hint = latents[rows].float(), hints[rows].float()
        level = noise_levels(options.batch, picture.device)
        noise = torch.randn_like(picture)
        noisy = torch.lerp(picture, noise, level[:, None, None, None])

        def residuals(pooled: torch.Tensor) -> Sequence[torch.Tensor]:
            made: Sequence[torch.Tensor] = control(
                noisy, hint, pooled_projections=pooled, timestep=level * 1000.0, return_dict=False
            )[0]
            return made

        with torch.autocast(options.device, torch.bfloat16, cache_enabled=False):
            zeros = zero_counts(options.batch, picture.device)
            velocity = predict(noisy, level * 1000.0, text, zeros, residuals)
        return F.mse_loss(velocity.float(), noise - picture)

    for used in steps(
        run, "control", options.seconds, 0.0, optimizers_for(control, options.device), loss, average
    ):
        average.decay.fill_(min(EMA_DECAY, 1.0 - 1.0 / (1.0 + 30.0 * used)))
    return averaged.eval()


def share_kept(
    pipeline: StableDiffusion3Pipeline, control: SD3ControlNetModel, cases: Sequence[OutlinedCase]
) -> float:
    """Of cases whose things lie where the outlines are."""
    controlled = StableDiffusion3ControlNetPipeline(**pipeline.components, controlnet=control)
    controlled.set_progress_bar_config(disable=True)
    kept = 0
    for start in range(0, len(cases), 64):
        part = cases[start : start + 64]
        pictures = controlled(
            [case.prompt for case in part],
            control_image=[case.outline for case in part],
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(case.seed) for case in part],
        ).images
        kept += sum(keeps_to(one, case) for one, case in zip(pictures, part, strict=True))
    return kept / len(cases)


def main(options: LearningOptions, out: Path) -> None:
    torch.manual_seed(options.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    run = LearningRun(options)
    with ThreadPoolExecutor(1) as beside:
        corpus = beside.submit(make_corpus, options.scenes, options.seed)
        pipeline = StableDiffusion3Pipeline.from_pretrained(MODEL, dtype=torch.float32)
        pipeline.to(options.device)
        found = corpus.result()
    run.log(stage="corpus", scenes=float(len(found.codes)))
    codes, tokens = (
        torch.from_numpy(one).to(options.device) for one in (found.codes, found.tokens)
    )
    control = train(run, pipeline, codes, tokens)
    weights = {name: one.half().contiguous().cpu() for name, one in control.state_dict().items()}
    save_file(weights, out, metadata={"format": "pt"})
    kept = share_kept(pipeline, control, outlined_cases(options.trial_prompts))
    run.log(stage="score", cases=float(options.trial_prompts), kept=kept)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file for the weights")
    parser.add_argument("--scenes", type=int, default=120_000)
    parser.add_argument("--seconds", type=float, default=110.0)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    main(
        LearningOptions(
            out=given.out.parent,
            scenes=given.scenes,
            vae_seconds=0.0,
            autoencoder=None,
            seconds=given.seconds,
            vae_batch=0,
            batch=given.batch,
            device=given.device,
            compile=given.compile,
            seed=given.seed,
            trial_prompts=given.cases,
        ),
        given.out,
    )
