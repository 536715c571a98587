"""Weights from the page cache to the device: this program's way beside others, in one run.

    PYTHONPATH=runtime:. python -m benchmarks.loading --model sd35-medium [--folder /tmp/models]

A folder of the published shapes with random weights is written first. Pipelines are then read
whole, in turns: into RAM and moved (what release 5c0f328 did), and straight to the device. The raw
lines read the same files without a model around them: safetensors' own reader, and fastsafetensors
and the Run:ai streamer where they are installed. One JSON line each; GiB are 2**30 bytes.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from benchmarks.gpu_served import build
from benchmarks.random_models import SUBJECTS

DEVICE = "cuda"


def read(folder: Path, **options: Any) -> Any:
    """The pipeline; parts that the folder leaves out are named, as the server names them."""
    from diffusers import DiffusionPipeline

    index = json.loads((folder / "model_index.json").read_text())
    absent = [name for name, value in index.items() if value in (None, [None, None])]
    options |= dict.fromkeys(absent)
    return DiffusionPipeline.from_pretrained(folder, dtype=torch.bfloat16, **options)


def moved(folder: Path) -> Any:
    return read(folder).to(DEVICE)


def straight(folder: Path) -> Any:
    return read(folder, device_map=DEVICE)


def raw(files: list[Path]) -> list[Any]:
    from safetensors.torch import load_file

    return [load_file(file, device=DEVICE) for file in files]


def fast(files: list[Path]) -> list[Any]:
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    loader = SafeTensorsFileLoader(SingleGroup(), torch.device(DEVICE, 0), nogds=True)
    loader.add_filenames({0: [str(file) for file in files]})
    buffer = loader.copy_files_to_device()
    return [{name: buffer.get_tensor(name) for name in buffer.key_to_rank_lidx}]


def streamed(files: list[Path]) -> list[Any]:
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_files([str(file) for file in files])
        return [{name: tensor.to(DEVICE) for name, tensor in streamer.get_tensors()}]


def seconds(work: Callable[[], Any]) -> float:
    gc.collect()
    torch.cuda.empty_cache()
    began = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    taken = time.perf_counter() - began
    del result
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="sd35-medium", choices=list(SUBJECTS))
    parser.add_argument("--folder", type=Path, default=Path("/tmp/models"))
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    folder = build(options.model, options.folder)
    files = sorted(folder.rglob("*.safetensors"))
    size = sum(file.stat().st_size for file in files) / 2**30
    ways: dict[str, Callable[[], Any]] = {
        "into RAM, then moved": lambda: moved(folder),
        "straight to the device": lambda: straight(folder),
        "raw: safetensors": lambda: raw(files),
    }
    if importlib.util.find_spec("fastsafetensors"):
        ways["raw: fastsafetensors"] = lambda: fast(files)
    if importlib.util.find_spec("runai_model_streamer"):
        ways["raw: Run:ai streamer"] = lambda: streamed(files)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.turns):
        for name, work in ways.items():
            try:
                taken[name].append(seconds(work))
            except Exception as error:  # a reader that fails here ends no other's line
                print(json.dumps({"way": name, "failed": repr(error)[:200]}), flush=True)
    for name, values in taken.items():
        if values:
            median = statistics.median(values)
            line = {"way": name, "gib": round(size, 2), "first_s": round(values[0], 2)}
            print(json.dumps(line | {"s": round(median, 2), "gib_per_s": round(size / median, 2)}))


if __name__ == "__main__":
    main()
