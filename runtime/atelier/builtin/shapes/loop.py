"""The training loop: a run's folder, the learning rate, and optimisation steps recorded as one CUDA
graph.

The networks are so small that starting their thousands of kernels one by one takes longer than
running them; a recorded step is started as a whole. It therefore reads its learning rate from
tensors and never waits for the device.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_SYNC_EVERY, _LOG_EVERY = 20, 200  # steps


@dataclass(frozen=True)
class LearningOptions:
    out: Path
    scenes: int
    vae_seconds: float
    autoencoder: Path | None
    seconds: float
    vae_batch: int
    batch: int
    device: str
    compile: bool
    seed: int
    trial_prompts: int


class LearningRun:
    """The folder of a run: its log, and the state that a stopped run goes on from."""

    def __init__(self, options: LearningOptions) -> None:
        self.options = options
        self.begun = time.monotonic()
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / "state.pt"
        self.state: dict[str, Any] = (
            torch.load(path, map_location=options.device) if path.exists() else {}
        )

    def log(self, **values: float | str) -> None:
        values["wall"] = time.monotonic() - self.begun
        line = json.dumps(
            {key: round(v, 6) if isinstance(v, float) else v for key, v in values.items()}
        )
        print(line, flush=True)
        with (self.options.out / "log.jsonl").open("a") as log:
            log.write(line + "\n")

    def save(self, **entries: Any) -> None:
        self.state.update(entries)
        part = self.options.out / "state.part"
        torch.save(self.state, part)
        part.replace(self.options.out / "state.pt")


class Average:
    """A running average of parameters, kept in other parameters; `decay` is 0..1, closer to 1
    forgets more slowly."""

    def __init__(self, targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
        self.targets, self.sources = list(targets), list(sources)
        self.decay = torch.zeros((), device=self.targets[0].device)

    @torch.no_grad()
    def update(self) -> None:
        difference = torch._foreach_sub(self.sources, self.targets)
        torch._foreach_mul_(difference, 1.0 - self.decay)
        torch._foreach_add_(self.targets, difference)


def learning_rate(progress: float) -> float:
    """Share of the peak rate at `progress` in 0..1: a short warm-up, a plateau, then straight down
    to nothing."""
    return min(1.0, progress / 0.02, max(0.0, 1.0 - progress) / 0.45)


def steps(
    run: LearningRun,
    stage: str,
    seconds: float,
    used: float,
    optimizers: Sequence[torch.optim.Optimizer],
    loss: Callable[[], torch.Tensor],
    average: Average | None = None,
) -> Iterator[float]:
    """One optimisation step of `loss` per item, until `seconds` are used, of which `used` are
    already; yields them.

    Every optimizer's learning rate is a tensor that holds its peak.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    total = torch.zeros((), device=run.options.device)

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if average is not None:
            average.update()
        total.add_(value.detach())

    for group in groups:
        group.setdefault("peak", float(group["lr"]))
        group["lr"].zero_()
    run_step = _recorded(step) if run.options.device == "cuda" else step
    total.zero_()
    begun, count = time.monotonic() - used, 0
    while (used := time.monotonic() - begun) < seconds:
        for group in groups:
            group["lr"].fill_(group["peak"] * learning_rate(used / seconds))
        run_step()
        count += 1
        if count % _SYNC_EVERY == 0:
            total.item()  # waits, so that the clock counts finished steps
        if count % _LOG_EVERY == 0:
            run.log(stage=stage, step=count, seconds=used, loss=float(total) / _LOG_EVERY)
            total.zero_()
        yield used


def _recorded(step: Callable[[], None]) -> Callable[[], None]:
    """`step` as a CUDA graph, after three runs that let libraries choose their kernels and
    optimizers their state."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
