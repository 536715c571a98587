"""Log probabilities of prompts, as lm-eval and others ask for them: equal to those that plain
transformers computes, whoever else is in the batch."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from atelier.events import Finished, PromptRead, Token
from atelier.streams import EventStream
from atelier.text.embedded.admission import ContextLimits, Vocabulary
from atelier.text.embedded.capacity import Capacity
from atelier.text.embedded.engine import TransformersEngine
from atelier.text.embedded.loading import make_runner
from atelier.text.request import make_request
from tests.text.running import Server

torch.set_num_threads(1)

PROMPT = "The quick brown fox jumps over the lazy dog."
CLOSE = 1e-3


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@torch.no_grad()
def plain(reference: Any, ids: list[int]) -> torch.Tensor:
    """Log probabilities of every token after each of `ids` but the last."""
    logits: torch.Tensor = reference(input_ids=torch.tensor([ids])).logits[0, :-1]
    return logits.float().log_softmax(-1)


def of_targets(reference: Any, ids: list[int]) -> list[float]:
    raw = plain(reference, ids)
    found: list[float] = raw[range(len(ids) - 1), ids[1:]].tolist()
    return found


def tokens_of(server: Server, text: str) -> list[int]:
    answer = httpx.post(f"{server.url}/tokenize", json={"prompt": text})
    ids: list[int] = answer.json()["tokens"]
    return ids


@pytest.mark.parametrize("form", ["text", "ids"])
def test_an_echo_has_the_models_own_log_probabilities(
    server: Server, client: openai.OpenAI, reference: Any, form: str
) -> None:
    ids = tokens_of(server, PROMPT)
    answer = client.completions.create(
        model="tiny",
        prompt=PROMPT if form == "text" else ids,
        echo=True,
        logprobs=1,
        max_tokens=1,
        temperature=0,
    )
    choice = answer.choices[0]
    assert choice.text.startswith(PROMPT)
    told = choice.logprobs
    assert len(told.token_logprobs) == len(ids) + answer.usage.completion_tokens
    assert (told.token_logprobs[0], told.top_logprobs[0]) == (None, None)
    assert told.token_logprobs[1 : len(ids)] == pytest.approx(of_targets(reference, ids), abs=CLOSE)
    best = plain(reference, ids).max(-1).values.tolist()
    for top, value in zip(told.top_logprobs[1 : len(ids)], best, strict=True):
        assert list(top.values()) == pytest.approx([value], abs=CLOSE)
    assert "".join(told.tokens[: len(ids)]) == PROMPT
    assert told.text_offset[: len(ids)] == list(range(len(ids)))


def test_nothing_is_generated_where_no_tokens_are_wanted(
    server: Server, client: openai.OpenAI, reference: Any
) -> None:
    prompts = [PROMPT, "another", "x"]
    answer = client.completions.create(
        model="tiny", prompt=prompts, echo=True, logprobs=0, max_tokens=0
    )
    assert [choice.text for choice in answer.choices] == prompts
    assert answer.usage.completion_tokens == 0
    for choice, prompt in zip(answer.choices, prompts, strict=True):
        wanted = [None, *of_targets(reference, tokens_of(server, prompt))]
        assert choice.logprobs.token_logprobs == pytest.approx(wanted, abs=CLOSE)
        assert choice.finish_reason == "length"
    quiet = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=0, n=2)
    assert [choice.text for choice in quiet.choices] == ["", ""]
    assert quiet.choices[0].logprobs is None


def test_a_prompt_may_fill_the_context_where_nothing_is_generated(
    client: openai.OpenAI,
) -> None:
    wanted: dict[str, Any] = {"model": "tiny", "echo": True, "logprobs": 0}
    full = client.completions.create(**wanted, prompt=[5] * 512, max_tokens=0)
    assert len(full.choices[0].logprobs.tokens) == 512
    for prompt, tokens in (([5] * 512, 1), ([5] * 513, 0)):
        with pytest.raises(openai.BadRequestError, match="holds 512"):
            client.completions.create(**wanted, prompt=prompt, max_tokens=tokens)


def test_an_echo_streams_before_the_answer(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "echo": True, "temperature": 0}
    wanted |= {"max_tokens": 6, "extra_body": {"ignore_eos": True}}
    for logprobs in (None, 2):
        whole = client.completions.create(**wanted, logprobs=logprobs).choices[0]
        chunks = list(client.completions.create(**wanted, logprobs=logprobs, stream=True))
        choices = [chunk.choices[0] for chunk in chunks]
        assert choices[0].text == PROMPT
        assert "".join(choice.text for choice in choices) == whole.text
        if logprobs:
            listed = [choice.logprobs for choice in choices if choice.logprobs]
            assert [offset for each in listed for offset in each.text_offset] == (
                whole.logprobs.text_offset
            )
            streamed = [value for each in listed for value in each.token_logprobs]
            assert streamed == pytest.approx(whole.logprobs.token_logprobs, abs=CLOSE)


@pytest.mark.parametrize("route", ["chat/completions", "completions"])
def test_prompt_logprobs_are_told_as_vllm_tells_them(
    server: Server, reference: Any, route: str
) -> None:
    asked: dict[str, Any] = {"prompt": PROMPT}
    if route == "chat/completions":
        asked = {"messages": [{"role": "user", "content": "hello"}]}
    ids = httpx.post(f"{server.url}/tokenize", json=asked).json()["tokens"]
    body = asked | {"model": "tiny", "max_tokens": 1, "prompt_logprobs": 2}
    answer = httpx.post(f"{server.url}/v1/{route}", json=body).json()
    told = (answer if "messages" in asked else answer["choices"][0])["prompt_logprobs"]
    assert (told[0], len(told)) == (None, len(ids))
    raw = plain(reference, ids)
    for token, row, entry in zip(ids[1:], raw, told[1:], strict=True):
        own = entry[str(token)]
        assert own["logprob"] == pytest.approx(float(row[token]), abs=CLOSE)
        assert own["rank"] == pytest.approx(int((row > row[token]).sum()) + 1, abs=1)
        ranks = sorted(each["rank"] for each in entry.values())
        assert ranks[:2] == [1, 2]
        assert len(entry) in (2, 3)
    assert own["decoded_token"]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": "x"}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"echo": "yes"}, "echo"),
        ({"max_tokens": -1}, "max_tokens"),
    ],
    ids=str,
)
def test_a_wrong_field_is_named(server: Server, fields: dict[str, Any], name: str) -> None:
    body = {"model": "tiny", "prompt": "x"} | fields
    answer = httpx.post(f"{server.url}/v1/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


def test_a_chat_is_not_echoed(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "echo": True}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "echo")


async def _read(stream: EventStream) -> tuple[list[int], PromptRead | None, Finished]:
    ids: list[int] = []
    prompt = None
    async for event in stream:
        if isinstance(event, Token):
            ids += event.ids
        elif isinstance(event, PromptRead):
            assert prompt is None and not ids
            prompt = event
        last = event
    assert isinstance(last, Finished), last
    return ids, prompt, last


async def test_prompts_are_scored_in_parts_beside_running_answers(
    checkpoint: Path, reference: Any
) -> None:
    """Chunks of 64 tokens or fewer; a beginning that a slot holds already is computed again; the
    neighbours' tokens are their own."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    runner = make_runner(
        AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval(),
        Capacity(4, 256, 0),
    )
    vocabulary = Vocabulary(tokenizer, runner.model.config.vocab_size, frozenset())
    limits = ContextLimits(context=256, queue=20, timeout=60, prefill_tokens=64)
    engine = TransformersEngine(runner, vocabulary, limits)
    engine._batch._scored_tokens = 48
    draw = torch.Generator().manual_seed(1)
    prompts = [
        torch.randint(0, 250, (length,), generator=draw).tolist()
        for length in (1, 2, 64, 65, 130, 200)
    ]

    def ask(prompt: list[int], **fields: Any) -> EventStream:
        wanted = {"temperature": 0, "max_tokens": 4} | fields
        return engine.submit(make_request(prompt_ids=prompt, **wanted), prompt)

    try:
        alone = [await _read(ask(prompt)) for prompt in prompts]
        streams = [ask(prompt, prompt_logprobs=1) for prompt in prompts]
        streams += [ask(prompt) for prompt in prompts]
        streams += [ask(prompts[-1], prompt_logprobs=0, n=2, max_tokens=0)]
        said = await asyncio.gather(*map(_read, streams))
    finally:
        engine.close()
    for prompt, (ids, told, last), (own, *_) in zip(
        prompts, said[: len(prompts)], alone, strict=True
    ):
        assert ids == own
        assert told is not None and last.usage is not None
        assert (list(told.ids), last.usage.cached) == (prompt, 0)
        assert [each.id for each in told.likelihoods] == prompt[1:]
        assert [each.logprob for each in told.likelihoods] == pytest.approx(
            of_targets(reference, prompt), abs=CLOSE
        )
    for (ids, told, _), (own, *_) in zip(said[len(prompts) : -1], alone, strict=True):
        assert (ids, told) == (own, None)
    ids, told, last = said[-1]
    assert (ids, last.reasons) == ([], ("length", "length"))
    assert told is not None and len(told.likelihoods) == 199


def test_prompt_logprobs_are_json(server: Server) -> None:
    body = {"model": "tiny", "prompt": "x", "max_tokens": 0, "prompt_logprobs": 0}
    answer = httpx.post(f"{server.url}/v1/completions", json=body)
    assert json.loads(answer.text)["choices"][0]["prompt_logprobs"] == [None]
