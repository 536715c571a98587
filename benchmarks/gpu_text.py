"""The embedded text engine on one GPU against transformers' own `generate` and `generate_batch`.

A Llama-3.1-8B-shaped model with random weights is built on the device, so nothing is downloaded;
only torch, transformers and tokenizers are needed. Each row of the table is one way to run it; 1,
64 and 256 requests of 128 + 128 tokens. Usage: python benchmarks/gpu_text.py [--small] [--only
NAME,...] [--out results.json]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

from atelier.events import Failed, Token
from atelier.text.embedded import attention, fusion
from atelier.text.embedded.admission import ContextLimits, Vocabulary
from atelier.text.embedded.capacity import Capacity
from atelier.text.embedded.engine import TransformersEngine
from atelier.text.embedded.runner import Runner
from atelier.text.embedded.slots import SlotCache

PROMPT = ANSWER = 128
STREAMS = (1, 64, 256)


def build(small: bool, device: torch.device) -> Any:
    """The model, filled on the device; `small` is for trying the script on a CPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    }
    if small:
        shape = {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
        }
    config = LlamaConfig(
        **shape,
        num_key_value_heads=8 if not small else 2,
        vocab_size=128256 if not small else 1024,
        max_position_embeddings=131072,
        rope_theta=500000.0,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
        attn_implementation="sdpa",
    )
    torch.set_default_dtype(torch.bfloat16 if not small else torch.float32)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device=device)
    for parameter in model.parameters():
        (
            torch.nn.init.normal_(parameter, std=0.02)
            if parameter.dim() > 1
            else torch.nn.init.ones_(parameter)
        )
    rotary = type(model.model.rotary_emb)(config)  # its buffers are computed, not stored
    model.model.rotary_emb = rotary.to(device)
    torch.set_default_dtype(torch.float32)
    return model.eval()


def tokenizer_of(size: int) -> Any:
    """A stand-in whose token n is the word ` wn`; engines need one to turn ids into text."""
    from tokenizers import Tokenizer, models

    words = {f" w{index}": index for index in range(size)}
    return SimpleNamespace(backend_tokenizer=Tokenizer(models.WordLevel(words, unk_token=" w0")))


def ask() -> Any:
    """A greedy request of exactly ANSWER tokens, in the form of a TextRequest."""
    return SimpleNamespace(
        max_tokens=ANSWER, seed=None, n=1, stop=(), stop_token_ids=(), ignore_eos=True,
        skip_special_tokens=True,
        logprobs=None, logit_bias={}, timeout=None, temperature=0.0, top_k=None, top_p=None,
        min_p=None,
        repetition_penalty=None, presence_penalty=0.0, frequency_penalty=0.0,
        response_format=SimpleNamespace(type="text"),
    )  # fmt: skip


async def serve_all(engine: TransformersEngine, prompts: list[list[int]]) -> dict[str, float]:
    """Send all prompts at once; tokens per second over all, and of decoding alone once every stream
    has begun."""
    begun = time.perf_counter()
    times: list[list[float]] = []

    async def one(prompt: list[int]) -> int:
        seen: list[float] = []
        times.append(seen)
        count = 0
        async for event in engine.submit(ask(), prompt):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Token):
                seen.append(time.perf_counter())
                count += len(event.ids)
        return count

    counts = await asyncio.gather(*(one(prompt) for prompt in prompts))
    ended = time.perf_counter()
    all_begun = max(seen[0] for seen in times)
    after = sum(1 for seen in times for moment in seen if moment > all_begun)
    gaps = [b - a for seen in times for a, b in itertools.pairwise(seen)]
    return {
        "tokens_per_s": sum(counts) / (ended - begun),
        "decode_tokens_per_s": after / max(ended - all_begun, 1e-9),
        "ttft_ms": 1000 * statistics.median(seen[0] - begun for seen in times),
        "itl_ms": 1000 * statistics.median(gaps),
    }


def measure_ours(
    model: Any, name: str, streams: int, prompts: list[list[int]], **options: bool
) -> dict[str, float]:
    """Our engine with some options, warmed by one run of the same size."""
    attention.register()
    model.set_attn_implementation(attention.NAME)
    capacity = Capacity(max(STREAMS), 512, 0)
    runner = Runner(
        model,
        SlotCache(capacity.slots, capacity.context),
        graphs=options["graphs"],
        flash=options["flash"],
    )
    if options.get("fused"):
        print(
            f"  {fusion.fuse_norms(model)} norms fused; rotary compiled:"
            f" {fusion.compile_rotary(model)}"
        )
    vocabulary = Vocabulary(
        tokenizer_of(model.config.vocab_size), model.config.vocab_size, frozenset()
    )
    engine = TransformersEngine(
        runner, vocabulary, ContextLimits(capacity.context, 1024, 600, prefill_tokens=8192)
    )
    try:
        results = {}
        for count in [n for n in STREAMS if n <= streams]:
            asyncio.run(serve_all(engine, prompts[:count]))
            shuffled = [prompt[::-1] for prompt in prompts[:count]]  # nothing of it is in the cache
            results[count] = asyncio.run(serve_all(engine, shuffled))
            report(name, count, results[count])
        if runner.graphs:
            profile(runner, name)
    finally:
        engine.close()
    return results[max(results)]


