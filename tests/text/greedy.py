"""Gemma 3 270M as `make gemma3` leaves it, the prompts that every engine answers, and how it is
asked through a server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.text import gemma3
from tests.text.running import Server

CHECKPOINT = gemma3.FOLDER / gemma3.CHECKPOINT
GGUF = gemma3.FOLDER / gemma3.GGUF
INSTALLED = pytest.mark.skipif(
    not (gemma3.FOLDER / ".installed").exists(), reason="make gemma3 has not run"
)

STORY = (
    "The lighthouse keeper wrote down the weather every morning, and every evening he read what he"
    " had written the year before. "
)
PROMPTS = [
    "The capital of France is",
    "Water boils at a temperature of",
    "1, 2, 3, 4, 5, 6,",
    "def fibonacci(n):\n",
    "Once upon a time, in a small village by the sea,",
    STORY * 20 + "That day",
    STORY * 28 + "That day the wind",  # beyond the window of 512 tokens
    STORY * 50 + "In the end",  # beyond the embedded engine's ring of 1,024
]
COUNT = 16
REUSED = STORY * 30 + "And then the sea"
"""Goes on as PROMPTS[-2] begins, for more than its window."""


def completions(server: Server, prompts: list[list[int]], **fields: Any) -> list[Any]:
    """Greedy completions of COUNT tokens, of all prompts at once, with log probabilities."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=300)

    def ask(prompt: list[int]) -> Any:
        return client.completions.create(
            model=server.name,
            prompt=prompt,
            max_tokens=COUNT,
            temperature=0,
            logprobs=1,
            extra_body={"ignore_eos": True} | fields,
        )

    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(ask, prompts))
