"""The last word: the best settings against the start, in turns, on the same requests."""

from __future__ import annotations

from pathlib import Path

import orjson
from pydantic import BaseModel

from atelier.bench.comparison import Comparison, from_results
from atelier.bench.record import Record
from atelier.tune.plan import TunePlan
from atelier.tune.search import Tried
from atelier.tune.trial import run_trial

FILE = "final.json"


class Final(BaseModel):
    """`start` and `best` have the goal of each turn; the comparison has the best as B."""

    point: dict[str, object]
    start: list[float]
    best: list[float]
    comparison: Comparison


async def face_off(plan: TunePlan, best: Tried, folder: Path, key: str = "") -> Final:
    """Measure both in turns, the order reversed from turn to turn; a server is started for each,
    since two may not fit beside each other.

    Raises:
        TrialFailed: one of them did not start or answered errors.
    """
    values: dict[str, list[float]] = {"a": [], "b": []}
    records: dict[str, list[Record]] = {"a": [], "b": []}
    points = {"a": plan.start_point, "b": best.point}
    bare = plan.model_copy(update={"bounds": {}})
    for turn in range(plan.final_rounds):
        for arm in ("ab", "ba")[turn % 2]:
            name = f"final-{turn}-{'start' if arm == 'a' else 'best'}"
            done = await run_trial(bare, points[arm], folder, name, key)
            values[arm] += done.values
            for record in done.records:
                record.index += turn * plan.repeats * plan.load.requests
            records[arm] += done.records
    comparison = from_results(records["a"], records["b"], plan.load.title)
    return Final(point=dict(best.point), start=values["a"], best=values["b"], comparison=comparison)


def keep(folder: Path, final: Final) -> None:
    """Write it down, for a report after a restart."""
    (folder / FILE).write_text(final.model_dump_json(indent=1))


def kept(folder: Path, best: Tried) -> Final | None:
    """What was written for this best point, if anything."""
    path = folder / FILE
    if not path.exists():
        return None
    found = Final.model_validate(orjson.loads(path.read_bytes()))
    return found if found.point == best.point else None
