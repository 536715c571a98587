"""The real llama-server with the GGUF of Gemma 3 270M (`make engine-llamacpp gemma3`), behind a
real server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import httpx
import openai
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from atelier.settings import Settings
from atelier.text.child.process import ProcessEngine
from tests.text.families import Answer, plain
from tests.text.greedy import CHECKPOINT, GGUF, INSTALLED, PROMPTS, REUSED, STORY
from tests.text.running import ROOT, Server, serving

ENGINE = ROOT / ".engines" / "llamacpp"
CONTEXT = 1024
COUNT = 8
MARGIN = 1.0

pytestmark = [
    INSTALLED,
    pytest.mark.skipif(
        not (ENGINE / ".installed").exists(), reason="make engine-llamacpp has not run"
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {
        "ENGINE": "llamacpp",
        "ENGINE_PATH": str(ENGINE),
        "MAX_MODEL_LEN": str(CONTEXT),
        "MAX_NUM_SEQS": "8",
    }
    log = tmp_path_factory.mktemp("llamacpp") / "log"
    with serving(GGUF, log, name="gemma", ready_s=120, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def reference() -> Any:
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


def complete(server: Server, **fields: Any) -> httpx.Response:
    body = {"model": "gemma", "temperature": 0, "max_tokens": COUNT, "ignore_eos": True} | fields
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)


def greedy(server: Server, prompts: list[list[int]]) -> list[Answer]:
    """Answers of all prompts at once, in llama.cpp's own form of log probabilities."""

    def ask(prompt: list[int]) -> Answer:
        return told(complete(server, prompt=prompt, logprobs=1).raise_for_status().json())

    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(ask, prompts))


def told(completion: Any) -> Answer:
    tokens = completion["choices"][0]["logprobs"]["content"]
    return Answer([one["id"] for one in tokens], [one["logprob"] for one in tokens])


def check_nearly(reference: Any, prompts: list[list[int]], answers: list[Answer]) -> None:
    """llama.cpp multiplies the packed weights with activations rounded to eight bits, transformers
    the dequantized ones with floats. So tokens differ where two are nearly as likely: every token
    said is within MARGIN of the plain model's best. Wrong weights, positions or windows are several
    off."""
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(answer.ids) == COUNT
        margin, logprobs = plain(reference, prompt, answer)
        apart = (logprobs - torch.tensor(answer.logprobs)).abs()
        print(len(prompt), "margin", float(margin.max()), "apart", apart.tolist())
        assert float(margin.max()) <= MARGIN, (len(prompt), margin)
        assert float(apart.median()) <= MARGIN / 2, (len(prompt), apart)


def test_eight_at_once_stay_with_the_dequantized_model(
    server: Server, tokenizer: Any, reference: Any
) -> None:
    texts = [*PROMPTS[:5], "Dear friend,", "The sum of 2 and 3 is", PROMPTS[6]]
    prompts = [list(tokenizer(text).input_ids) for text in texts]
    assert len(prompts[-1]) > 512  # the model's window
    check_nearly(reference, prompts, greedy(server, prompts))


def test_a_beginning_seen_before_is_reused(server: Server, tokenizer: Any, reference: Any) -> None:
    """Beyond the window. What is read in other parts is rounded otherwise, so the second answer may
    differ from the first where two tokens are nearly as likely."""
    prompt = list(tokenizer(REUSED).input_ids)
    first, second = (complete(server, prompt=prompt, logprobs=1).json() for _ in range(2))
    assert second["timings"]["cache_n"] > 512
    check_nearly(reference, [prompt, prompt], [told(first), told(second)])


def test_each_slot_takes_a_prompt_of_the_whole_context(server: Server, tokenizer: Any) -> None:
    words = list(tokenizer(STORY * 80).input_ids)
    assert complete(server, prompt=words[: CONTEXT - 2], max_tokens=1).status_code == 200
    refused = complete(server, prompt=words[: CONTEXT + 8])
    assert refused.status_code == 400
    assert str(CONTEXT) in refused.text


def test_texts_are_tokenized_as_the_checkpoint_does(server: Server, tokenizer: Any) -> None:
    text = "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich. 🦊\n\n\tfin"
    ids = list(tokenizer(text).input_ids)
    told = httpx.post(f"{server.url}/tokenize", json={"prompt": text}).json()
    assert told == {"count": len(ids), "max_model_len": CONTEXT, "tokens": ids}
    bare = httpx.post(
        f"{server.url}/tokenize", json={"prompt": text, "add_special_tokens": False}
    ).json()
    assert bare["tokens"] == ids[1:]
    back = httpx.post(f"{server.url}/detokenize", json={"tokens": bare["tokens"]}).json()
    assert back == {"prompt": text}


