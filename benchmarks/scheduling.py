"""How long requests take under three policies, by a simulation with the step times of a real GPU.

    python -m benchmarks.scheduling [--requests 400] [--seed 1]

- sharing: everything that comes is begun, and shapes take turns step by step (release 0.1).
- first come: one request after the other.
- scheduler: `atelier.images.scheduler`, the very class that serves.

No device is used and it takes seconds. Load is the share of the time that the requests would keep
the device busy one after the other. Slowdown is a request's time over its time alone. The scheduler
starts without any measured step time, so what it tries out is in the figures.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from atelier.images.scheduler import Schedulable, Scheduler

STEP_MS: dict[str, dict[str, float]] = json.loads(
    Path(__file__).with_name("step_times_h200.json").read_text()
)["step_ms"]
MIXES = {
    "sdxl": ("sdxl 512", "sdxl 768", "sdxl 1024"),
    "flux1-dev": ("flux1-dev 512", "flux1-dev 1024"),
}
STEPS = (4, 8, 20, 28, 30, 50)
LOADS = (0.5, 0.8, 0.95)
ARRIVALS = ("poisson", "bursts")
BURST = 8  # requests that come at once
PICTURES = 8  # of one call at most


@dataclass(eq=False, kw_only=True)
class Visit(Schedulable):
    """One simulated request of a picture, a row each. `told_start` and `told_end` are the seconds
    that it was told when it came."""

    lone: float
    told_start: float = 0.0
    told_end: float = 0.0
    started: float = math.nan
    ended: float = math.nan
    parked_at: float = 0.0

    @property
    def took(self) -> float:
        return self.ended - self.arrived


Policy = Callable[[Sequence[Visit]], None]


def step_s(kind: str, pictures: int) -> float:
    """Seconds of a step of this many pictures, between the measured counts on a straight line."""
    known = {int(count): ms / 1000 for count, ms in STEP_MS[kind].items()}
    if pictures in known:
        return known[pictures]
    below = max(count for count in known if count < pictures)
    above = min(count for count in known if count > pictures)
    share = (pictures - below) / (above - below)
    return known[below] + share * (known[above] - known[below])


def visits(kinds: Sequence[str], load: float, arrivals: str, count: int, seed: int) -> list[Visit]:
    """Requests of random kinds and steps that come by chance, or eight at once by chance."""
    dice = random.Random(seed)
    wanted = [(dice.choice(kinds), dice.choice(STEPS)) for _ in range(count)]
    size = BURST if arrivals == "bursts" else 1
    gap = size * statistics.mean(step_s(kind, 1) * steps for kind, steps in wanted) / load
    clock, made = 0.0, []
    for index, (kind, steps) in enumerate(wanted):
        if index % size == 0:
            clock += dice.expovariate(1 / gap)
        side = int(kind.split()[1])
        lone = step_s(kind, 1) * steps
        made.append(
            Visit(kind=kind, pixels=side * side, steps_left=steps, arrived=clock, lone=lone)
        )
    return made


def sharing(coming: Sequence[Visit]) -> None:
    """The group of whoever has waited longest since its last step, filled with its kind."""

    def choose(present: list[Visit]) -> list[Visit]:
        order = sorted(present, key=lambda visit: visit.parked_at)
        return [visit for visit in order if visit.kind == order[0].kind][:PICTURES]

    _play(coming, choose)


def first_come(coming: Sequence[Visit]) -> None:
    """One after the other."""
    _play(coming, lambda present: present[:1])


def scheduled(coming: Sequence[Visit]) -> None:
    """The scheduler of the server, told of each step what the engine tells it."""
    scheduler: Scheduler[Visit] = Scheduler(PICTURES)
    waiting, clock = list(coming), 0.0
    while waiting or len(scheduler):
        while waiting and (waiting[0].arrived <= clock or not len(scheduler)):
            visit = waiting.pop(0)
            clock = max(clock, visit.arrived)
            told = scheduler.add(visit)
            late = clock - visit.arrived  # it came while a step was running
            visit.told_start, visit.told_end = told.start_s + late, told.end_s + late
        batch = scheduler.next_batch(clock)
        if batch[0].key is None:
            batch[0].key, batch[0].stage = batch[0].kind, "denoise"
            continue
        for visit in batch:
            if math.isnan(visit.started):
                scheduler.started(visit, clock)
        seconds = step_s(str(batch[0].kind), len(batch))
        lane = (batch[0].kind, batch[0].stage)
        scheduler.ran(lane, [visit.rows for visit in batch], seconds, batch[0].pixels)
        clock += seconds
        for visit in _stepped(batch, clock - seconds, seconds):
            scheduler.finished(visit, clock)


def _play(coming: Sequence[Visit], choose: Callable[[list[Visit]], list[Visit]]) -> None:
    waiting, present, clock = list(coming), list[Visit](), 0.0
    while waiting or present:
        while waiting and (waiting[0].arrived <= clock or not present):
            clock = max(clock, waiting[0].arrived)
            present.append(waiting.pop(0))
        batch = choose(present)
        seconds = step_s(str(batch[0].kind), len(batch))
        for visit in _stepped(batch, clock, seconds):
            present.remove(visit)
        clock += seconds


def _stepped(batch: Sequence[Visit], clock: float, seconds: float) -> list[Visit]:
    """Count a step of the batch; who is done."""
    for visit in batch:
        visit.started = clock if math.isnan(visit.started) else visit.started
        visit.steps_left -= 1
        visit.parked_at = visit.ended = clock + seconds
    return [visit for visit in batch if not visit.steps_left]


POLICIES: dict[str, Policy] = {
    "sharing": sharing,
    "first come": first_come,
    "scheduler": scheduled,
}


def figures(done: Sequence[Visit]) -> dict[str, float]:
    """Seconds from arrival to end, and how many times its lone time the unluckiest took."""
    took = sorted(visit.took for visit in done)
    quantile = {f"p{p}": took[min(len(took) - 1, len(took) * p // 100)] for p in (50, 95, 99)}
    slowdown = [visit.took / visit.lone for visit in done]
    return {
        "mean": statistics.mean(took),
        **quantile,
        "mean slowdown": statistics.mean(slowdown),
        "worst slowdown": max(slowdown),
    }


def accuracy(done: Sequence[Visit]) -> dict[str, float]:
    """What requests were told when they came over what came true, in all."""
    return {
        "told over true wait": sum(visit.told_start for visit in done)
        / sum(visit.started - visit.arrived for visit in done),
        "told over true end": sum(visit.told_end for visit in done)
        / sum(visit.took for visit in done),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for mix, kinds in MIXES.items():
        for arrivals in ARRIVALS:
            for load in LOADS:
                for name, policy in POLICIES.items():
                    done = visits(kinds, load, arrivals, options.requests, options.seed)
                    policy(done)
                    told = figures(done) | (accuracy(done) if name == "scheduler" else {})
                    row = "  ".join(f"{key} {value:.2f}" for key, value in told.items())
                    print(f"{mix:10} {arrivals:8} load {load:.2f}  {name:11} {row}", flush=True)


if __name__ == "__main__":
    main()
