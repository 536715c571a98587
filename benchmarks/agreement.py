"""`atelier bench` beside AIPerf, in turns against one server: do both tell the same?

    python -m benchmarks.agreement --aiperf .engines/aiperf/bin/aiperf [--model builtin/scenes]
    python -m benchmarks.agreement --aiperf ... --url http://127.0.0.1:8080

Prompts have the same lengths in both and are different in every turn, so that no prefix cache helps
whoever comes second. Two comparisons are made. Apart: figures of AIPerf's summary against ours of
other requests, medians over all turns. On the same requests: AIPerf's summary against our figures
from AIPerf's records.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from atelier.bench import aiperf
from atelier.bench.driver import measure
from atelier.bench.figures import RunFigures, figures
from atelier.bench.load import OfferedLoad
from atelier.bench.target import Target, connected
from benchmarks.ab import server

BOUND = 0.03
METRICS = {
    "ttft mean": ("time_to_first_token", "avg", lambda f: 1000 * f.ttft.mean),
    "ttft p50": ("time_to_first_token", "p50", lambda f: 1000 * f.ttft.p50),
    "tpot mean": ("inter_token_latency", "avg", lambda f: 1000 * f.tpot.mean),
    "tpot p50": ("inter_token_latency", "p50", lambda f: 1000 * f.tpot.p50),
    "e2e mean": ("request_latency", "avg", lambda f: 1000 * f.e2e.mean),
    "e2e p50": ("request_latency", "p50", lambda f: 1000 * f.e2e.p50),
    "output tokens/s": ("output_token_throughput", "avg", lambda f: f.output_tokens_per_s),
    "output tokens": ("total_usage_completion_tokens", "avg", lambda f: f.tokens.usage),
}
"""Our name, AIPerf's and its statistic, and our figure in AIPerf's unit."""


def ours(found: RunFigures) -> dict[str, float]:
    return {name: of(found) for name, (_, _, of) in METRICS.items()}


async def theirs(
    program: Path, target: Target, load: OfferedLoad
) -> tuple[dict[str, float], dict[str, float]]:
    """AIPerf's summary, and our figures from its records."""
    with tempfile.TemporaryDirectory() as name:
        await aiperf.run(program, target, load, Path(name))
        summary = json.loads((Path(name) / "out" / aiperf.SUMMARY).read_text())
        records = aiperf.read_records(Path(name) / "out" / aiperf.EXPORT)
    told = {name: summary[one][share] for name, (one, share, _) in METRICS.items()}
    return told, ours(figures(records))


async def turns(
    url: str, program: Path, load: OfferedLoad, count: int
) -> dict[str, dict[str, list[float]]]:
    """For each way to measure, every metric's figure of every turn."""
    ways = ("atelier", "aiperf", "from aiperf's records")
    seen: dict[str, dict[str, list[float]]] = {way: {name: [] for name in METRICS} for way in ways}
    async with connected(url) as target:
        for turn in range(count):
            for who in ("atelier", "aiperf") if turn % 2 else ("aiperf", "atelier"):
                own = load.model_copy(update={"seed": 2 * turn + (who == "aiperf")})
                if who == "atelier":
                    told = {who: ours(figures(await measure(target, own)))}
                else:
                    summary, again = await theirs(program, target, own)
                    told = {who: summary, "from aiperf's records": again}
                for way, values in told.items():
                    for name, value in values.items():
                        seen[way][name].append(value)
            told = "  ".join(
                f"{name} {seen['atelier'][name][-1]:.2f} {seen['aiperf'][name][-1]:.2f}"
                for name in ("ttft p50", "tpot p50", "e2e p50")
            )
            print(f"turn {turn + 1} of {count}: {told}", flush=True)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--aiperf", type=Path, required=True)
    parser.add_argument("--model", default="builtin/scenes")
    parser.add_argument("--url", default="")
    parser.add_argument("--users", type=int, default=None)
    parser.add_argument("--rate", type=float, default=None)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    load = OfferedLoad(
        users=options.users,
        rate=options.rate,
        requests=options.requests,
        prompt_tokens=[options.prompt_tokens],
        output_tokens=options.output_tokens,
        seconds=600,
    )
    # The client's processes take no time from the server's: AIPerf has a dozen.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[: len(cores) // 2])
    with server(options.url, options.model) as url:
        os.sched_setaffinity(0, cores[len(cores) // 2 :])
        seen = asyncio.run(turns(url, options.aiperf.resolve(), load, options.turns))
    print(f"{load.title}, {load.requests} requests a turn, {options.turns} turns each; medians")
    print(f"{'':17}{'atelier':>10}{'aiperf':>10}{'ratio':>8}   same requests")
    worst = 0.0
    for name in METRICS:
        if name == "output tokens/s" and load.users is None:
            continue  # it is the rate's, and the rate is drawn by chance
        own, other = (statistics.median(seen[way][name]) for way in ("atelier", "aiperf"))
        pairs = zip(seen["from aiperf's records"][name], seen["aiperf"][name], strict=True)
        same = statistics.median(a / b for a, b in pairs)
        if "mean" not in name:  # a client that is busy for a moment moves means, not medians
            worst = max(worst, abs(own / other - 1))
        print(f"{name:17}{own:10.2f}{other:10.2f}{own / other:8.3f}{same:16.4f}")
    print(f"furthest apart, means aside: {worst:.1%}")
    sys.exit(worst > BOUND)


if __name__ == "__main__":
    main()
