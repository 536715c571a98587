"""What serving costs: p50 of a v1 predict over HTTP against the same call of the bare pipeline, in
one run, as a ratio.

    python -m benchmarks.overhead [--model builtin/shapes] [--steps 20] [--pairs 15]

The two are called in turn, so that a machine whose speed drifts does not favour one of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import httpx

from benchmarks.arms import PROMPT, bare_pipeline, server_process


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="builtin/shapes")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=15)
    options = parser.parse_args()
    draw = bare_pipeline(options.model)
    served, bare = [], []
    with server_process(model_id=options.model) as url, httpx.Client(timeout=300) as client:
        instance = {"prompt": PROMPT, "num_inference_steps": options.steps, "guidance_scale": 5.0}
        for seed in range(-2, options.pairs):
            began = time.perf_counter()
            body = {"instances": [instance | {"seed": seed + 2}]}
            client.post(f"{url}/v1/models/model:predict", json=body).raise_for_status()
            between = time.perf_counter()
            draw(options.steps, seed + 2)
            if seed >= 0:  # the first two of each warm up
                served.append(between - began)
                bare.append(time.perf_counter() - between)
    p50 = statistics.median(served), statistics.median(bare)
    ratios = sorted(a / b for a, b in zip(served, bare, strict=True))
    print(
        json.dumps(
            {
                "http_p50_s": p50[0],
                "bare_p50_s": p50[1],
                "ratio": p50[0] / p50[1],
                "pairwise": ratios,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
