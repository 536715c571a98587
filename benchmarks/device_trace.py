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
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from atelier.images import compilation
from atelier.images.interception import install
from benchmarks.gpu import ServedFigures
from benchmarks.random_models import SUBJECTS

GRAPH_BYTES = 16 << 30
SHOWN = 8  # kernels


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union: kernels of several streams may overlap."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


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
        compilation.compile_denoisers(install(subject.pipeline), "regional")
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
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        began = time.perf_counter()
        served.draw(options.side, options.in_flight, steps)
        wall = time.perf_counter() - began
    on_device = [one for one in trace.events() if one.device_type is DeviceType.CUDA]
    spans = [(one.time_range.start / 1e6, one.time_range.end / 1e6) for one in on_device]
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
        kernels[one.name[:80]] += one.time_range.elapsed_us()
    for name, microseconds in kernels.most_common(SHOWN):
        print(json.dumps({"kernel": name, "share": round(microseconds / 1e6 / busy, 3)}))
    if options.out:
        trace.export_chrome_trace(str(options.out))


if __name__ == "__main__":
    main()
