"""`atelier tune`: runs the search of a plan, or goes on with it, and writes what it found."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from types import FrameType

import orjson
from rich.console import Console

from atelier.tune.plan import TunePlan, read_plan
from atelier.tune.search import Heard, Search, Tried, describe
from atelier.tune.serving import TrialFailed

PROFILE, COMPONENT = "best.yaml", "component"


def run(path: Path, folder: Path, trials: int | None, key: str) -> bool:
    """Search, compare with the start, and write everything into the folder.

    Returns:
        Whether a best point was found.
    """
    plan = read_plan(path)
    if trials is not None:
        plan = plan.model_copy(update={"trials": trials})
    signal.signal(signal.SIGTERM, _as_interrupt)
    console = Console()
    console.width = max(console.width, 140) if not console.is_terminal else console.width
    search = Search(plan, folder, key)
    done = len(search.tried())
    if done:
        console.print(f"{folder}: goes on after {done} trials")

    def heard(one: Tried) -> None:
        told = f"[{len(search.tried())}/{plan.trials}] {describe(one, plan)}"
        console.print(told, markup=False, highlight=False, soft_wrap=True)

    try:
        search.run(heard)
        return _finish(search, plan, folder, key, console, heard)
    except KeyboardInterrupt:
        sys.exit(f"atelier: stopped; the same command goes on with the search in {folder}")


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    """A Job that is moved gets SIGTERM: the running server is stopped, the study stays whole."""
    raise KeyboardInterrupt


def _finish(
    search: Search, plan: TunePlan, folder: Path, key: str, console: Console, heard: Heard
) -> bool:
    from atelier.tune import final, outputs
    from atelier.tune.summary import Summary

    best, last = search.best(), None
    changes: list[outputs.Contribution] = []
    if best:
        search.add(outputs.lacking(search.tried(), plan, best), heard)
        changes = outputs.contributions(search.tried(), plan, best)
        outputs.write_profile(folder / PROFILE, plan, best)
        outputs.write_component(folder / COMPONENT, plan, best)
        if best.point != plan.start_point and plan.final_rounds:
            last = final.kept(folder, best)
            if last is None:
                try:
                    last = asyncio.run(final.face_off(plan, best, folder, key))
                    final.keep(folder, last)
                except TrialFailed as failure:
                    console.print(f"no final A/B: {failure.message}", markup=False)
    summary = Summary(plan, search.tried(), search.killed(), search.start(), best, changes, last)
    summary.show(console)
    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY
    (folder / "tune.json").write_bytes(orjson.dumps(summary.document(), option=options))
    (folder / "report.html").write_text(summary.page())
    if best:
        console.print(f"{folder / PROFILE}: PROFILE={folder / PROFILE} atelier serve")
        console.print(f"{folder / COMPONENT}: a component for an overlay")
    console.print(f"{folder / 'report.html'}: the report")
    return best is not None
