"""Gemma 3 270M, a model that people run, through the embedded engine's server: plain transformers'
tokens and likelihoods, beyond the window, eight at once, with reuse; and it stays small."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from atelier.text.embedded.slots import RING_SLACK
from atelier.text.token_names import TokenNames
from tests.memory import held_bytes
from tests.text.families import Answer, check
from tests.text.greedy import CHECKPOINT, INSTALLED, PROMPTS, REUSED, STORY, completions
from tests.text.running import Server, serving

CONTEXT = 8192
pytestmark = INSTALLED


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Executed: what it takes of memory is not shared with other tests."""
    given = {"MAX_MODEL_LEN": str(CONTEXT), "MAX_NUM_SEQS": "8", "DTYPE": "float32"}
    log = tmp_path_factory.mktemp("gemma") / "log"
    with serving(CHECKPOINT, log, name="gemma", ready_s=180, executed=True, **given) as running:
        yield running


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def reference() -> Any:
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


def told(tokenizer: Any, completion: Any) -> Answer:
    """A completion's tokens, by their text: no two of this vocabulary have the same."""
    logprobs = completion.choices[0].logprobs
    pieces = [text.replace(" ", "▁") for text in logprobs.tokens]
    return Answer(tokenizer.convert_tokens_to_ids(pieces), logprobs.token_logprobs)


def test_eight_at_once_get_the_plain_models_tokens_and_likelihoods(
    server: Server, tokenizer: Any, reference: Any
) -> None:
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    window = reference.config.sliding_window
    assert len(prompts[-2]) > window
    assert len(prompts[-1]) > window + RING_SLACK
    answers = completions(server, prompts)
    check(reference, prompts, [told(tokenizer, answer) for answer in answers], 1e-3)
    assert "city in France" in answers[0].choices[0].text


def test_a_beginning_seen_before_is_reused_and_changes_nothing(
    server: Server, tokenizer: Any, reference: Any
) -> None:
    first, second = (tokenizer(prompt).input_ids for prompt in (PROMPTS[-2], REUSED))
    completions(server, [first])
    (answer,) = completions(server, [second])
    assert answer.usage.prompt_tokens_details.cached_tokens > 600
    check(reference, [second], [told(tokenizer, answer)], 1e-3)


def test_eight_long_streams_take_two_and_a_half_gigabytes_at_most(
    server: Server, tokenizer: Any
) -> None:
    """All processes of the server, in float32. The eight go on from one beginning, which is
    computed once and copied, so that each fills its part of the cache."""
    beginning = tokenizer(STORY * 400).input_ids[: CONTEXT - 130]
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=300)
    ask = partial(client.completions.create, model="gemma", extra_body={"ignore_eos": True})
    ask(prompt=beginning, max_tokens=1)
    begun, measured = Barrier(9, timeout=300), Barrier(9, timeout=300)

    def stream(number: int) -> None:
        with ask(prompt=[*beginning, number], max_tokens=128, stream=True) as chunks:
            next(iter(chunks))
            begun.wait()
            measured.wait()

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(stream, number) for number in range(1000, 1008)]
        begun.wait()
        held = held_bytes(server.process.pid)
        filled = server.metric("atelier_text_kv_cache_usage_ratio")
        measured.wait()
    assert [one.result() for one in asked] == [None] * 8
    assert filled > 0.98
    assert held < 2.5e9


def test_a_front_knows_every_token_by_name_in_four_megabytes(tokenizer: Any) -> None:
    names = pickle.loads(pickle.dumps(TokenNames(tokenizer.backend_tokenizer, 262_200)))
    ids = list(range(262_200))
    assert names.pieces(ids) == tokenizer.batch_decode([[token] for token in ids])
    assert names.raw(tokenizer.convert_tokens_to_ids("<0xE2>")) == b"\xe2"
    assert len(pickle.dumps(names)) < 4e6
