"""Training against diffusers' own Dreambooth LoRA example: steps per second and peak memory, as
ratios of one run.

    PYTHONPATH=runtime:. python -m benchmarks.training --model sd35-medium --out training.json
    PYTHONPATH=runtime:. python -m benchmarks.training --model flux1-dev --processes 4 --arms ours
    ours-sharded

The models have published shapes and random weights (`random_models`), or are the checkpoint folder
that --model names. Data, steps, batch, rank and adapted layers are the same in every arm, each arm
a process of its own, or as many as --processes, of which the figures of the first are taken.
`example` goes the way of the published script in its default setting (`training_example`); `ours`
is this package's loop, from cache to optimizer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from atelier_training.dreambooth.adaptation import build_trainee, prepare_trainee
from atelier_training.dreambooth.buckets import View
from atelier_training.dreambooth.cache import Cache, Sample, to_tensor
from atelier_training.dreambooth.checkpoints import Checkpoints
from atelier_training.dreambooth.families import Family, family_of
from atelier_training.dreambooth.journal import Journal, peak_bytes
from atelier_training.dreambooth.options import TrainOptions
from atelier_training.dreambooth.run import TrainingRun
from benchmarks.random_models import SUBJECTS

ARMS: dict[str, dict[str, Any]] = {
    "example": {},
    "ours": {},
    "ours-compiled": {"compile": True},
    "ours-compiled-half": {"compile": True, "activation_budget": 0.5},
    "ours-checkpointing": {"gradient_checkpointing": True},
    "ours-full": {"method": "full", "gradient_checkpointing": True},
    "ours-sharded": {"shard": True},
    "ours-sharded-compiled": {"shard": True, "compile": True},
    "ours-sharded-full": {"shard": True, "method": "full", "gradient_checkpointing": True},
    "ours-nf4": {"quantize": "nf4"},
}
WARM_UP = 5  # steps that are not timed; compiled arms compile in the first


@dataclass(frozen=True)
class Figures:
    """One arm. `first_step_s` holds compilation."""

    arm: str
    steps_per_second: float
    peak_gib: float
    first_step_s: float


@dataclass(frozen=True)
class Setting:
    """What all arms share."""

    model: str
    side: int
    batch: int
    steps: int
    rank: int

    @property
    def device(self) -> torch.device:
        own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        return torch.device(own if torch.cuda.is_available() else "cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def options(self, folder: Path, **changes: Any) -> TrainOptions:
        return TrainOptions.parse(
            model=folder / "model",
            data=folder,
            output=folder / "output",
            instance_prompt="a photo of zqx ring",
            resolution=self.side,
            batch_size=self.batch,
            rank=self.rank,
            steps=self.steps + WARM_UP,
            log_every=1,
            checkpoint_every=10**6,
            **changes,
        )


def write_configuration(pipeline: Any, folder: Path) -> Family:
    """The folder of a checkpoint without weights, enough for a `Family` to read shapes and
    schedules from."""
    index: dict[str, Any] = {"_class_name": type(pipeline).__name__}
    for name, component in pipeline.components.items():
        if hasattr(component, "save_config"):
            component.save_config(folder / name)
            index[name] = ["diffusers", type(component).__name__]
    (folder / "text_encoder_2").mkdir(parents=True, exist_ok=True)
    (folder / "text_encoder_2" / "config.json").write_text(json.dumps({"projection_dim": 1280}))
    (folder / "model_index.json").write_text(json.dumps(index))
    return family_of(folder)


def pictures(setting: Setting, count: int = 5) -> list[Image.Image]:
    """Noise at a camera's aspect ratio."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, setting.side * 5 // 4, setting.side, 3)
    pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return [Image.fromarray(each.numpy()) for each in pixels]


@torch.no_grad()
def make_cache(setting: Setting, family: Family, pipeline: Any) -> Cache:
    """What `build_cache` makes, with random text embeddings in place of an encoder's."""
    text = {
        n: torch.randn(1, *shape).to(setting.dtype) for n, shape in family.text_shapes().items()
    }
    vae = pipeline.vae.float().to(setting.device)
    samples = []
    for index, picture in enumerate(pictures(setting)):
        view = View(index, setting.side, setting.side, 0, 0, setting.side, setting.side, False)
        mean, deviation = family.encode_picture(vae, to_tensor(view.cut(picture)))
        sizes = torch.tensor(family.size_condition(view, picture.size))
        samples.append(Sample(mean[0].cpu(), deviation[0].cpu(), sizes, 0, False))
    pipeline.vae = None
    return Cache(samples, ["a photo of zqx ring"], text)


