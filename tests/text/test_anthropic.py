"""The Messages API on a real server, asked by Anthropic's own client."""

from __future__ import annotations

import json

import anthropic
import httpx
import pytest

from tests.text.running import Server

SCHEMA = {
    "type": "object",
    "properties": {"size": {"enum": ["small", "large"]}},
    "required": ["size"],
    "additionalProperties": False,
}
TOOL = {"name": "generate_image", "description": "Draw", "input_schema": SCHEMA}
ASK = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]


@pytest.fixture(scope="module")
def client(server: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def test_a_message_has_text_usage_and_a_reason(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="tiny", max_tokens=8, system="be brief", messages=ASK)
    assert message.content[0].type == "text"
    assert message.usage.output_tokens <= 8
    assert message.stop_reason in ("max_tokens", "end_turn")


@pytest.mark.parametrize("beta", [False, True])
def test_an_answer_follows_the_schema_of_its_output_format(
    client: anthropic.Anthropic, beta: bool
) -> None:
    form = {"type": "json_schema", "schema": SCHEMA}
    wanted = {"output_format": form} if beta else {"output_config": {"format": form}}
    message = client.messages.create(model="tiny", max_tokens=64, messages=ASK, extra_body=wanted)
    assert json.loads(message.content[0].text)["size"] in ("small", "large")


def test_an_output_format_that_is_none_is_refused_by_name(client: anthropic.Anthropic) -> None:
    for form in ({"type": "xml"}, {"type": "json_schema"}, "json"):
        with pytest.raises(anthropic.BadRequestError, match=r"output_config\.format="):
            client.messages.create(
                model="tiny", max_tokens=8, messages=ASK,
                extra_body={"output_config": {"format": form}},
            )  # fmt: skip


def test_a_streamed_message_says_the_same(client: anthropic.Anthropic) -> None:
    wanted = {"model": "tiny", "max_tokens": 16, "messages": ASK, "extra_body": {"temperature": 0}}
    whole = client.messages.create(**wanted)
    with client.messages.stream(**wanted) as stream:
        streamed = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert streamed == whole.content[0].text
    assert final.stop_reason == whole.stop_reason


def test_a_required_tool_comes_as_a_block(client: anthropic.Anthropic) -> None:
    wanted = {
        "model": "tiny",
        "max_tokens": 100,
        "messages": ASK,
        "tools": [TOOL],
        "tool_choice": {"type": "any"},
    }
    message = client.messages.create(**wanted)
    assert message.stop_reason == "tool_use"
    assert message.content[-1].name == "generate_image"
    assert message.content[-1].input["size"] in ("small", "large")
    turns = [
        *ASK,
        {"role": "assistant", "content": [block.model_dump() for block in message.content]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": message.content[-1].id, "content": "ok"}
            ],
        },
    ]
    assert (
        client.messages.create(
            model="tiny", max_tokens=4, messages=turns, tools=[TOOL]
        ).usage.output_tokens
        <= 4
    )


def test_tokens_are_counted_without_an_answer(client: anthropic.Anthropic) -> None:
    short = client.messages.count_tokens(model="tiny", messages=ASK).input_tokens
    assert (
        client.messages.count_tokens(model="tiny", system="more", messages=ASK).input_tokens > short
    )


def test_errors_have_anthropics_shape(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as refused:
        client.messages.create(model="other", max_tokens=4, messages=ASK)
    assert refused.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="document"):
        client.messages.create(
            model="tiny",
            max_tokens=4,
            messages=[
                {
                    "role": "user",
                    "content": [{"type": "document", "source": {"type": "text", "data": "x"}}],
                }
            ],
        )


@pytest.mark.parametrize(
    "fields", [{"tools": 5}, {"system": 5}, {"stream": "yes"}, {"tools": [{}]}, {"tool_choice": 5}]
)
def test_a_wrong_field_is_a_400_in_anthropics_shape(
    server: Server, fields: dict[str, object]
) -> None:
    body = {"model": "tiny", "max_tokens": 2, "messages": ASK} | fields
    answer = httpx.post(f"{server.url}/v1/messages", json=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert next(iter(fields)) in answer.json()["error"]["message"]


def test_a_stop_sequence_that_was_met_is_named(client: anthropic.Anthropic) -> None:
    greedy = {"model": "tiny", "messages": ASK, "extra_body": {"temperature": 0}}
    text = client.messages.create(**greedy, max_tokens=24).content[0].text
    stop = text[5:7]
    wanted = greedy | {"max_tokens": 24, "stop_sequences": ["\u0000never", stop]}
    whole = client.messages.create(**wanted)
    assert (whole.stop_reason, whole.stop_sequence) == ("stop_sequence", stop)
    with client.messages.stream(**wanted) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", stop)


def test_more_tokens_than_the_context_holds_are_cut_to_what_is_left(
    client: anthropic.Anthropic,
) -> None:
    message = client.messages.create(
        model="tiny",
        messages=ASK,
        max_tokens=20_000,
        extra_body={"temperature": 0, "stop_sequences": []},
    )
    whole = message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
    if message.stop_reason == "max_tokens":
        assert whole + message.usage.output_tokens == 512
    else:
        assert message.stop_reason == "end_turn"