def profile(runner: Runner, name: str) -> None:
    """Milliseconds of one replayed step, without sampling, and the kernels that take longest."""
    for rows in STREAMS:
        for slot in range(rows):
            runner.join(slot, 200)
        runner.decode(rows, 200)
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(20):
            runner.decode(rows, 200)
        torch.cuda.synchronize()
        print(
            f"  {name}: one step of {rows} rows takes"
            f" {1000 * (time.perf_counter() - begun) / 20:.2f} ms",
            flush=True,
        )
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        runner.decode(1, 200)
        torch.cuda.synchronize()
    print(
        trace.key_averages().table(
            sort_by="cuda_time_total", row_limit=12, max_name_column_width=70
        ),
        flush=True,
    )


@torch.no_grad()
def measure_generate(
    model: Any, name: str, streams: int, prompts: list[list[int]]
) -> dict[str, float]:
    """transformers' generate over one padded batch."""
    model.set_attn_implementation("sdpa")
    result = {}
    for count in [n for n in STREAMS if n <= streams]:
        ids = torch.tensor(prompts[:count], device=model.device)
        begun = time.perf_counter()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER, do_sample=False
        )
        torch.cuda.synchronize() if ids.is_cuda else None
        result = {"tokens_per_s": count * ANSWER / (time.perf_counter() - begun)}
        report(name, count, result)
    return result


def measure_batch(
    model: Any, name: str, streams: int, prompts: list[list[int]]
) -> dict[str, float]:
    """transformers' continuous batching, as `generate_batch` offers it."""
    from transformers import GenerationConfig

    model.set_attn_implementation("sdpa")
    result = {}
    for count in [n for n in STREAMS if n <= streams]:
        settings = GenerationConfig(max_new_tokens=ANSWER, do_sample=False, eos_token_id=-1)
        begun = time.perf_counter()
        model.generate_batch(prompts[:count], generation_config=settings)
        result = {"tokens_per_s": count * ANSWER / (time.perf_counter() - begun)}
        report(name, count, result)
    return result


def report(name: str, streams: int, result: dict[str, float]) -> None:
    """One line of the table, at once, so that a stopped run leaves what it has."""
    figures = "  ".join(f"{key} {value:.1f}" for key, value in result.items())
    print(f"{name:24} {streams:4} streams  {figures}", flush=True)
    ROWS.append({"way": name, "streams": streams} | result)


ROWS: list[dict[str, Any]] = []
WAYS: dict[str, Callable[..., Any]] = {
    "generate": measure_generate,
    "generate_batch": measure_batch,
    "eager": lambda *a: measure_ours(*a, graphs=False, flash=False),
    "graphs-sdpa": lambda *a: measure_ours(*a, graphs=True, flash=False),
    "graphs-flash": lambda *a: measure_ours(*a, graphs=True, flash=True),
    "graphs-flash-fused": lambda *a: measure_ours(*a, graphs=True, flash=True, fused=True),
}


def main() -> None:
    """Run the chosen ways; one that fails is reported and the next goes on."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--small", action="store_true")
    arguments.add_argument("--only", default=",".join(WAYS))
    arguments.add_argument("--streams", type=int, default=max(STREAMS))
    arguments.add_argument("--out", type=Path)
    chosen = arguments.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    begun = time.perf_counter()
    model = build(chosen.small, device)
    print(
        f"model built in {time.perf_counter() - begun:.1f} s on {device}, torch"
        f" {torch.__version__}",
        flush=True,
    )
    generator = torch.Generator().manual_seed(0)
    size = model.config.vocab_size
    prompts = torch.randint(0, size, (max(STREAMS), PROMPT), generator=generator).tolist()
    for name in chosen.only.split(","):
        try:
            WAYS[name](model, name, chosen.streams, prompts)
        except Exception:
            print(f"{name} failed:\n{traceback.format_exc(limit=6)}", flush=True)
        gc.collect()  # engines and graphs hold each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if chosen.out:
            chosen.out.write_text(json.dumps(ROWS, indent=1))


if __name__ == "__main__":
    main()
