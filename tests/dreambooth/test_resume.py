"""A run that is killed and continued, or spread over processes, ends with the weights of one that
was not."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from atelier_training.dreambooth.adaptation import LORA_FILE
from atelier_training.dreambooth.errors import OptionError
from atelier_training.dreambooth.journal import Journal
from atelier_training.dreambooth.options import TrainOptions
from atelier_training.dreambooth.train import train
from tests.dreambooth.trainings import trainings

Build = Callable[..., TrainOptions]
STEPS = 12
WAIT_SECONDS = 300
# Everything that has a state: prior, dropout, schedule, average, views, several passes to a step,
# text encoders.
STATEFUL = {
    "steps": STEPS,
    "class_prompt": "a ring",
    "class_pictures": 3,
    "class_steps": 2,
    "adapter_dropout": 0.2,
    "schedule": "cosine",
    "warmup": 4,
    "ema_decay": 0.9,
    "views": 2,
    "flip": True,
    "accumulation": 2,
    "train_text_encoder": True,
    "checkpoint_every": 3,
    "log_every": 1,
    "learning_rate": 1e-3,
}


def command(options: TrainOptions) -> list[str]:
    """The command line of a run: every option that is not the default."""
    arguments = [sys.executable, "-m", "atelier.cli.train"]
    for name, value in options.model_dump(mode="json", exclude_defaults=True).items():
        flag = "--" + name.replace("_", "-")
        arguments += (
            [flag]
            if value is True
            else [flag, "|".join(value) if isinstance(value, list) else str(value)]
        )
    return arguments


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": "runtime:.", "OMP_NUM_THREADS": "1"}


def wait_for_lines(output: Path, count: int, process: BaseProcess) -> None:
    """Until the log has `count` lines, which `process` must live to see."""
    while len(Journal.read(output)) < count and process.is_alive():
        time.sleep(0.01)
    assert process.is_alive(), "the run ended before it could be killed"


def join(started: Sequence[BaseProcess]) -> None:
    for process in started:
        process.join(WAIT_SECONDS)
        assert process.exitcode == 0


def weights_of(output: Path) -> dict[str, torch.Tensor]:
    """The adapter, or the weights of all components of a pipeline."""
    files = (
        [output / LORA_FILE]
        if (output / LORA_FILE).exists()
        else sorted((output / "model").rglob("*.safetensors"))
    )
    return {
        f"{file.relative_to(output)} {name}": value
        for file in files
        for name, value in load_file(file).items()
    }


def assert_same_weights(left: Path, right: Path, tolerance: float = 0.0) -> None:
    first, second = weights_of(left), weights_of(right)
    assert first.keys() == second.keys() != set()
    worst = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert worst <= tolerance


def test_a_run_killed_at_a_random_step_ends_with_the_same_weights(
    options: Build, tmp_path: Path
) -> None:
    whole, killed = (options(output=tmp_path / name, **STATEFUL) for name in ("whole", "killed"))
    train(whole)
    stop_at = random.randint(4, STEPS - 3)
    with trainings(killed) as started:
        wait_for_lines(killed.output, stop_at, started[0])
    assert not (killed.output / LORA_FILE).exists()
    train(killed)
    assert_same_weights(whole.output, killed.output)
    assert [row["step"] for row in Journal.read(killed.output)] == [
        str(step + 1) for step in range(STEPS)
    ]
    assert [row["loss"] for row in Journal.read(killed.output)] == [
        row["loss"] for row in Journal.read(whole.output)
    ]


def test_the_same_seed_repeats_a_run_and_another_does_not(options: Build, tmp_path: Path) -> None:
    first, again, other = (options(output=tmp_path / str(i), seed=i // 2) for i in range(3))
    for run in (first, again, other):
        train(run)
    assert_same_weights(first.output, again.output)
    with pytest.raises(AssertionError):
        assert_same_weights(first.output, other.output)


PRIOR: dict[str, Any] = {
    "learning_rate": 1e-3,
    "class_prompt": "a ring",
    "class_pictures": 2,
    "class_steps": 2,
    "steps": 4,
}
# Of one step: Adam divides by the gradient's size, which makes much of rounding where there is
# hardly any.
TWENTIETH = PRIOR["learning_rate"] / 20


def test_two_processes_train_like_one_with_twice_the_accumulation(
    options: Build, tmp_path: Path
) -> None:
    shared = PRIOR | {"class_data": tmp_path / "class"}
    alone, spread = options(output=tmp_path / "alone", accumulation=2, **shared), options(**shared)
    train(alone)
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "--no-python",
    ]
    apart = ["sh", "-c", f'exec "$@" --output "{spread.output}$RANK"', "sh"]  # shows who writes
    subprocess.run(
        [*launcher, *apart, *command(spread)], env=environment(), check=True, timeout=WAIT_SECONDS
    )
    assert_same_weights(alone.output, Path(f"{spread.output}0"), TWENTIETH)
    assert not list(Path(f"{spread.output}1").iterdir()), "the first process alone writes"


# The pictures have two shapes, so the processes differ in their numbers of calls, and in which of
# them teach the prior.
@pytest.mark.parametrize(
    "more", [{"prior": "teacher", "train_text_encoder": True}, {"method": "full"}], ids=str
)
def test_a_model_in_pieces_trains_like_a_whole_one(
    options: Build, tmp_path: Path, more: dict[str, Any]
) -> None:
    drawing = {
        "validate_every": 3,
        "validation_prompts": ("a zqx ring", "a ring"),
        "validation_steps": 1,
    }
    shared = PRIOR | drawing | more | {"class_data": tmp_path / "class"}
    alone = options(output=tmp_path / "alone", accumulation=2, **shared)
    first, second = (
        options(output=tmp_path / f"rank{rank}", shard=True, **shared) for rank in range(2)
    )
    train(alone)
    with trainings(first, second) as started:
        join(started)
    assert_same_weights(alone.output, first.output, TWENTIETH)
    assert len(list((first.output / "validation").iterdir())) == 2
    assert not list(second.output.iterdir()), "the first process alone writes"


@pytest.mark.parametrize(
    ("before", "after", "tolerance"),
    [(False, False, 0.0), (True, True, 0.0), (True, False, TWENTIETH)],
)
def test_two_processes_killed_at_a_random_step_end_with_the_same_weights(
    options: Build, tmp_path: Path, before: bool, after: bool, tolerance: float
) -> None:
    """In pieces or whole, `before` it is killed and `after`."""
    more = {
        "steps": 10,
        "learning_rate": 1e-3,
        "adapter_dropout": 0.2,
        "checkpoint_every": 2,
        "log_every": 1,
    }
    more |= {"ema_decay": 0.9}
    whole, killed = (
        options("sd15", output=tmp_path / name, shard=before, **more)
        for name in ("whole", "killed")
    )
    continued = options("sd15", output=killed.output, shard=after, **more)
    with trainings(whole, whole) as started:
        join(started)
    stop_at = random.randint(3, 6)
    with trainings(killed, killed) as started:
        wait_for_lines(killed.output, stop_at, started[0])
    assert not (killed.output / LORA_FILE).exists()
    with trainings(continued, continued) as started:
        join(started)
    assert_same_weights(whole.output, killed.output, tolerance)


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_launchers_that_shard_the_model_are_refused(
    options: Build, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(OptionError, match=rf"{variable}=true: .*use shard=true"):
        train(options())


def test_checkpoints_are_bounded_in_number(options: Build) -> None:
    run = options(steps=6, checkpoint_every=1, keep_checkpoints=2)
    train(run)
    assert sorted(p.name for p in (run.output / "checkpoints").iterdir()) == [
        "step-00000005",
        "step-00000006",
    ]


def test_a_folder_of_another_run_is_refused_with_what_differs(options: Build) -> None:
    train(options(steps=1))
    with pytest.raises(OptionError, match=r"learning_rate: 0\.0001 then, 0\.5 now"):
        train(options(steps=1, learning_rate=0.5))


def test_other_pictures_under_the_same_options_are_refused(options: Build, pictures: Path) -> None:
    train(options(steps=1))
    (pictures / "thing 0.png").rename(pictures / "thing 9.png")
    with pytest.raises(OptionError, match="other pictures"):
        train(options(steps=1))


@pytest.mark.parametrize("optimizer", ["prodigy", "adamw8bit"])
def test_other_optimizers_train_and_are_continued_from_their_own_state(
    options: Build, tmp_path: Path, optimizer: str
) -> None:
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    # All weights: bitsandbytes keeps small tensors in 32 bits.
    shared = {"method": "full", "optimizer": optimizer, "steps": 4, "checkpoint_every": 2}
    rate = 1.0 if optimizer == "prodigy" else 1e-3
    whole, half = (
        options("sd15", output=tmp_path / n, learning_rate=rate, **shared)
        for n in ("whole", "half")
    )
    train(whole)
    assert float(Journal.read(whole.output)[-1]["loss"]) > 0
    train(half)
    shutil.rmtree(half.output / "checkpoints" / "step-00000004")
    train(half)
    weights = Path("model/unet/diffusion_pytorch_model.safetensors")
    start, first, second = (
        load_file(p)
        for p in (
            whole.model / weights.relative_to("model"),
            whole.output / weights,
            half.output / weights,
        )
    )
    assert any((start[name] != first[name]).any() for name in start)
    assert all((first[name] == second[name]).all() for name in first)


def test_early_stop_ends_a_run_whose_validation_does_not_improve(options: Build) -> None:
    result = train(options(steps=30, learning_rate=10.0, validate_every=2, early_stop=2))
    assert result.steps < 30
