"""Sixteen mixed requests at once: this server, with MAX_BATCH_SIZE=1, with two workers, and a bare
diffusers loop, in one run.

    python -m benchmarks.serving [--model builtin/shapes] [--rounds 2]

Also: how long a 4-step request takes while 50-step requests run, against its time alone. Only
loopback is used, the number of requests is fixed, and their bodies are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from typing import Any

import httpx

from benchmarks.arms import bare_pipeline, server_process

PROMPTS = (
    "a red circle on a blue background",
    "a green square above a yellow star",
    "a large purple triangle on a white background",
    "a small orange circle left of a blue square",
)
REQUESTS = [
    {
        "prompt": PROMPTS[index % 4],
        "num_inference_steps": (8, 12, 20, 28)[index // 4],
        "guidance_scale": (3.0, 5.0, 7.0)[index % 3],
        "seed": index,
    }
    for index in range(16)
]
GAP_S = 0.05  # between arrivals


async def predict(
    client: httpx.AsyncClient, url: str, instance: dict[str, Any], delay: float = 0
) -> float:
    """Seconds of one request, counted from its own start."""
    await asyncio.sleep(delay)
    began = time.perf_counter()
    answer = await client.post(f"{url}/v1/models/model:predict", json={"instances": [instance]})
    answer.raise_for_status()
    return time.perf_counter() - began


async def load(url: str) -> dict[str, float]:
    """All requests, arriving one after the other, and what a client saw of it."""
    async with httpx.AsyncClient(timeout=600) as client:
        began = time.perf_counter()
        jobs = [
            predict(client, url, request, index * GAP_S) for index, request in enumerate(REQUESTS)
        ]
        seconds = sorted(await asyncio.gather(*jobs))
        return _summary(time.perf_counter() - began, seconds)


async def short_behind_long(url: str) -> dict[str, float]:
    """A 4-step request alone, and while four 50-step requests run."""
    short = REQUESTS[0] | {"num_inference_steps": 4}
    long = REQUESTS[1] | {"num_inference_steps": 50}
    async with httpx.AsyncClient(timeout=600) as client:
        await predict(client, url, short)
        alone = await predict(client, url, short)
        running = [
            asyncio.create_task(predict(client, url, long | {"seed": seed})) for seed in range(4)
        ]
        beside = await predict(client, url, short, delay=1.0)
        await asyncio.gather(*running)
    return {"alone_s": alone, "beside_four_long_s": beside, "ratio": beside / alone}


def bare_loop(model: str) -> dict[str, float]:
    """The same requests one after the other through plain diffusers; latency counts from each one's
    arrival."""
    draw = bare_pipeline(model)
    draw(2, 0)
    seconds, began = [], time.perf_counter()
    for index, request in enumerate(REQUESTS):
        draw(int(request["num_inference_steps"]), index)
        seconds.append(time.perf_counter() - began - index * GAP_S)
    return _summary(time.perf_counter() - began, sorted(seconds))


def _summary(total: float, seconds: list[float]) -> dict[str, float]:
    return {
        "pictures_per_s": len(seconds) / total,
        "mean_s": statistics.mean(seconds),
        "p50_s": statistics.median(seconds),
        "p95_s": seconds[round(0.95 * (len(seconds) - 1))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="builtin/shapes")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    print("requests, one every", GAP_S, "s:")
    print("\n".join(f"  {json.dumps(request)}" for request in REQUESTS))
    for _ in range(options.rounds):
        results: dict[str, dict[str, float]] = {}
        with server_process(model_id=options.model) as url:
            asyncio.run(load(url))
            results["batched"] = asyncio.run(load(url))
            results["4 steps beside 50"] = asyncio.run(short_behind_long(url))
        with server_process(model_id=options.model, max_batch_size="1") as url:
            asyncio.run(load(url))
            results["MAX_BATCH_SIZE=1"] = asyncio.run(load(url))
        # One worker has one core, so two are compared at the same cores each.
        with server_process(model_id=options.model, data_parallel_size="2") as url:
            asyncio.run(load(url))
            results["two workers"] = asyncio.run(load(url))
        results["bare diffusers loop"] = bare_loop(options.model)
        for name, figures in results.items():
            print(f"{name:20}", "  ".join(f"{key} {value:.3f}" for key, value in figures.items()))
        batched = results["batched"]["pictures_per_s"]
        for other in ("MAX_BATCH_SIZE=1", "bare diffusers loop"):
            print(f"throughput against {other}: {batched / results[other]['pictures_per_s']:.2f}")
        two = results["two workers"]["pictures_per_s"] / batched
        print(f"two workers against one: {two:.2f}", flush=True)


if __name__ == "__main__":
    main()
