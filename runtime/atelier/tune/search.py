"""The search: Optuna proposes and remembers, trials are run one after the other, and a search that
was killed goes on where it was.

First comes the start, then every setting alone, then the best of each together; from there Optuna's
TPE sampler and the neighbours of the best take turns. So what each change brings is measured, not
inferred.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from atelier.errors import SettingsError
from atelier.tune.plan import TunePlan
from atelier.tune.serving import TrialFailed
from atelier.tune.space import Point, one_by_one, size, suggest, told
from atelier.tune.trial import Measurement, run_trial

NAME = "atelier"
STORE = "study.db"
ASKS = 10
"""Proposals in a row that were all measured before: then a neighbour of the best is tried."""

Heard = Callable[["Tried"], None]


@dataclass(frozen=True)
class Tried:
    """A trial as the report tells it. `reason`: why it has no value, or which bounds it broke."""

    number: int
    point: Point
    state: str
    value: float | None
    seconds: float
    reason: str = ""

    @property
    def measured(self) -> bool:
        return self.state in ("complete", "pruned", "out of bounds")


class Search:
    """A search in a folder: its storage, its log files, its results."""

    def __init__(self, plan: TunePlan, folder: Path, key: str = "") -> None:
        self.plan, self.folder, self._key = plan, folder, key
        folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._study = optuna.create_study(
            study_name=NAME,
            storage=f"sqlite:///{(folder / STORE).resolve()}",
            direction=plan.direction,  # type: ignore[arg-type]
            sampler=optuna.samplers.TPESampler(
                n_startup_trials=1, multivariate=True, seed=plan.seed
            ),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
            load_if_exists=True,
        )
        known = self._study.user_attrs.get("plan", plan.identity)
        if known != plan.identity:
            raise SettingsError(
                f"{folder} holds a search with another plan (start, space, load, goal or bounds"
                " differ): choose another --out, or give it back its plan"
            )
        self._study.set_user_attr("plan", plan.identity)

    def run(self, heard: Heard) -> None:
        """Run trials until there are `plan.trials`, or no points are left."""
        with self._alone():
            self._take_up()
            while len(self.tried()) < self.plan.trials:
                trial = self._next()
                if trial is None:
                    return
                self._run(trial, heard)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time; the lock goes with the process, however it ends."""
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise SettingsError(
                    f"{self.folder}: a search is running there: wait for it, or use another --out"
                ) from None
            yield

    def _take_up(self) -> None:
        """Queue the first points, and those that were running when the search was killed."""
        start = self.plan.start_point
        for first in [start, *one_by_one(self.plan.space, start)]:
            self._study.enqueue_trial(first, skip_if_exists=True)
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # A point that is queued twice, since the search was killed here, is run once.
            point = frozen.params or frozen.system_attrs.get("fixed_params")
            if point:
                self._study.enqueue_trial(point)
            self._study.tell(frozen.number, state=TrialState.FAIL)

    def _next(self) -> optuna.Trial | None:
        """A trial at a point that was not tried before."""
        self._combine()
        done = [one.point for one in self.tried()]
        whole = size(self.plan.space)
        if whole is not None and len(done) >= whole:
            return None
        if len(done) % 2 == 0:
            self._propose_neighbour(done)
        for ask in range(2 * ASKS):
            if ask == ASKS:
                self._propose_neighbour(done)
            trial = self._study.ask()
            if suggest(trial, self.plan.space) not in done:
                return trial
            self._study.tell(trial, state=TrialState.FAIL)  # not run, so not counted
        return None

    def _propose_neighbour(self, done: list[Point]) -> None:
        """Queue the most promising untried point that differs from the best in one setting: every
        second trial is such, and one that follows proposals which are all known."""
        best = self.best()
        if best is None or not self._study.user_attrs.get("combined"):
            return
        hopes = Hopes(self.tried(), self.plan)
        near = [point for point in one_by_one(self.plan.space, best.point) if point not in done]
        near = [point for point in near if hopes.of(point) > 0]
        if near:
            self._study.enqueue_trial(max(near, key=hopes.of))

    def _combine(self) -> None:
        """Once every setting was tried alone, propose what was best of each, together."""
        singles = one_by_one(self.plan.space, self.plan.start_point)
        tried = self.tried()
        done = [one.point for one in tried]
        if self._study.user_attrs.get("combined") or any(one not in done for one in singles):
            return
        self._study.set_user_attr("combined", True)
        together = self.plan.start_point | gains(tried, self.plan)
        if together not in done:
            self._study.enqueue_trial(together)

    def add(self, points: list[Point], heard: Heard) -> None:
        """Measure these points too, beyond the number of trials."""
        with self._alone():
            for point in points:
                self._study.enqueue_trial(point)
                self._run(self._study.ask(), heard)

    def _run(self, trial: optuna.Trial, heard: Heard) -> None:
        point = suggest(trial, self.plan.space)
        trial.set_user_attr("began", True)

        def worse(repeat: int, value: float) -> bool:
            trial.report(value, repeat)
            return trial.should_prune()

        try:
            done = asyncio.run(
                run_trial(self.plan, point, self.folder, f"{trial.number:04}", self._key, worse)
            )
        except TrialFailed as failure:
            trial.set_user_attr("reason", failure.message)
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._keep(trial, done)
        heard(next(one for one in self.tried() if one.number == trial.number))

    def _keep(self, trial: optuna.Trial, done: Measurement) -> None:
        trial.set_user_attr("values", done.values)
        trial.set_user_attr("seen", done.seen)
        trial.set_user_attr("broken", done.broken)
        for name, beyond in done.excess.items():
            trial.set_constraint(name, beyond)
        trial.set_user_attr("value", done.value)
        if done.pruned:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, done.value)

    def tried(self) -> list[Tried]:
        """Every trial that ended, in order; without those that were killed or proposed twice."""
        found = []
        for frozen in self._study.get_trials(deepcopy=False):
            attributes = frozen.user_attrs
            failed = frozen.state == TrialState.FAIL and "reason" in attributes
            if failed or "value" in attributes:
                found.append(_tried(frozen, self.plan))
        return found

    def killed(self) -> int:
        """How many trials were cut short by an end of the search."""
        return sum(
            frozen.state == TrialState.FAIL
            and "began" in frozen.user_attrs
            and not {"reason", "value"} & set(frozen.user_attrs)
            for frozen in self._study.get_trials(deepcopy=False)
        )

    def best(self) -> Tried | None:
        """The best trial within the bounds; None if there is none."""
        good = [one for one in self.tried() if one.state == "complete" and one.value is not None]
        if not good:
            return None
        choose = max if self.plan.direction == "maximize" else min
        return choose(good, key=lambda one: one.value or 0.0)

    def start(self) -> Tried | None:
        """The trial of the start."""
        return find(self.tried(), self.plan.start_point)


