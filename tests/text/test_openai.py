"""The embedded engine behind a real server, asked by OpenAI's own client."""

from __future__ import annotations

import json
import math

import httpx
import openai
import pytest

from tests.text.running import Server

TOOL = {
    "type": "function",
    "function": {
        "name": "generate_image",
        "description": "Draw",
        "parameters": {
            "type": "object",
            "properties": {"size": {"enum": ["small", "large"]}},
            "required": ["size"],
            "additionalProperties": False,
        },
    },
}
ASK = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_a_chat_answer_has_text_and_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=ASK, max_completion_tokens=8, temperature=0
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.completion_tokens <= 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_the_same_as_the_whole_answer(client: openai.OpenAI) -> None:
    wanted = {"model": "tiny", "messages": ASK, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**wanted)
    chunks = list(
        client.chat.completions.create(
            **wanted, stream=True, stream_options={"include_usage": True}
        )
    )
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == whole.choices[
        0
    ].finish_reason


def test_the_same_seed_gives_the_same_text_and_another_seed_another(client: openai.OpenAI) -> None:
    def say(seed: int) -> str:
        wanted = {
            "model": "tiny",
            "prompt": "once",
            "max_tokens": 24,
            "temperature": 1,
            "seed": seed,
        }
        return client.completions.create(**wanted).choices[0].text

    assert say(5) == say(5) != say(6)


def test_several_choices_differ_and_are_numbered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=12, n=3, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3


def test_a_beginning_seen_before_counts_as_cached(client: openai.OpenAI) -> None:
    prompt = "a long beginning that two requests share, word for word: "
    client.completions.create(model="tiny", prompt=prompt + "one", max_tokens=1)
    usage = client.completions.create(model="tiny", prompt=prompt + "two", max_tokens=1).usage
    assert usage.prompt_tokens_details.cached_tokens >= len(prompt)


def test_the_answer_ends_before_a_stop_string_that_lies_across_tokens(
    server: Server, client: openai.OpenAI
) -> None:
    letters = httpx.post(f"{server.url}/tokenize", json={"prompt": "abcdefghij"}).json()["tokens"]
    wanted = {"model": "tiny", "prompt": "stop me", "max_tokens": 40, "temperature": 1, "seed": 4}
    wanted["logit_bias"] = {str(token): 50 for token in letters}
    text = client.completions.create(**wanted).choices[0].text
    stop = text[10:14]
    stopped = client.completions.create(**wanted, stop=[stop]).choices[0]
    assert stopped.text == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"


def test_log_probabilities_are_those_of_the_tokens_said(client: openai.OpenAI) -> None:
    wanted = {
        "model": "tiny",
        "messages": ASK,
        "max_tokens": 5,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 3,
    }
    content = client.chat.completions.create(**wanted).choices[0].logprobs.content
    assert len(content) <= 5
    for token in content:
        assert token.logprob == pytest.approx(max(top.logprob for top in token.top_logprobs))
        assert len(token.top_logprobs) == 3
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1.001


def test_an_answer_follows_a_json_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "blue"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    form = {
        "type": "json_schema",
        "json_schema": {"name": "scene", "strict": True, "schema": schema},
    }
    answer = client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=80, response_format=form, seed=2
    )
    said = json.loads(answer.choices[0].message.content)
    assert said["colour"] in ("red", "blue")
    assert 0 <= said["count"] <= 9


