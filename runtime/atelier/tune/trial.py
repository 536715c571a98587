"""One trial: a server is started with the settings of a point, warmed, measured and stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from atelier.bench.driver import measure
from atelier.bench.figures import figures
from atelier.bench.record import Record
from atelier.bench.target import TargetError, connected
from atelier.tune import footprint, quality
from atelier.tune.goal import MEASURES, excess, value_of
from atelier.tune.plan import TunePlan
from atelier.tune.serving import TrialFailed, TrialServer, serving
from atelier.tune.space import Point

FAILED_SHARE = 0.1
"""Of requests: with more errors than this, a trial's figures are not believed."""


@dataclass
class Measurement:
    """What a trial brought. `values` has the goal of each repeat, `seen` what bounds are about,
    `excess` how far each is beyond its bound, as a share; at most 0: it is kept."""

    values: list[float] = field(default_factory=list)
    seen: dict[str, float] = field(default_factory=dict)
    excess: dict[str, float] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    pruned: bool = False

    @property
    def value(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def broken(self) -> list[str]:
        """The bounds that were not kept."""
        return [name for name, beyond in self.excess.items() if beyond > 0]


Worse = Callable[[int, float], bool]
"""Asked after each repeat with its number and the mean so far: whether to stop, since others do
better."""


def never(repeat: int, value: float) -> bool:
    """Measure to the end."""
    return False


async def run_trial(
    plan: TunePlan, point: Point, folder: Path, name: str, key: str = "", worse: Worse = never
) -> Measurement:
    """Measure a point.

    Args:
        folder: of the search; logs and the reference of quality are in it.

    Raises:
        TrialFailed: says why there is no figure: it did not start, ended, or answered errors.
    """
    log = folder / "trials" / f"{name}.log"
    with serving(plan.settings_of(point), log, plan.ready_seconds) as server:
        try:
            return await _measure(plan, server, folder, key, worse)
        except TargetError as error:
            server.process.poll()
            raise TrialFailed(server.reason(error.message)) from None


async def _measure(
    plan: TunePlan, server: TrialServer, folder: Path, key: str, worse: Worse
) -> Measurement:
    done = Measurement()
    load = plan.load
    async with connected(server.url, key=key, kind=load.kind, give_up=load.timeout) as target:
        for repeat in range(plan.repeats):
            turn = load.model_copy(update={"seed": load.seed + 7919 * repeat})
            records = await measure(target, turn)
            found = figures(records, plan.slo)
            failed = [record for record in records if not record.ok]
            value = value_of(plan.goal, found)
            if len(failed) > FAILED_SHARE * len(records) or value is None:
                first = failed[0] if failed else None
                told = f", the first: {first.error}: {first.message}" if first else ""
                what = f"{len(failed)} of {len(records)} requests failed{told}"
                server.process.poll()
                raise TrialFailed(server.reason(what))
            for record in records:  # requests of the second repeat are others
                record.index += repeat * load.requests
            done.records += records
            done.values.append(value)
            if worse(repeat, done.value) and repeat + 1 < plan.repeats:
                done.pruned = True
                break
        _seen(plan, done, server.process.pid)
        if {"agreement", "psnr"} & set(plan.bounds):
            reference = folder / "reference.json"
            answers = await quality.answers(target, load)
            if (wanted := quality.kept(reference)) is None:
                quality.keep(reference, wanted := answers)
            done.seen |= quality.compared(wanted, answers, target.kind)
    for name, bound in plan.bounds.items():
        if name not in done.seen:
            raise TrialFailed(f"bound {name}: the run has no such figure")
        done.excess[name] = excess(name, done.seen[name], bound)
    return done


def _seen(plan: TunePlan, done: Measurement, pid: int) -> None:
    """Figures of all repeats that bounds name."""
    if "memory" in plan.bounds:
        done.seen["memory"] = footprint.host_bytes(pid)
    if "gpu_memory" in plan.bounds:
        done.seen["gpu_memory"] = footprint.gpu_bytes(pid)
    found = figures(done.records, plan.slo)
    for name in plan.bounds:
        if name in MEASURES and (value := value_of(name, found)) is not None:
            done.seen[name] = value
