"""`atelier bench A A`, twenty times: how often a server is found different from itself.

    python -m benchmarks.ab [--runs 20] [--model builtin/scenes] [--users 1] [--url URL]

At least 19 of 20 must see no difference.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from atelier.bench.load import OfferedLoad
from atelier.bench.session import BenchWish, Session
from benchmarks.arms import server_process


@contextmanager
def server(url: str, model: str) -> Iterator[str]:
    """The server at `url`, or one of our own."""
    if url:
        yield url
    else:
        with server_process(model_id=model) as own:
            yield own


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--model", default="builtin/scenes")
    parser.add_argument("--users", type=int, default=1)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--url", default="")
    options = parser.parse_args()
    alike = 0
    with server(options.url, options.model) as url:
        for seed in range(options.runs):
            load = OfferedLoad(
                users=options.users, requests=options.requests, output_tokens=32, seed=seed
            )
            result = asyncio.run(Session(BenchWish([url, url], [load])).run())
            (comparison,) = result.comparisons
            alike += not comparison.different
            told = "  ".join(
                f"{one.metric} {one.ratio:.3f} [{one.ratio_low:.3f}, {one.ratio_high:.3f}]"
                for one in comparison.effects
            )
            print(
                f"{seed:3} {'different' if comparison.different else 'alike':9} {told}", flush=True
            )
    print(f"no difference in {alike} of {options.runs} runs")
    sys.exit(alike < options.runs * 19 / 20)


if __name__ == "__main__":
    main()
