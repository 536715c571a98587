"""How busy the device is while the picture engine serves several requests, by torch's profiler.

    PYTHONPATH=runtime:. python -m benchmarks.device_trace --model sdxl --side 512 [--out FILE]

One JSON line a figure: the share of the wall time in which a kernel or a copy runs on the device,
the kernels that take most of it, and what the scheduler has learnt of calls by their rows. The
pictures before the trace compile, record graphs and let the scheduler try row counts.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from atelier.images import compilation
from atelier.images.interception import install
from benchmarks.gpu import ServedFigures
from benchmarks.random_models import SUBJECTS

GRAPH_BYTES = 16 << 30
SHOWN = 8  # kernels
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union: kernels of several streams may overlap."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def device_events(trace: profile, kept: Path | None) -> list[dict[str, Any]]:
    """Kernels, copies and fills of a trace, times in microseconds."""
    with tempfile.TemporaryDirectory() as folder:
        file = kept or Path(folder) / "trace.json"
        trace.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    return [one for one in events if one.get("cat") in ON_DEVICE and "dur" in one]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="sdxl", choices=list(SUBJECTS))
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--in-flight", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4, help="of pictures before the trace")
    parser.add_argument("--out", type=Path, help="the trace itself, for a browser's tracing page")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    told = {"model": options.model, "side": options.side, "in_flight": options.in_flight}
    with torch.no_grad():
        subject = SUBJECTS[options.model]("cuda", torch.bfloat16)
        subject.pipeline.set_progress_bar_config(disable=True)
        compilation.speed_up(install(subject.pipeline), "regional")
        served = ServedFigures(subject, GRAPH_BYTES)
        try:
            measure(served, options, told)
        finally:
            served.close()


def measure(served: ServedFigures, options: argparse.Namespace, told: dict[str, object]) -> None:
    steps = served.subject.steps
    for count in (1, *[options.in_flight] * options.rounds):
        began = time.perf_counter()
        served.draw(options.side, count, steps)
        each = (time.perf_counter() - began) / count
        print(json.dumps(told | {"round_of": count, "each_s": round(each, 3)}), flush=True)
    for line in served.learnt():
        print(json.dumps(told | line), flush=True)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        began = time.perf_counter()
        served.draw(options.side, options.in_flight, steps)
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
    on_device = device_events(trace, options.out)
    if not on_device:
        sys.exit("the profiler saw nothing on the device: is CUPTI usable here?")
    spans = [(one["ts"] / 1e6, (one["ts"] + one["dur"]) / 1e6) for one in on_device]
    busy, span = covered(spans), max(end for _, end in spans) - min(start for start, _ in spans)
    print(
        json.dumps(
            told
            | {
                "wall_s": round(wall, 3),
                "each_s": round(wall / options.in_flight, 3),
                "busy_share": round(busy / span, 3),
                "busy_share_of_wall": round(busy / wall, 3),
            }
        ),
        flush=True,
    )
    kernels: Counter[str] = Counter()
    for one in on_device:
        kernels[one["name"][:80]] += one["dur"]
    for name, microseconds in kernels.most_common(SHOWN):
        print(json.dumps({"kernel": name, "share": round(microseconds / 1e6 / busy, 3)}))


if __name__ == "__main__":
    main()
