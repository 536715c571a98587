"""Trains a subject into a checkpoint: checks everything, computes what is constant, runs, writes
the result.

`train(options)` is the whole; the command line, the pipeline's step and the notebooks call nothing
else.
"""

from __future__ import annotations

import gc
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from atelier_training.dreambooth.adaptation import (
    Trainee,
    build_trainee,
    check_support,
    save_adapter,
    save_pipeline,
)
from atelier_training.dreambooth.cache import build_cache
from atelier_training.dreambooth.card import write_card
from atelier_training.dreambooth.checkpoints import Checkpoints
from atelier_training.dreambooth.data import TrainingPicture, data_hash, read_subject, require_space
from atelier_training.dreambooth.errors import OptionError
from atelier_training.dreambooth.families import Family, family_of
from atelier_training.dreambooth.journal import Journal, peak_bytes, quiet_libraries
from atelier_training.dreambooth.memory import MemoryEstimate, require_memory
from atelier_training.dreambooth.options import TrainOptions
from atelier_training.dreambooth.prior import ensure_class_pictures
from atelier_training.dreambooth.run import TrainingRun
from atelier_training.dreambooth.samples import Style, Wish, draw

LAUNCHERS_SHARDING = (
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM",
)
"""Variables by which `accelerate launch` asks for a model in pieces."""


@dataclass(frozen=True)
class Result:
    """What a run left: the adapter file or pipeline folder, steps done, and what it took."""

    path: Path
    steps: int
    trained_parameters: int
    seconds: float
    peak_bytes: int

    def summary(self) -> dict[str, float]:
        """The figures, rounded for people."""
        return {
            "steps": self.steps,
            "trained_parameters": self.trained_parameters,
            "seconds": round(self.seconds, 1),
            "peak_gib": round(self.peak_bytes / 2**30, 3),
        }


@dataclass(frozen=True)
class TrainingJob:
    """Checked options: the family, the pictures, the device, the compute type, and the memory of
    one process."""

    options: TrainOptions
    family: Family
    subject: list[TrainingPicture]
    device: torch.device
    dtype: torch.dtype
    estimate: MemoryEstimate


def check(options: TrainOptions, device: torch.device | None = None) -> TrainingJob:
    """Everything that can be wrong before any time is spent; called by `train`, and alone by
    `--check`.

    Raises:
        OptionError, DataError: what is wrong, with the remedy.
    """
    family = family_of(options.model, options.text_tokens)
    device = device or choose_device(options)
    check_support(family, options, device)
    subject = read_subject(options)
    dtype = choose_dtype(options, device)
    estimate = require_memory(family, options, device, dtype)
    require_space(options.output, estimate.disk)
    return TrainingJob(options, family, subject, device, dtype, estimate)


def train(options: TrainOptions) -> Result:
    """Run or continue the training that `options` describe."""
    started = time.monotonic()
    _refuse_launchers_sharding()
    accelerator = Accelerator(cpu=choose_device(options).type == "cpu")
    if options.shard and accelerator.num_processes == 1:
        raise OptionError(
            "shard=true: one process has nobody to share with; start several with torchrun"
            " --nproc-per-node N"
        )
    torch.use_deterministic_algorithms(options.deterministic)
    with quiet_libraries():
        job = check(options, accelerator.device)
        with accelerator.main_process_first():
            prior = ensure_class_pictures(job.family, options, job.device, job.dtype)
        _free(job.device)
        cache = build_cache(job.family, options, job.subject, prior, job.device, job.dtype)
        _free(job.device)
        trainee = build_trainee(job.family, options, job.device, job.dtype)
        pictures_hash = data_hash([*job.subject, *prior])
        run = TrainingRun(options, accelerator, trainee, cache, Checkpoints(options, pictures_hash))
        run.fit(lambda step, journal: draw_validation(job, trainee, step, journal))
        weights = run.final_weights()
        result = Result(
            options.output,
            run.progress.step,
            len(run.weights),
            time.monotonic() - started,
            peak_bytes(),
        )
        if accelerator.is_main_process:
            write = save_pipeline if options.method == "full" else save_adapter
            write(
                job.family,
                trainee,
                weights,
                options.output / "model" if options.method == "full" else options.output,
            )
            data = {
                "sha256": pictures_hash,
                "pictures": len(job.subject),
                "class_pictures": len(prior),
            }
            write_card(options, job.family.index["_class_name"], data, result.summary())
        accelerator.wait_for_everyone()
    return result


def _refuse_launchers_sharding() -> None:
    """The launcher's sharding would wrap the model after its masters were made, and leave gradients
    unreduced without a word.

    Raises:
        OptionError: `accelerate launch` was told to shard the model.
    """
    for variable in LAUNCHERS_SHARDING:
        if os.environ.get(variable, "").lower() == "true":
            raise OptionError(
                f"{variable}=true: the launcher cannot split the model here; launch without it and"
                " use shard=true"
            )


def choose_device(options: TrainOptions) -> torch.device:
    """The device named by the options; with several GPUs accelerate gives each process its own."""
    available = torch.cuda.is_available()
    if options.device == "auto":
        return torch.device("cuda" if available else "cpu")
    device = torch.device(options.device)
    if device.type == "cuda" and not available:
        raise OptionError(f"device={options.device}: no GPU is visible here; use auto or cpu")
    return device


def choose_dtype(options: TrainOptions, device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU that computes in it, float32 elsewhere."""
    if options.dtype != "auto":
        return getattr(torch, options.dtype)  # type: ignore[no-any-return]
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def draw_validation(job: TrainingJob, trainee: Trainee, step: int, journal: Journal | None) -> None:
    """The validation prompts, drawn with the weights of now, into `validation/` and the log of the
    process that keeps one."""
    options = job.options
    if not options.validation_prompts:
        return
    pipeline = pipeline_with(job.family, trainee, job.device, job.dtype)
    wishes = [
        Wish(prompt, options.seed + index)
        for index, prompt in enumerate(options.validation_prompts)
    ]
    side = options.resolution
    style = Style(options.validation_steps, size=(side, side), text_tokens=options.text_tokens)
    # Processes that share a model must call it equally often: one picture at a time, since batches
    # form by chance.
    together = [[wish] for wish in wishes] if options.shard else [wishes]
    pictures = [picture for part in together for picture in draw(pipeline, part, style)]
    if journal:
        folder = options.output / "validation"
        folder.mkdir(exist_ok=True)
        for index, picture in enumerate(pictures):
            picture.save(folder / f"step-{step:06d}-{index}.png")
            journal.picture(step, f"validation/{index}", picture)
    trainee.denoiser.train()
    del pipeline
    _free(job.device)


def pipeline_with(
    family: Family, trainee: Trainee, device: torch.device, dtype: torch.dtype
) -> object:
    """A whole pipeline around the modules in training."""
    trained = {family.denoiser: trainee.denoiser, **trainee.encoders}
    pipeline = family.load([name for name in family.components if name not in trained], dtype)
    pipeline.register_modules(**trained)
    for module in trained.values():
        assert isinstance(module, nn.Module)
        module.eval()
    return pipeline.to(device)


def _free(device: torch.device) -> None:
    """Give what the last stage held back to the device, so that the stages' peaks do not add up."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