def _tried(frozen: FrozenTrial, plan: TunePlan) -> Tried:
    attributes: dict[str, Any] = frozen.user_attrs
    seconds = frozen.duration.total_seconds() if frozen.duration else 0.0
    point = {name: frozen.params[name] for name in plan.space}
    if "reason" in attributes:
        reason = str(attributes["reason"])
        return Tried(frozen.number, point, "failed", None, seconds, reason)
    state, reason = "pruned" if frozen.state == TrialState.PRUNED else "complete", ""
    if broken := attributes["broken"]:
        state = "out of bounds"
        reason = ", ".join(f"{name} is {_figure(attributes['seen'][name])}" for name in broken)
    return Tried(frozen.number, point, state, attributes["value"], seconds, reason)


def _figure(value: float) -> str:
    return f"{value / 2**20:.0f} MiB" if value > 2**20 else f"{value:.4g}"


def find(tried: list[Tried], point: Point) -> Tried | None:
    """The trial at a point, if it was measured."""
    return next((one for one in tried if one.point == point and one.measured), None)


class Hopes:
    """What to expect of a point from what each of its changes brought alone."""

    def __init__(self, tried: list[Tried], plan: TunePlan) -> None:
        self._start = plan.start_point
        self._alone = {(name, one.point[name]): ratio for name, one, ratio in alone(tried, plan)}

    def of(self, point: Point) -> float:
        """The product of its changes' ratios to the start: 0 if one of them failed; what was not
        tried alone counts as no change."""
        changed = ((name, value) for name, value in point.items() if value != self._start[name])
        return math.prod(self._alone.get(change, 1.0) for change in changed)


def alone(tried: list[Tried], plan: TunePlan) -> Iterator[tuple[str, Tried, float]]:
    """Every trial that differs from the start in one setting: the setting, the trial, and the
    goal's ratio to the start's, above 1 is better; 0: it failed."""
    start = find(tried, plan.start_point)
    if start is None or not start.value:
        return
    for one in tried:
        changed = [name for name in plan.space if one.point[name] != start.point[name]]
        if len(changed) == 1:
            ratio = one.value / start.value if one.value else 0.0
            if ratio and plan.direction == "minimize":
                ratio = 1 / ratio
            yield changed[0], one, ratio


def gains(tried: list[Tried], plan: TunePlan) -> dict[str, Any]:
    """For each setting the value that was best alone, if better than the start."""
    best: dict[str, tuple[float, Any]] = {}
    for name, one, ratio in alone(tried, plan):
        if one.state == "complete" and ratio > best.get(name, (1.0, None))[0]:
            best[name] = ratio, one.point[name]
    return {name: value for name, (_, value) in best.items()}


def describe(one: Tried, plan: TunePlan) -> str:
    """A trial in one line."""
    value = "" if one.value is None or math.isnan(one.value) else f"{one.value:.4g}"
    words = [f"{one.number:4} {one.state:13} {value:>9}  {told(one.point, plan.start_point)}"]
    return "  ".join([*words, *([one.reason] if one.reason else [])])
