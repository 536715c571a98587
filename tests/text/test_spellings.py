"""Bodies of language models' clients by other spellings than test_openai and its kin have: nulls
and empties, choices of tools, histories, templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from atelier.protocols.openai.text_bodies import chat_request
from atelier.text.request import make_request
from atelier.text.template import PromptEncoder
from tests.text.running import Server
from tests.text.tiny import PLAIN, TEMPLATE

ASK: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
EMPTY = {"type": "object", "properties": {}, "additionalProperties": False}
FUNCTION = {"name": "look", "parameters": EMPTY}
TOOL = {"type": "function", "function": FUNCTION}
OTHER = {"type": "function", "function": FUNCTION | {"name": "hear"}}


def post(server: Server, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/{path}", json={"model": "tiny"} | body, timeout=60)


def chat(server: Server, *messages: dict[str, Any], **fields: Any) -> httpx.Response:
    return post(server, "chat/completions", messages=messages, **{"max_tokens": 2} | fields)


# Nulls and empties

FIELDS = ("temperature", "top_p", "top_k", "seed", "n", "stop", "stop_token_ids", "logit_bias",
          "response_format", "stream", "stream_options", "tools", "tool_choice", "user", "logprobs",
          "top_logprobs", "max_completion_tokens", "reasoning_effort", "metadata", "functions",
          "modalities", "audio", "service_tier", "model", "timeout", "echo", "suffix", "best_of",
          "include", "instructions", "previous_response_id", "reasoning", "text", "truncation",
          "stop_sequences", "system", "thinking", "output_config", "dimensions",
          "encoding_format", "add_special_tokens")  # fmt: skip
ROUTES: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": ASK, "max_tokens": 1},
    "completions": {"prompt": "hello", "max_tokens": 1},
    "responses": {"input": "hello", "max_output_tokens": 1},
    "messages": {"messages": ASK, "max_tokens": 1},
    "embeddings": {"input": "hello"},
}


@pytest.mark.parametrize("nothing", [None, ""])
@pytest.mark.parametrize("route", ROUTES)
def test_empty_fields_of_every_route_are_absent(server: Server, route: str, nothing: Any) -> None:
    answer = post(server, route, **dict.fromkeys(FIELDS, nothing) | ROUTES[route])
    assert answer.status_code == 200, answer.text
    assert "warnings" not in answer.json()


HARMLESS: list[dict[str, Any]] = [
    {"stop": [""]},
    {"stop": ["~~~", "", None]},
    {"stream_options": {}},
    {"stream_options": {"include_usage": None}},
    {"stream": "false"},
    {"top_logprobs": "0"},
    {"tools": [TOOL | {"function": {"name": "look", "description": None, "parameters": None}}]},
    {"tools": [], "tool_choice": "auto"},
    {"response_format": {}},
]


@pytest.mark.parametrize("fields", HARMLESS, ids=str)
def test_what_asks_for_nothing_is_harmless(server: Server, fields: dict[str, Any]) -> None:
    answer = chat(server, *ASK, **fields)
    assert answer.status_code == 200, answer.text


def test_fields_of_vllm_without_effect_are_told(server: Server) -> None:
    answer = chat(server, *ASK, typical_p=0.9, min_tokens=1, min_p=0)
    told = [each.partition(":")[0] for each in answer.json()["warnings"]]
    assert told == ["min_tokens", "typical_p"]


YES = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
YES |= {"additionalProperties": False}


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_json": YES},
        {"guided_json": json.dumps(YES), "guided_regex": None},
        {"structured_outputs": {"json": YES, "regex": None, "disable_fallback": False}},
    ],
    ids=str,
)
def test_a_schema_in_vllms_fields_is_followed(server: Server, fields: dict[str, Any]) -> None:
    answer = chat(server, *ASK, max_tokens=40, **fields).json()
    assert set(json.loads(answer["choices"][0]["message"]["content"])) == {"yes"}


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"guided_choice": ["a", "b"]}, "guided_choice"),
        ({"structured_outputs": {"regex": "a+"}}, "structured_outputs.regex"),
        ({"structured_outputs": "a+"}, "structured_outputs"),
        ({"guided_json": "{"}, "JSON"),
        ({"guided_json": YES, "response_format": {"type": "json_object"}}, "response_format"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"bad_words": ["no"]}, "bad_words"),
    ],
    ids=str,
)
def test_forms_that_are_not_offered_are_refused(
    server: Server, fields: dict[str, Any], name: str
) -> None:
    answer = chat(server, *ASK, **fields)
    assert (answer.status_code, name in answer.text) == (400, True), answer.text


@pytest.mark.parametrize("tokens", ["2", 2.0])
def test_numbers_of_messages_may_be_texts_and_floats(server: Server, tokens: Any) -> None:
    answer = post(server, "messages", messages=ASK, max_tokens=tokens)
    assert answer.json()["usage"]["output_tokens"] == 2


# Tools and forms

CHOICES: list[tuple[Any, str, list[str]]] = [
    ({"type": "function", "name": "hear"}, "hear", ["look", "hear"]),
    ({"type": "tool", "name": "hear"}, "hear", ["look", "hear"]),
    ({"type": "auto"}, "auto", ["look", "hear"]),
    ({"type": "none"}, "none", ["look", "hear"]),
    (
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [OTHER]}},
        "required",
        ["hear"],
    ),
]


@pytest.mark.parametrize(("choice", "name", "offered"), CHOICES, ids=str)
def test_a_choice_of_tools_in_further_spellings(choice: Any, name: str, offered: list[str]) -> None:
    wanted = chat_request({"messages": ASK, "tools": [TOOL, OTHER], "tool_choice": choice})
    assert wanted.tool_choice == name
    assert [tool["function"]["name"] for tool in wanted.tools] == offered


def test_v1_forces_a_tool_that_is_named_as_openai_names_it(server: Server) -> None:
    choice = {"type": "function", "function": {"name": "look"}}
    instance = {"messages": ASK, "tools": [TOOL], "tool_choice": choice, "max_tokens": 99}
    answer = httpx.post(
        f"{server.url}/v1/models/tiny:predict", json={"instances": [instance]}, timeout=60
    )
    assert answer.json()["predictions"][0]["tool_calls"] == [{"name": "look", "arguments": "{}"}]


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_a_schema_beside_the_type_is_followed(server: Server, kind: str) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["b"]}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    fields = {"response_format": {"type": kind, "schema": schema}, "max_tokens": 60}
    answer = post(server, "chat/completions", messages=ASK, **fields)
    content = answer.json()["choices"][0]["message"]["content"]
    assert content.replace(" ", "").replace("\n", "") == '{"a":"b"}'


# Histories


def call(**function: Any) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "look"} | function}


def said(content: Any = None, **further: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content} | further


RESULT = {"role": "tool", "tool_call_id": "c", "content": "seen"}
HISTORIES: dict[str, list[dict[str, Any]]] = {
    "nulls": [said("x", tool_calls=None, refusal=None, audio=None, function_call=None)],
    "no calls": [said("x", tool_calls=[])],
    "a refusal": [said(refusal="no")],
    "a refusal as a part": [said([{"type": "refusal", "refusal": "no"}])],
    "thoughts as parts": [
        said([{"type": "thinking", "thinking": "?"}, {"type": "text", "text": "x"}])
    ],
    "texts as parts": [said(["x", "y"])],
    "a part without text": [said([{"type": "text", "text": None}])],
    "cached": [said([{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}])],
    "no arguments": [said(tool_calls=[call()]), RESULT],
    "null arguments": [said(tool_calls=[call(arguments=None)]), RESULT],
    "arguments as a list": [said(tool_calls=[call(arguments=[1])]), RESULT],
    "a result without text": [said(tool_calls=[call()]), RESULT | {"content": None}],
    "a custom call": [
        said(tool_calls=[{"id": "c", "type": "custom", "custom": {"name": "look", "input": "x"}}]),
        RESULT,
    ],
    "the older form": [
        said(function_call={"name": "look", "arguments": "{}"}),
        {"role": "function", "name": "look", "content": "seen"},
    ],
    "an empty system text": [{"role": "system", "content": None}],
}  # fmt: skip


@pytest.mark.parametrize("kind", HISTORIES)
def test_histories_of_further_clients(server: Server, kind: str) -> None:
    answer = chat(server, *ASK, *HISTORIES[kind], {"role": "user", "content": "and now?"})
    assert answer.status_code == 200, answer.text


def test_a_content_that_is_none_is_shown(server: Server) -> None:
    answer = chat(server, *ASK, said(), RESULT | {"content": {"seen": 3}})
    assert answer.status_code == 400
    assert "messages.2.content={'seen': 3}" in answer.json()["error"]["message"]


def test_items_of_tools_that_are_not_here_are_left_out_and_told(server: Server) -> None:
    items = [
        {"role": "user", "content": ["hello"]},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "mcp_list_tools", "id": "m_1", "server_label": "x", "tools": []},
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": {"at": 1}},
        {"type": "function_call_output", "call_id": "c", "output": None},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "and now?"},
    ]
    answer = post(server, "responses", input=items, max_output_tokens=2)
    assert answer.status_code == 200, answer.text
    assert [each.partition(": taken")[0] for each in answer.json()["warnings"]] == [
        "input.type='web_search_call'",
        "input.type='mcp_list_tools'",
    ]


@pytest.mark.parametrize("name", ["max_tokens", "response_format", "messages"])
def test_a_chats_field_in_a_response_is_called_by_its_name_here(server: Server, name: str) -> None:
    value = {"type": "json_object"} if name == "response_format" else 2
    answer = post(server, "responses", input="hello", **{name: value})
    assert answer.status_code == 400
    assert "called" in answer.json()["error"]["message"]


USED = {"type": "tool_use", "id": "t", "name": "look", "input": {}}
BLOCKS: dict[str, list[dict[str, Any]]] = {
    "a cut input": [USED | {"input": '{"at": '}],
    "no input": [USED | {"input": None}],
    "tools of the maker": [
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
        {"type": "text", "text": "found"},
    ],
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_messages_with_further_blocks(server: Server, kind: str) -> None:
    found = {"type": "search_result", "source": "s", "title": "t",
             "content": [{"type": "text", "text": "seen"}]}  # fmt: skip
    result = {"type": "tool_result", "tool_use_id": "t", "content": [found]}
    turns = [*ASK, said(BLOCKS[kind]), {"role": "user", "content": [result]}]
    answer = post(server, "messages", messages=turns, max_tokens=2)
    assert answer.status_code == 200, answer.text


def test_a_picture_in_a_result_is_told_where_the_client_has_it(server: Server) -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]}
    turns = [*ASK, said([USED]), {"role": "user", "content": [result]}]
    answer = post(server, "messages", messages=turns, max_tokens=2)
    assert answer.status_code == 400
    assert "messages.2.tool_result.content has a block of type 'image'" in answer.text


@pytest.mark.parametrize("stream", [False, True])
def test_tools_that_the_maker_runs_are_left_out_and_told(server: Server, stream: bool) -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search"}]
    answer = post(server, "messages", messages=ASK, max_tokens=2, tools=tools, stream=stream)
    assert "tools.type='web_search_20250305': taken and without effect" in answer.text
    alone = post(server, "messages/count_tokens", messages=ASK, tools=tools).json()
    assert alone == post(server, "messages/count_tokens", messages=ASK).json()


# Triton's generate


def test_generate_takes_parameters_where_triton_does(server: Server) -> None:
    url = f"{server.url}/v2/models/tiny/generate"
    asked = {"text_input": "hello", "seed": 3, "stream": False, "exclude_input_in_output": True}
    beside = httpx.post(url, json=asked | {"max_tokens": 3, "stop": "", "id": "7"}, timeout=60)
    inside = httpx.post(
        f"{server.url}/v2/models/tiny/versions/1/generate",
        json={"text_input": "hello", "parameters": {"seed": 3, "max_tokens": 3, "stream": False}},
        timeout=60,
    )
    assert beside.status_code == 200, beside.text
    assert beside.json() == inside.json()
    for field, value in {"stream": True, "details": True, "exclude_input_in_output": False}.items():
        refused = httpx.post(url, json=asked | {field: value}, timeout=60)
        assert refused.status_code == 400
        assert field in refused.json()["error"]


# Chat templates

STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
)
PARTS = """{% for message in messages %}{% for part in message['content'] %}
{%- if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"""
COUNTING = """{% for message in messages %}{% if 'tool_calls' in message %}
{{- raise_exception('one call at a time') }}{% endif %}{{ message.content }}{% endfor %}tools"""


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint)


def rendered(tokenizer: Any, template: Any, *messages: dict[str, Any], **fields: Any) -> str:
    tokenizer.chat_template = template
    encoder = PromptEncoder(tokenizer, 512)
    return encoder.render(make_request(messages=messages, **fields))


def test_of_several_templates_the_one_for_tools_is_taken_with_tools(tokenizer: Any) -> None:
    several = {"default": PLAIN, "tool_use": TEMPLATE.replace("Tools:", "Offered:")}
    assert "Offered" not in rendered(tokenizer, several, *ASK)
    written = rendered(tokenizer, several, *ASK, tools=[TOOL])
    assert written.count("look") == 1
    assert "Offered:" in written
    assert "hello" in rendered(tokenizer, {"rag": PLAIN}, *ASK)


def test_a_template_without_a_system_role_has_its_text_before_the_users(tokenizer: Any) -> None:
    system = {"role": "developer", "content": "Be brief."}
    turns = [system, *ASK, *ASK, said("yes"), said("sir"), *ASK]
    written = rendered(tokenizer, STRICT, *turns)
    assert written.count("<|im_start|>user") == 2
    assert "<|im_start|>user\nBe brief.\n\nhello\n\nhello<|im_end|>" in written
    assert "<|im_start|>assistant\nyes\n\nsir<|im_end|>" in written
    assert "system\nBe brief." in rendered(tokenizer, TEMPLATE, *turns)


def test_a_template_that_reads_parts_gets_parts(tokenizer: Any) -> None:
    assert rendered(tokenizer, PARTS, *ASK) == "hello"


def test_keys_with_nothing_in_them_are_not_there_for_a_template(tokenizer: Any) -> None:
    turns = [*ASK, said("x", tool_calls=None), said("y", tool_calls=[])]
    assert rendered(tokenizer, COUNTING, *turns) == "helloxytools"