def test_a_schema_that_cannot_be_followed_is_a_400_that_says_why(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "bad", "schema": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError, match="response_format"):
        client.chat.completions.create(
            model="tiny", messages=ASK, max_tokens=8, response_format=form
        )


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "generate_image"}}]
)
def test_a_tool_call_that_is_required_comes_with_valid_arguments(
    client: openai.OpenAI, choice: object
) -> None:
    wanted = {
        "model": "tiny",
        "messages": ASK,
        "tools": [TOOL],
        "tool_choice": choice,
        "max_tokens": 200,
        "seed": 3,
    }
    whole = client.chat.completions.create(**wanted).choices[0]
    assert whole.finish_reason == "tool_calls"
    call = whole.message.tool_calls[0].function
    assert call.name == "generate_image"
    assert json.loads(call.arguments)["size"] in ("small", "large")
    deltas = [
        c.choices[0].delta
        for c in client.chat.completions.create(**wanted, stream=True)
        if c.choices
    ]
    streamed = [call for delta in deltas for call in delta.tool_calls or []]
    assert "".join(call.function.arguments for call in streamed) == call.arguments


def test_embeddings_have_unit_length_and_come_in_both_encodings(client: openai.OpenAI) -> None:
    packed = client.embeddings.create(model="tiny", input=["one", "two"])
    plain = client.embeddings.create(model="tiny", input="one", encoding_format="float")
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert sum(x * x for x in packed.data[1].embedding) == pytest.approx(1)
    assert packed.data[0].embedding != packed.data[1].embedding


def test_the_routes_also_live_below_openai(server: Server) -> None:
    twin = openai.OpenAI(base_url=f"{server.url}/openai/v1", api_key="none")
    assert (
        twin.completions.create(model="tiny", prompt="x", max_tokens=2).usage.completion_tokens == 2
    )
    assert [model.id for model in twin.models.list()] == ["tiny"]


def test_an_unknown_model_is_a_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.chat.completions.create(model="other", messages=ASK)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temperature": -1}, "temperature"),
        ({"n": 1000}, "n=1000"),
        ({"top_p": "high"}, "top_p"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
                ]
            },
            "image_url",
        ),
        ({"tool_choice": "required"}, "tool"),
        ({"logit_bias": {"99999": 1}}, "99999"),
        ({"max_tokens": 100000}, "max_tokens"),
    ],
)
def test_a_bad_field_is_a_400_that_names_it(
    server: Server, fields: dict[str, object], said: str
) -> None:
    body = {"model": "tiny", "messages": ASK, "max_tokens": 4} | fields
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("chat/completions", {"messages": ASK, "logprobs": False, "top_logprobs": 0}),
        ("chat/completions", {"messages": ASK, "seed": -1}),
        ("completions", {"prompt": "hello", "suffix": ""}),
        ("completions", {"prompt": "hello", "best_of": 1, "echo": False, "seed": -1}),
    ],
)
def test_fields_that_ask_for_nothing_are_harmless(
    server: Server, path: str, fields: dict[str, object]
) -> None:
    answer = httpx.post(f"{server.url}/v1/{path}", json={"model": "tiny", "max_tokens": 4} | fields)
    assert answer.status_code == 200, answer.text


def test_a_seed_of_minus_one_is_another_each_time_and_top_p_of_0_is_greedy(
    client: openai.OpenAI,
) -> None:
    def said(**fields: object) -> str:
        wanted = {"max_tokens": 24, "temperature": 1.5, "extra_body": {"ignore_eos": True}}
        return (
            client.completions.create(model="tiny", prompt="a", **wanted | fields).choices[0].text
        )

    assert len({said(seed=-1) for _ in range(4)}) > 1
    greedy = said(temperature=0)
    assert {said(top_p=0) for _ in range(3)} == {greedy}


def test_tokens_and_text_turn_into_each_other(server: Server) -> None:
    ids = httpx.post(f"{server.url}/tokenize", json={"prompt": "héllo"}).json()
    assert ids["count"] == len(ids["tokens"]) == 6
    assert ids["max_model_len"] == 512
    assert httpx.post(f"{server.url}/detokenize", json={"tokens": ids["tokens"]}).json() == {
        "prompt": "héllo"
    }
    assert httpx.post(f"{server.url}/detokenize", json={"tokens": [-1]}).status_code == 400