def run_ours(setting: Setting, folder: Path, changes: dict[str, Any]) -> tuple[float, float]:
    """Steps per second and seconds of the first step, from the run's own log."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=setting.device.type == "cpu")
    pipeline, family = make_model(setting, folder)
    cache = make_cache(setting, family, pipeline)
    options = setting.options(folder, **changes)
    options.output.mkdir(parents=True)
    denoiser = getattr(pipeline, family.denoiser).requires_grad_(False)
    if options.quantize != "none":  # weights are quantized when they are loaded
        denoiser.save_pretrained(options.model / family.denoiser)
        del denoiser
        setattr(pipeline, family.denoiser, None)
        _forget_memory(setting)
        trainee = build_trainee(family, options, setting.device, setting.dtype)
    else:
        trainee = prepare_trainee(family, options, setting.device, denoiser)
    _forget_memory(setting)
    run = TrainingRun(options, accelerator, trainee, cache, Unwritten(options, ""))
    run.fit(lambda step, journal: None)
    if not accelerator.is_main_process:
        return 0.0, 0.0
    paces = [float(row["steps_per_second"]) for row in Journal.read(options.output)]
    timed = paces[WARM_UP:]
    return len(timed) / sum(1 / pace for pace in timed), 1 / paces[0]


def make_model(setting: Setting, folder: Path) -> tuple[Any, Family]:
    """A pipeline with denoiser and VAE, and its family."""
    if setting.model in SUBJECTS:
        pipeline = SUBJECTS[setting.model](str(setting.device), setting.dtype).pipeline
    else:
        pipeline = DiffusionPipeline.from_pretrained(setting.model, dtype=setting.dtype)
    _forget_memory(setting)
    return pipeline, write_configuration(pipeline, folder / "model")


def _forget_memory(setting: Setting) -> None:
    """What making random weights took is not what a training takes: they are made in float32, and
    whole."""
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


class Unwritten(Checkpoints):
    """Checkpoints that are made and not written."""

    def save(self, step: int, state: dict[str, Any]) -> Path:
        return self.folder


def run_arm(arm: str, setting: Setting) -> Figures:
    """One arm in this process."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        if arm == "example":
            from benchmarks.training_example import run_example

            pipeline, family = make_model(setting, folder)
            example = family, pipeline, pictures(setting), setting.device, setting.dtype
            pace, first = run_example(
                *example, setting.side, setting.batch, setting.rank, setting.steps, WARM_UP
            )
        else:
            pace, first = run_ours(setting, folder, ARMS[arm])
    return Figures(arm, round(pace, 4), round(peak_bytes() / 2**30, 3), round(first, 2))


def compare(setting: Setting, arms: list[str], processes: int) -> dict[str, Any]:
    """Every arm in processes of its own, and the ratios to the first."""
    results = []
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        if processes > 1
        else []
    )
    for arm in arms:
        began = time.monotonic()
        command = [sys.executable, *launcher, "-m", "benchmarks.training", "--arm", arm]
        for name, value in asdict(setting).items():
            command += [f"--{name}", str(value)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results.append(Figures(**json.loads(done.stdout.strip().splitlines()[-1])))
        print(f"{results[-1]}  ({time.monotonic() - began:.0f} s in all)", file=sys.stderr)
    base = results[0]
    ratios = {
        each.arm: {
            "steps_per_second": round(each.steps_per_second / base.steps_per_second, 3),
            "peak_memory": round(each.peak_gib / base.peak_gib, 3),
        }
        for each in results
    }
    return {
        "setting": asdict(setting),
        "processes": processes,
        "figures": [asdict(each) for each in results],
        f"of {base.arm}": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="sd35-medium", help=f"{', '.join(SUBJECTS)}, or a checkpoint folder"
    )
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--processes", type=int, default=1, help="one for each GPU")
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=["example", "ours", "ours-compiled"]
    )
    parser.add_argument("--arm", choices=ARMS, help="run one arm here and print its figures")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    setting = Setting(given.model, given.side, given.batch, given.steps, given.rank)
    if given.arm:
        figures = run_arm(given.arm, setting)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(asdict(figures)))
        return
    text = json.dumps(compare(setting, given.arms, given.processes), indent=2)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
