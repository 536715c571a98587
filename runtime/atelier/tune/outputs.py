"""What a search leaves behind: a profile that `atelier serve` takes, a component for overlays, and
the table of what each change brought."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from atelier.tune.footprint import gpus
from atelier.tune.plan import TunePlan
from atelier.tune.search import Tried, alone
from atelier.tune.serving import text
from atelier.tune.space import Point, Value

SET_BY_KSERVE = ("model_id", "model_name", "profile")


@dataclass(frozen=True)
class Contribution:
    """What one change brought. `alone` is the goal's ratio to the start with this change only,
    above 1 is better; None: not measured. `chosen` says that the best point has it."""

    setting: str
    value: Value
    alone: float | None
    chosen: bool
    reason: str = ""


def contributions(tried: list[Tried], plan: TunePlan, best: Tried) -> list[Contribution]:
    """Every change that was tried alone, the best first within each setting."""
    rows = [
        Contribution(
            name, one.point[name], ratio or None, best.point[name] == one.point[name], one.reason
        )
        for name, one, ratio in alone(tried, plan)
    ]
    order = list(plan.space)
    return sorted(rows, key=lambda row: (order.index(row.setting), -(row.alone or 0)))


def lacking(tried: list[Tried], plan: TunePlan, best: Tried) -> list[Point]:
    """Changes of the best point that were never measured alone."""
    start = plan.start_point
    done = [one.point for one in tried]
    single = [start | {name: best.point[name]} for name in plan.space]
    return [point for point in single if point not in done and point != start]


def write_profile(path: Path, plan: TunePlan, best: Tried) -> None:
    """The best settings as a profile."""
    sizes = gpus()
    values = plan.settings_of(best.point)
    wanted = int(values.get("tensor_parallel_size") or 1) * int(
        values.get("pipeline_parallel_size") or 1
    )
    body = {
        "description": f"{values.get('model_id', 'builtin/shapes')}, tuned for {plan.goal} at"
        f" {plan.load.title}",
        "gpus": {
            "count": min(wanted, len(sizes)),
            "gib": round(min(sizes) / 2**30) if sizes else 0,
        },
        "values": values,
    }
    path.write_text(yaml.safe_dump(body, sort_keys=False))


def write_component(folder: Path, plan: TunePlan, best: Tried) -> None:
    """The best settings as a Kustomize component: a user's overlay names the folder."""
    values = plan.settings_of(best.point)
    patches = [
        f"- {{op: add, path: /spec/predictor/model/env/-, value: {{name: {name.upper()},"
        f" value: {_scalar(text(value))}}}}}"
        for name, value in values.items()
        if name not in SET_BY_KSERVE
    ]
    body = "\n".join(f"      {line}" for line in patches)
    folder.mkdir(exist_ok=True)
    (folder / "kustomization.yaml").write_text(
        f"# Settings that `atelier tune` found best for {plan.goal} at {plan.load.title}.\n"
        "apiVersion: kustomize.config.k8s.io/v1alpha1\n"
        "kind: Component\n"
        "patches:\n"
        "  - target: {kind: InferenceService}\n"
        f"    patch: |-\n{body}\n"
    )


def _scalar(value: str) -> str:
    """A text that YAML reads as text within braces."""
    return "'" + value.replace("'", "''") + "'"
