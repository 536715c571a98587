"""`atelier tune` on the built-in language model over four settings: killed twice, resumed, and
compared with the full grid.

    python -m benchmarks.tuning [--out out/tuning] [--trials 11]

The search must find the grid's best point with under half of the grid's trials, and `atelier serve`
must take the profile that it writes.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import yaml

from atelier.tune.plan import TunePlan, read_plan
from atelier.tune.serving import TrialFailed
from atelier.tune.space import Point
from atelier.tune.trial import run_trial
from benchmarks.arms import server_process

PLAN = {
    "start": {
        "model_id": "builtin/scenes",
        "log_level": "warning",
        "max_num_seqs": 1,
        "dtype": "bfloat16",
        "omp_num_threads": 4,
        "max_num_batched_tokens": 16,
    },
    "space": {
        "max_num_seqs": [1, 4, 16],
        "dtype": ["bfloat16", "float32"],
        "omp_num_threads": [4, 1],
        "max_num_batched_tokens": [16, 512],
    },
    "load": {
        "users": 16,
        "requests": 48,
        "warmup": 16,
        "prompt_tokens": 150,
        "output_tokens": 48,
    },
    "goal": "output_tokens_per_s",
    "repeats": 1,
    "final_rounds": 2,
}
GRID_LOAD = {"requests": 24, "warmup": 8}
"""Half of the search's: a point with one slot takes half a minute even so."""
KILL_AFTER = (2, 5)
"""Trials that are done when the search is killed in the middle of the next."""
INTO_TRIAL_S = 5


def search(plan: Path, out: Path, trials: int, kill_after: int | None = None) -> None:
    """Run `atelier tune`; with `kill_after`, end it with SIGKILL during the trial after so many."""
    command = [sys.executable, "-m", "atelier", "tune", str(plan), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--trials", str(trials)], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout
    for line in process.stdout:
        print("  " + line.rstrip(), flush=True)
        if kill_after is not None and line.startswith(f"[{kill_after}/"):
            time.sleep(INTO_TRIAL_S)
            process.send_signal(signal.SIGKILL)
            print(f"  killed {INTO_TRIAL_S} s into the trial after {kill_after}", flush=True)
            break
    process.wait()
    if kill_after is None and process.returncode:
        sys.exit(f"atelier tune ended with code {process.returncode}")


def grid(plan: TunePlan, out: Path) -> list[tuple[float, Point]]:
    """Every point, measured as a trial is, best first; kept on disk, so that it goes on too."""
    store = out / "grid.json"
    known = json.loads(store.read_text()) if store.exists() else {}
    values = (dimension for dimension in plan.space.values() if isinstance(dimension, list))
    load = plan.load.model_copy(update=GRID_LOAD)
    plan = plan.model_copy(update={"load": load})
    for number, chosen in enumerate(reversed(list(itertools.product(*values)))):
        point = dict(zip(plan.space, chosen, strict=True))
        name = json.dumps(point)
        if name not in known:
            try:
                done = asyncio.run(run_trial(plan, point, out, f"grid-{number:02}"))
                known[name] = done.value
            except TrialFailed as failure:
                print(f"  {point}: {failure.message}")
                known[name] = 0.0
            store.write_text(json.dumps(known, indent=1))
        print(f"  {known[name]:8.1f}  {point}", flush=True)
    return sorted(
        ((value, json.loads(name)) for name, value in known.items()), key=lambda row: -row[0]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/tuning"))
    parser.add_argument("--trials", type=int, default=11)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    plan = options.out / "plan.yaml"
    plan.write_text(yaml.safe_dump(PLAN, sort_keys=False))
    print("the search:")
    for count in KILL_AFTER:
        search(plan, options.out, options.trials, count)
    search(plan, options.out, options.trials)
    found = json.loads((options.out / "tune.json").read_text())
    print("the full grid:")
    ranked = grid(read_plan(plan), options.out)
    best = found["best"]["point"]
    place = [point for _, point in ranked].index(best) + 1
    value = next(value for value, point in ranked if point == best)
    print(f"the grid's best: {ranked[0][1]} with {ranked[0][0]:.1f}")
    print(
        f"found with {len(found['trials'])} of {len(ranked)} trials, {found['killed']} cut short:"
        f" place {place} of the grid, {value / ranked[0][0]:.3f} of its best"
    )
    with server_process(profile=str(options.out / "best.yaml")) as url:
        served = httpx.get(f"{url}/v2/models/model").json()["properties"]
    print(f"the profile is served: {served['slots']} slots, {served['dtype']}")
    sys.exit(place > 1 or 2 * len(found["trials"]) >= len(ranked))


if __name__ == "__main__":
    main()
