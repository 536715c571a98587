"""Seconds per picture on one GPU: bare diffusers, this engine alone, this engine with eight
requests in flight, the floor.

    PYTHONPATH=runtime:. python -m benchmarks.gpu --out results.json [--model sd35-medium] [--side
    1024] [--arms ...]

The floor is the arithmetic of the picture (denoiser and decoder, counted by torch) over the matrix
rate measured in the same run. Every arm draws the same requests; a warm-up comes first, so compile
time is reported apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from atelier.events import Failed
from atelier.images import compilation
from atelier.images.drawing import PreparedRequest
from atelier.images.engine import EngineLimits, ImageEngine
from atelier.images.interception import Gate, install
from benchmarks.random_models import SUBJECTS, Subject


def matmul_rate() -> float:
    """FLOP/s of a large bf16 matrix product on random data."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - began)


def picture_flops(subject: Subject, side: int) -> float:
    """FLOPs of one picture: the denoiser's steps, as many rows as guidance needs, and one
    decode."""
    with torch.no_grad(), FlopCounterMode(display=False) as one:
        draw(subject, side, steps=1)
    with torch.no_grad(), FlopCounterMode(display=False) as two:
        draw(subject, side, steps=2)
    step = two.get_total_flops() - one.get_total_flops()
    return one.get_total_flops() + step * (subject.steps - 1)


def draw(subject: Subject, side: int, steps: int) -> None:
    """One call of the bare pipeline."""
    subject.pipeline(
        **subject.arguments(side, 0),
        num_inference_steps=steps,
        output_type="pt",
        generator=torch.Generator("cpu").manual_seed(0),
    ).images.cpu()


def timed(work: Callable[[], Any], repeats: int) -> float:
    """Median seconds."""
    seconds = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[len(seconds) // 2]


class ServedFigures:
    """The engine around the subject's pipeline."""

    def __init__(self, subject: Subject, graph_bytes: int = 0) -> None:
        self.subject = subject
        self._engine = ImageEngine(EngineLimits(rows=16, queue=64, graph_bytes=graph_bytes))

    def draw(self, side: int, count: int, steps: int) -> None:
        """`count` requests at once; returns when all are done."""
        asyncio.run(self._draw(side, count, steps))

    async def _draw(self, side: int, count: int, steps: int) -> None:
        streams = []
        for seed in range(count):
            arguments = self.subject.arguments(side, seed) | {
                "num_inference_steps": steps,
                "output_type": "pt",
            }
            streams.append(
                self._engine.submit(
                    PreparedRequest(self.subject.pipeline, arguments, seed, 1, float("inf"))
                )
            )
        for stream in streams:
            async for event in stream:
                if isinstance(event, Failed):
                    raise event.error

    def learnt(self) -> list[dict[str, Any]]:
        """What the scheduler knows of calls: rows (from, by powers of two) and rows a second."""
        return self._engine.scheduler.pace.table()

    def close(self) -> None:
        self._engine.close()


def measure(
    name: str, sides: list[int], arms: list[str], repeats: int, in_flight: int
) -> list[dict[str, Any]]:
    """All arms of one model. An arm that fails is reported, and ends the model's list: arms build
    on each other."""
    rate = matmul_rate()
    subject = SUBJECTS[name]("cuda", torch.bfloat16)
    subject.pipeline.set_progress_bar_config(disable=True)
    rows = {
        side: {"model": name, "side": side, "floor_s": picture_flops(subject, side) / rate}
        for side in sides
    }
    print(f"{name}: matmul {rate / 1e12:.0f} TFLOP/s", flush=True)
    for side in sides:
        draw(subject, side, 3)
        rows[side]["bare_eager_s"] = timed(partial(draw, subject, side, subject.steps), repeats)
        report(rows[side])
    gates = install(subject.pipeline)
    for arm in arms:
        served = ServedFigures(subject, 16 << 30 if arm.endswith("graphs") else 0)
        try:
            prepare(subject, gates, arm)
            for side in sides:
                rows[side] |= {
                    f"{arm}_{key}": value
                    for key, value in serve(served, side, repeats, in_flight).items()
                }
                report(rows[side])
        except Exception:
            logging.exception("%s, arm %s", name, arm)
            break
        finally:
            served.close()
    return list(rows.values())


def serve(served: ServedFigures, side: int, repeats: int, in_flight: int) -> dict[str, float]:
    """Seconds of the warm-up, of a picture drawn alone, and of one of `in_flight` drawn together
    (none if that is 1)."""
    steps = served.subject.steps
    began = time.perf_counter()
    for count in sorted({1, 2, in_flight}):
        served.draw(side, count, 3)
    figures = {"warmup_s": time.perf_counter() - began}
    figures["alone_s"] = timed(partial(served.draw, side, 1, steps), repeats)
    if in_flight > 1:
        figures[f"per_picture_of_{in_flight}_s"] = (
            timed(partial(served.draw, side, in_flight, steps), 1) / in_flight
        )
    return figures


def prepare(subject: Subject, gates: list[Gate], arm: str) -> None:
    """Bring the model into the state that an arm measures. Arms build on each other in the order
    given."""
    if arm == "regional":
        compilation.speed_up(gates, "regional")
    elif arm == "vae":
        subject.pipeline.vae.decoder.forward = torch.compile(
            subject.pipeline.vae.decoder.forward, dynamic=False
        )
    elif arm == "fuse":
        subject.denoiser.fuse_qkv_projections()
    elif arm == "cudnn":
        subject.denoiser.set_attention_backend("_native_cudnn")
    elif arm == "fp8":
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, quantize_
        from torchao.quantization.granularity import PerRow

        def is_large(module: torch.nn.Module, _: str) -> bool:
            return isinstance(module, torch.nn.Linear) and min(module.weight.shape) >= 1024

        quantize_(
            subject.denoiser,
            Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()),
            is_large,
        )


def report(row: dict[str, Any]) -> None:
    figures = {
        key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()
    }
    print(json.dumps(figures), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=list(SUBJECTS))
    parser.add_argument("--side", action="append", type=int)
    parser.add_argument("--arms", default="eager,regional")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--in-flight", type=int, default=8, help="requests at once; 1 measures lone ones only"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    results = []
    with torch.no_grad():
        for name in options.model or list(SUBJECTS):
            arms, sides = options.arms.split(","), options.side or [512, 1024]
            results += measure(name, sides, arms, options.repeats, options.in_flight)
            torch.cuda.empty_cache()
            if options.out:
                options.out.write_text(
                    json.dumps({"device": torch.cuda.get_device_name(), "rows": results}, indent=2)
                )


if __name__ == "__main__":
    main()
