"""Gemma 3 270M, a model that people run: the embedded engine gives plain transformers' tokens and
likelihoods, beyond the window, eight at once, with reuse; and a server of it stays small."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from atelier.settings import Settings
from atelier.text.embedded.admission import ContextLimits
from atelier.text.embedded.engine import TransformersEngine
from atelier.text.embedded.loading import load
from tests.text import gemma3
from tests.text.families import ask_all, check
from tests.text.running import serving

CHECKPOINT = gemma3.FOLDER / gemma3.CHECKPOINT
pytestmark = pytest.mark.skipif(
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
    STORY * 50 + "In the end",  # beyond the ring of 1,024
]


@pytest.fixture(scope="module")
def loaded() -> Any:
    torch.set_num_threads(1)
    settings = Settings(model_id=str(CHECKPOINT), max_model_len=2048, max_num_seqs=8)
    return load(CHECKPOINT, settings, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def engine(loaded: Any) -> Iterator[TransformersEngine]:
    limits = ContextLimits(2048, queue=20, timeout=600, prefill_tokens=512)
    made = TransformersEngine(loaded.runner, loaded.vocabulary, limits)
    yield made
    made.close()


@pytest.fixture(scope="module")
def reference() -> Any:
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


def encoded(loaded: Any, prompts: list[str]) -> list[list[int]]:
    return [list(loaded.vocabulary.tokenizer(prompt).input_ids) for prompt in prompts]


def test_eight_at_once_get_the_plain_models_tokens_and_likelihoods(
    loaded: Any, engine: TransformersEngine, reference: Any
) -> None:
    prompts = encoded(loaded, PROMPTS)
    assert len(prompts[-2]) > loaded.model.config.sliding_window
    assert len(prompts[-1]) > loaded.runner.cache.ring
    answers = ask_all(engine, prompts, 16)
    check(reference, prompts, answers, 1e-3)
    assert "city in France" in loaded.vocabulary.tokenizer.decode(answers[0].ids)


def test_a_beginning_seen_before_is_reused_and_changes_nothing(
    loaded: Any, engine: TransformersEngine, reference: Any
) -> None:
    first, second = encoded(loaded, [STORY * 30, STORY * 30 + "And then the sea"])
    ask_all(engine, [first], 4)
    (answer,) = ask_all(engine, [second], 12)
    assert answer.cached > 600
    check(reference, [second], [answer], 1e-3)


def test_eight_streams_of_a_long_context_take_a_worker_of_two_and_a_half_gigabytes_at_most(
    tmp_path: Path,
) -> None:
    given = {"MAX_MODEL_LEN": "8192", "MAX_NUM_SEQS": "8", "DTYPE": "float32"}
    with serving(CHECKPOINT, tmp_path / "log", name="gemma", ready_s=180, **given) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=300)

        def stream(number: int) -> int:
            chunks = client.completions.create(
                model="gemma",
                prompt=f"{number}. " + STORY * (2 + 5 * number),
                max_tokens=16,
                stream=True,
                temperature=0,
            )
            return sum(bool(chunk.choices and chunk.choices[0].text) for chunk in chunks)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(stream, range(8)))
        # Pages that processes of the test share are counted by their share.
        assert psutil.Process(server.worker()).memory_full_info().pss < 2.5e9
