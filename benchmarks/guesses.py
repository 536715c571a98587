"""Speculative decoding of the embedded engine against plain decoding, in one run.

Three kinds of prompts: one that the answer copies from, plain text to go on with, and random words.
Plain and guessing engines take turns on the same weights, so that what else the machine does meets
both; answers are compared token by token. Usage: python -m benchmarks.guesses [--model FOLDER]
[--draft FOLDER] [--rounds 3] [--dtype float32] [--streams 1 4 8] [--answer 96]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from atelier.events import Failed, Finished, Token
from atelier.settings import Settings
from atelier.text.embedded.admission import ContextLimits
from atelier.text.embedded.engine import TransformersEngine
from atelier.text.embedded.loading import Loaded, load
from atelier.text.request import make_request

ROOT = Path(__file__).parents[1]
CONTEXT = 512

LIST = "apples 12, pears 7, plums 31, cherries 48, figs 5, quinces 9, medlars 2, lemons 14"
PROMPTS = {
    "copy": f"The list: {LIST}. Once more, word by word, the list: {LIST}. And again, the list:",
    "prose": "Once upon a time, in a small village by the sea, there lived an old keeper who",
    "random": "torque violet seven ladder Oslo, unless brackish ninety quills",
}


async def answers(
    engine: TransformersEngine, prompts: list[list[int]], length: int
) -> tuple[Any, float]:
    """Tokens of each answer of that length with its usage, and seconds of all."""

    async def one(prompt: list[int]) -> tuple[list[int], Any]:
        request = make_request(prompt_ids=prompt, temperature=0, max_tokens=length, ignore_eos=True)
        said: list[int] = []
        async for event in engine.submit(request, prompt):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Token):
                said += event.ids
            if isinstance(event, Finished):
                return said, event.usage
        raise RuntimeError("the stream ended early")

    begun = time.perf_counter()
    return await asyncio.gather(*map(one, prompts)), time.perf_counter() - begun


def engine_of(loaded: Loaded) -> TransformersEngine:
    limits = ContextLimits(CONTEXT, 64, 600, prefill_tokens=512)
    return TransformersEngine(loaded.runner, loaded.vocabulary, limits, loaded.speculation)


def measure(
    engines: dict[str, TransformersEngine], prompts: list[list[int]], length: int, rounds: int
) -> Any:
    """Median seconds by engine, and of the guessing one the share of guesses that came true."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    told: dict[str, Any] = {}
    for turn in range(rounds + 1):
        for name, engine in engines.items():
            told[name], took = asyncio.run(answers(engine, prompts, length))
            if turn:
                seconds[name].append(took)
    plain, guessing = (told[name] for name in engines)
    if [said for said, _ in plain] != [said for said, _ in guessing]:
        print("  ! the answers differ: two tokens were equally likely, or there is a fault")
    drafted = sum(usage.drafted for _, usage in guessing)
    accepted = sum(usage.accepted for _, usage in guessing)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return medians, drafted, accepted


def main() -> None:
    """Measure and print a line for each kind of prompt and number of streams."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument(
        "--model", type=Path, default=ROOT / "runtime" / "atelier" / "builtin" / "scenes"
    )
    arguments.add_argument("--draft", default="")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--tokens", type=int, default=4)
    arguments.add_argument("--dtype", default="float32")
    arguments.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8])
    arguments.add_argument("--answer", type=int, default=96, help="tokens of an answer")
    chosen = arguments.parse_args()
    shared = {
        "model_id": str(chosen.model),
        "max_model_len": CONTEXT,
        "max_num_seqs": max(chosen.streams),
        "num_speculative_tokens": chosen.tokens,
    }
    ways = {
        "plain": Settings(**shared),
        "guessing": Settings(**shared, prompt_lookup=not chosen.draft, draft_model_id=chosen.draft),
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = {
        name: load(chosen.model, settings, device, getattr(torch, chosen.dtype))
        for name, settings in ways.items()
    }
    engines = {name: engine_of(one) for name, one in loaded.items()}
    tokenizer = loaded["plain"].vocabulary.tokenizer
    try:
        for kind, text in PROMPTS.items():
            for streams in chosen.streams:
                prompts = [list(tokenizer(f"{n}. {text}").input_ids) for n in range(streams)]
                medians, drafted, accepted = measure(engines, prompts, chosen.answer, chosen.rounds)
                rates = {name: streams * chosen.answer / took for name, took in medians.items()}
                print(
                    f"{kind:8} {streams} streams: plain {rates['plain']:7.1f} tokens/s, guessing"
                    f" {rates['guessing']:7.1f} ({rates['guessing'] / rates['plain']:.2f}),"
                    f" {accepted} of {drafted} guesses came true",
                    flush=True,
                )
    finally:
        for engine in engines.values():
            engine.close()


if __name__ == "__main__":
    main()