def test_a_client_that_goes_frees_its_slot(server: Server) -> None:
    def running() -> float:
        text = httpx.get(f"{server.url}/metrics").text
        (value,) = re.findall(r"^llamacpp:requests_processing (\S+)$", text, re.M)
        return float(value)

    body = {"prompt": "1, 2, 3,", "max_tokens": 900, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as stream:
        lines = (line for line in stream.iter_lines() if line.startswith("data: {"))
        assert [next(lines) for _ in range(3)]
        assert running() == 1
    ends = time.monotonic() + 5
    while running():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_responses_are_answered_and_streamed(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {"model": "gemma", "input": "hello", "temperature": 0}
    answer = client.responses.create(**wanted, max_output_tokens=COUNT)
    assert answer.object == "response"
    assert answer.output_text
    assert answer.usage.output_tokens <= COUNT
    events = list(client.responses.create(**wanted, max_output_tokens=COUNT, stream=True))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-1].response.output_text == answer.output_text


def test_chats_take_a_schema_and_anthropics_form(server: Server, client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    form: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    turn: Any = [{"role": "user", "content": "hello"}]
    said = client.chat.completions.create(
        model="gemma", messages=turn, max_tokens=60, response_format=form, temperature=0
    )  # drawn by chance, it may be white space until the tokens are over, which the schema allows
    assert json.loads(said.choices[0].message.content or "")["a"] in ("x", "y")
    other = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    message = other.messages.create(model="gemma", max_tokens=COUNT, messages=turn)
    assert message.usage.output_tokens <= COUNT
    assert other.messages.count_tokens(model="gemma", messages=turn).input_tokens > 3


def test_kserves_fields_are_told_in_llamacpps_words(server: Server) -> None:
    def predict(**fields: Any) -> httpx.Response:
        instance = {"prompt": "one two three one two three one two", "max_tokens": COUNT}
        body = {"instances": [instance | {"temperature": 0, "ignore_eos": True} | fields]}
        return httpx.post(f"{server.url}/v1/models/gemma:predict", json=body, timeout=60)

    plainly, penalised = predict(), predict(repetition_penalty=1.9)
    assert plainly.status_code == penalised.status_code == 200
    assert plainly.json()["predictions"] != penalised.json()["predictions"]
    refused = predict(stop_token_ids=[5])
    assert refused.status_code == 400
    assert "stop_token_ids: llamacpp has no such field" in refused.text


def test_a_killed_engine_comes_back_with_the_same_answers(server: Server, tokenizer: Any) -> None:
    prompt = [list(tokenizer(PROMPTS[0]).input_ids)]
    before = greedy(server, prompt)
    (child,) = [
        one
        for one in psutil.Process(server.process.pid).children(recursive=True)
        if one.name() == "llama-server"
    ]
    os.kill(child.pid, signal.SIGKILL)
    ends = time.monotonic() + 60
    while (health := httpx.get(f"{server.url}/health")).status_code == 200:
        assert time.monotonic() < ends
        time.sleep(0.02)
    assert "llamacpp stopped and is being restarted" in health.json()["status"]
    assert int(health.headers["retry-after"]) >= 1
    while httpx.get(f"{server.url}/health").status_code != 200:
        assert time.monotonic() < ends
        time.sleep(0.1)
    assert greedy(server, prompt) == before


@pytest.mark.parametrize("way", ["prompt_lookup", "draft_model_id"])
def test_guesses_come_true_and_change_nothing(way: str, server: Server, tokenizer: Any) -> None:
    """The model guesses for itself, so its guesses are right; a list of the same numbers again is
    found in the prompt."""
    prompt = list(tokenizer("7 12 31 48 5 9 2 14 " * 4).input_ids)
    expected = complete(server, prompt=prompt, max_tokens=16).json()
    settings = Settings(
        engine="llamacpp",
        engine_path=str(ENGINE),
        max_model_len=512,
        max_num_seqs=1,
        omp_num_threads=1,
        **{way: True if way == "prompt_lookup" else str(GGUF)},  # type: ignore[arg-type]
    )
    engine = ProcessEngine(settings, GGUF, "gemma")
    engine.start()

    async def ask() -> Any:
        body = {"prompt": prompt, "temperature": 0, "max_tokens": 16, "ignore_eos": True}
        answer = await engine.post("/v1/completions", json.dumps(body).encode(), "application/json")
        return json.loads(await answer.rest())

    try:
        said = asyncio.run(ask())
    finally:
        engine.close()
    assert said["choices"][0]["text"] == expected["choices"][0]["text"]
    assert said["timings"]["draft_n"] >= said["timings"]["draft_n_accepted"] > 4