def test_metrics_count_tokens_and_time(server: Server, client: openai.OpenAI) -> None:
    before = server.metric("atelier_text_generated_tokens_total")
    client.completions.create(
        model="tiny", prompt="count", max_tokens=7, extra_body={"ignore_eos": True}
    )
    assert server.metric("atelier_text_generated_tokens_total") == before + 7
    assert server.metric("atelier_text_time_to_first_token_seconds_count") > 0


FUNCTION = {"name": "f", "parameters": {"type": "object"}}

WRONG = [
    ("chat/completions", {"stream": "yes"}, "stream"),
    ("chat/completions", {"stream": True, "stream_options": 5}, "stream_options"),
    ("chat/completions", {"stream_options": {"include_usage": True}}, "stream_options"),
    (
        "chat/completions",
        {"stream": True, "stream_options": {"include_usage": 1}},
        "stream_options.include_usage",
    ),
    ("chat/completions", {"logprobs": 5}, "logprobs"),
    ("chat/completions", {"top_logprobs": 2}, "top_logprobs"),
    ("chat/completions", {"tools": [{"type": "function", "function": {}}]}, "tools"),
    (
        "chat/completions",
        {"tools": [{"type": "function", "function": FUNCTION | {"parameters": 5}}]},
        "tools",
    ),
    ("chat/completions", {"tool_choice": {"type": "function", "function": "f"}}, "tool_choice"),
    ("chat/completions", {"messages": [{"role": "user"}]}, "messages.0.content"),
    ("completions", {"max_tokens": -1}, "max_tokens"),
    ("completions", {"prompt": [1, "a"]}, "prompt"),
    ("embeddings", {"dimensions": 5}, "dimensions"),
]


@pytest.mark.parametrize(("path", "fields", "name"), WRONG, ids=str)
def test_a_wrong_field_is_named(
    server: Server, path: str, fields: dict[str, object], name: str
) -> None:
    body: dict[str, object] = {
        "model": "tiny",
        "messages": ASK,
        "prompt": "a",
        "input": "a",
    } | fields
    answer = httpx.post(f"{server.url}/v1/{path}", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == name


def test_a_time_limit_in_the_header_holds(client: openai.OpenAI) -> None:
    wanted = {
        "model": "tiny",
        "messages": ASK,
        "max_tokens": 400,
        "extra_body": {"ignore_eos": True},
    }
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(**wanted, extra_headers={"X-Request-Timeout": "0.02"})
    assert (refused.value.status_code, refused.value.code) == (504, "deadline_exceeded")


LONG = {"max_tokens": 400, "ignore_eos": True}
LATE = {
    "/v1/chat/completions": {"messages": ASK} | LONG,
    "/v1/completions": {"prompt": "a"} | LONG,
    "/v1/embeddings": {"input": ["a"] * 2000},
    "/v1/messages": {"messages": ASK, "max_tokens": 400, "temperature": 0},
    "/v1/responses": {"input": "a", "max_output_tokens": 400, "ignore_eos": True},
    "/v1/models/tiny:predict": {"instances": [{"prompt": "a"}], "parameters": LONG},
    "/v2/models/tiny/generate": {"text_input": "a", "parameters": LONG},
    "/v2/models/tiny/infer": {
        "inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a"]}],
        "parameters": LONG,
    },
}


@pytest.mark.parametrize("path", LATE)
def test_a_time_limit_in_the_header_holds_on_every_route(server: Server, path: str) -> None:
    hurry = {"X-Request-Timeout": "0.03"}
    answer = httpx.post(server.url + path, json=LATE[path], headers=hurry, timeout=30)
    # 408: on a busy machine not even the body was there in time
    assert answer.status_code in (504, 408), answer.text


def test_refused_bodies_are_counted(server: Server) -> None:
    def count() -> float:
        told = 'atelier_requests_total{outcome="invalid_value",protocol="openai"}'
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(told))

    before = count()
    httpx.post(f"{server.url}/v1/chat/completions", content=b"{")
    assert count() == before + 1
