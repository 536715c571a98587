"""Tokens per second of the embedded text engine, in one run against what transformers offers
itself.

Three ways to answer 1, 8 and 32 requests of 64 + 128 tokens with the same model on the CPU:
`atelier serve` and `transformers serve --continuous-batching`, both asked over HTTP with streams,
and plain `generate` over one padded batch without any server. Usage: python benchmarks/text.py
[--model builtin/scenes] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp

from atelier.children import free_port

ROOT = Path(__file__).parents[1]
PROMPT, ANSWER = 64, 128
STREAMS = (1, 8, 32)

GENERATE = """
import json, sys, time, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
streams, prompt, answer, rounds = map(int, sys.argv[2:])
ids = torch.randint(10, 1000, (streams, prompt), generator=torch.Generator().manual_seed(0))
rates = []
for _ in range(rounds + 1):
    begun = time.perf_counter()
    model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=answer, min_new_tokens=answer,
        do_sample=False,
    )
    rates.append(streams * answer / (time.perf_counter() - begun))
print(json.dumps(rates[1:]))
"""


def environment() -> dict[str, str]:
    """One thread an operation: on a shared machine two were measured nine times slower."""
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT / 'runtime'}:{ROOT}",
        "HF_HUB_OFFLINE": "1",
    }


@contextlib.contextmanager
def server(command: list[str], url: str, **settings: str) -> Iterator[None]:
    """A server process, ready when `url` answers 200."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=environment() | settings, cwd=ROOT, stdout=log, stderr=log
        )
        try:
            asyncio.run(_ready(url, process))
            yield
        except BaseException:
            log.seek(0)
            print(log.read().decode()[-2000:])
            raise
        finally:
            process.terminate()
            process.wait(30)


async def _ready(url: str, process: subprocess.Popen[bytes]) -> None:
    async with aiohttp.ClientSession() as session:
        while process.poll() is None:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as reply:
                    if reply.status == 200:
                        return
            await asyncio.sleep(0.3)
    raise RuntimeError(f"the server ended with {process.returncode}")


GO_ON = {
    "atelier": {"ignore_eos": True},
    "transformers serve": {
        "generation_config": json.dumps(
            {"max_new_tokens": ANSWER, "eos_token_id": -1, "do_sample": False}
        )
    },
}
"""How each server is told to go on past the end token."""


async def ask(
    url: str, model: str, prompts: list[str], go_on: dict[str, object]
) -> tuple[float, float]:
    """Stream all prompts at once: tokens per second over all, and the median time to the first
    piece in seconds."""
    body = {"model": model, "max_tokens": ANSWER, "temperature": 0, "stream": True} | go_on

    async def one(session: aiohttp.ClientSession, prompt: str) -> float:
        begun, first = time.perf_counter(), 0.0
        async with session.post(f"{url}/v1/completions", json=body | {"prompt": prompt}) as reply:
            if reply.status != 200:
                raise RuntimeError(await reply.text())
            async for _ in reply.content.iter_any():
                first = first or time.perf_counter() - begun
        return first

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        begun = time.perf_counter()
        firsts = await asyncio.gather(*(one(session, prompt) for prompt in prompts))
        return len(prompts) * ANSWER / (time.perf_counter() - begun), statistics.median(firsts)


def prompts_of(model: Path) -> list[str]:
    """Texts of PROMPT tokens, all different from the first token on."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    words = "a red circle above a blue square left of the large green star "
    texts = []
    for index in range(max(STREAMS)):
        ids = tokenizer(f"{index} " + words * 20).input_ids[:PROMPT]
        texts.append(tokenizer.decode(ids))
    return texts


def measure_server(
    url: str, model: str, prompts: list[str], rounds: int, go_on: dict[str, object]
) -> dict[int, tuple[float, float]]:
    """Median rate and first-piece time at every number of streams, after one warm-up round."""
    results = {}
    for streams in STREAMS:
        runs = [asyncio.run(ask(url, model, prompts[:streams], go_on)) for _ in range(rounds + 1)][
            1:
        ]
        results[streams] = (
            statistics.median(r for r, _ in runs),
            statistics.median(t for _, t in runs),
        )
    return results


def measure_generate(model: Path, rounds: int) -> dict[int, tuple[float, float]]:
    """The same without a server."""
    results = {}
    for streams in STREAMS:
        command = [
            sys.executable,
            "-c",
            GENERATE,
            *map(str, (model, streams, PROMPT, ANSWER, rounds)),
        ]
        out = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=True
        ).stdout
        results[streams] = statistics.median(json.loads(out)), 0.0
    return results


def main() -> None:
    """Measure and print the table."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument(
        "--model", type=Path, default=ROOT / "runtime" / "atelier" / "builtin" / "scenes"
    )
    arguments.add_argument("--rounds", type=int, default=3)
    chosen = arguments.parse_args()
    model, prompts = chosen.model.resolve(), prompts_of(chosen.model)
    results = {}
    port = free_port()
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
    url = f"http://127.0.0.1:{port}"
    with server(
        command,
        f"{url}/health",
        MODEL_ID=str(model),
        MODEL_NAME="m",
        DTYPE="float32",
        LOG_LEVEL="warning",
    ):
        results["atelier"] = measure_server(url, "m", prompts, chosen.rounds, GO_ON["atelier"])
    port = free_port()
    transformers = str(Path(sys.executable).parent / "transformers")
    options = [
        "--continuous-batching",
        "--cb-num-blocks",
        "512",
        "--cb-max-batch-tokens",
        "512",
        "--dtype",
        "float32",
    ]
    url = f"http://127.0.0.1:{port}"
    with server(
        [transformers, "serve", str(model), "--port", str(port), *options], f"{url}/health"
    ):
        results["transformers serve"] = measure_server(
            url, str(model), prompts, chosen.rounds, GO_ON["transformers serve"]
        )
    results["generate"] = measure_generate(model, chosen.rounds)
    print(f"{'':20}" + "".join(f"{n:>4} streams: tok/s  ttft ms  ratio" for n in STREAMS))
    for way, rows in results.items():
        cells = (
            f"{rate:17.0f} {1000 * first:8.1f} {results['atelier'][n][0] / rate:6.2f}"
            for n, (rate, first) in rows.items()
        )
        print(f"{way:20}" + "".join(cells))


if __name__ == "__main__":
    main()
