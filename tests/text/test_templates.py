"""What chat templates of today's models ask for: reasoning that the prompt opens, tools that the
template does not know, XML calls, broken histories; on every route."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.text import tiny
from tests.text.running import Server, serving

SCHEMA = {
    "type": "object",
    "properties": {"size": {"enum": ["small", "large"]}},
    "required": ["size"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "draw", "parameters": SCHEMA}}
ASK = [{"role": "user", "content": "hello"}]
FORMAT = {"type": "json_schema", "json_schema": {"name": "size", "schema": SCHEMA}}
NAMED = {"type": "function", "function": {"name": "draw"}}
CUT_OFF = [
    {"role": "user", "content": "draw"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "draw", "arguments": '{"size": "la'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "that was cut off"},
    {"role": "user", "content": "again"},
]


@pytest.fixture(scope="module", params=["THINKING", "PLAIN", "CODER"])
def served(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    tiny.make_checkpoint(folder / "tiny", template=getattr(tiny, request.param))
    with serving(folder / "tiny", folder / "log", MAX_NUM_SEQS="4") as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def fits(text: str) -> bool:
    return json.loads(text) in ({"size": "small"}, {"size": "large"})


def test_structured_output_is_content_whole_and_streamed(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {"model": "tiny", "messages": ASK, "temperature": 0}
    wanted |= {"response_format": FORMAT, "max_tokens": 100}
    whole = client.chat.completions.create(**wanted)
    assert fits(whole.choices[0].message.content)
    chunks = client.chat.completions.create(**wanted, stream=True)
    streamed = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
    assert streamed == whole.choices[0].message.content


def test_structured_output_is_the_text_of_a_v1_prediction(served: Server) -> None:
    instance = {"messages": ASK, "response_format": FORMAT, "max_tokens": 100, "temperature": 0}
    body = {"instances": [instance]}
    answer = httpx.post(f"{served.url}/v1/models/tiny:predict", json=body, timeout=60).json()
    assert fits(answer["predictions"][0]["text"])


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_forced_call_is_a_call(client: openai.OpenAI, choice: Any) -> None:
    wanted: dict[str, Any] = {"model": "tiny", "messages": ASK, "temperature": 0}
    wanted |= {"tools": [TOOL], "tool_choice": choice, "max_tokens": 200}
    whole = client.chat.completions.create(**wanted).choices[0]
    (call,) = whole.message.tool_calls
    assert call.function.name == "draw"
    assert fits(call.function.arguments)
    assert whole.finish_reason == "tool_calls"
    chunks = list(client.chat.completions.create(**wanted, stream=True))
    deltas = [each.choices[0].delta.tool_calls for each in chunks if each.choices]
    (streamed,) = [calls[0] for calls in deltas if calls]
    assert fits(streamed.function.arguments)


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "draw"}], ids=str)
def test_a_forced_call_is_a_block_of_a_message(served: Server, choice: Any) -> None:
    client = anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0)
    message = client.messages.create(
        model="tiny",
        messages=[{"role": "user", "content": "hello"}],
        tools=[{"name": "draw", "input_schema": SCHEMA}],
        tool_choice=choice,
        max_tokens=200,
        extra_body={"temperature": 0},
    )
    (block,) = [one for one in message.content if one.type == "tool_use"]
    assert block.input in ({"size": "small"}, {"size": "large"})
    assert message.stop_reason == "tool_use"


def test_a_response_has_the_form_and_the_reasoning_apart(
    served: Server, client: openai.OpenAI
) -> None:
    form = {"format": {"type": "json_schema", "name": "size", "schema": SCHEMA}}
    wanted = {"model": "tiny", "input": "hello", "temperature": 0, "max_output_tokens": 100}
    answer = client.responses.create(**wanted, text=form)
    assert fits(answer.output_text)
    events = list(client.responses.create(**wanted, text=form, stream=True))
    assert events[-1].response.output_text == answer.output_text
    if "THINKING" not in str(served.log):
        return
    letter = httpx.post(f"{served.url}/tokenize", json={"prompt": "a"}).json()["tokens"][0]
    wanted |= {"max_output_tokens": 8, "extra_body": {"logit_bias": {letter: 100}}}
    events = list(client.responses.create(**wanted, stream=True))
    kinds = list(dict.fromkeys(event.type.removeprefix("response.") for event in events))
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    (reasoning,) = events[-1].response.output
    assert (reasoning.type, reasoning.content[0].text) == ("reasoning", "a" * 8)
    assert events[-1].response.usage.output_tokens_details.reasoning_tokens == 8


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "draw"}], ids=str)
def test_a_forced_call_is_an_item_of_a_response(client: openai.OpenAI, choice: Any) -> None:
    tool = {"type": "function", "name": "draw", "parameters": SCHEMA}
    wanted = {"model": "tiny", "input": "hello", "temperature": 0, "max_output_tokens": 150}
    answer = client.responses.create(**wanted, tools=[tool], tool_choice=choice)
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert fits(call.arguments)


def test_a_history_whose_call_was_cut_off_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=CUT_OFF, tools=[TOOL], max_tokens=4
    )
    assert answer.usage.completion_tokens >= 1


def test_the_result_of_a_call_is_taken_by_every_template(
    served: Server, client: openai.OpenAI
) -> None:
    turns = [*CUT_OFF[:3]]
    turns[1] = json.loads(json.dumps(turns[1]).replace("la", "large").replace('large\\"', "x"))
    turns[1]["tool_calls"][0]["function"]["arguments"] = '{"size": "large"}'
    answer = client.chat.completions.create(
        model="tiny", messages=turns, tools=[TOOL], max_tokens=4
    )
    assert answer.usage.completion_tokens >= 1
    body = {"model": "tiny", "messages": turns, "tools": [TOOL]}
    ids = httpx.post(f"{served.url}/tokenize", json=body).json()["tokens"]
    text = httpx.post(f"{served.url}/detokenize", json={"tokens": ids}).json()["prompt"]
    assert "that was cut off" in text
    assert "draw" in text
