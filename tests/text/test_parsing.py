"""Answers taken apart while they arrive, in pieces of any size."""

from __future__ import annotations

import json

import pytest

from atelier.text.calls import FORMATS, forced_call_grammar, format_of, schemas_of
from atelier.text.parsing import AnswerParser, AnswerPart
from atelier.text.request import make_request

HERMES = 'First.\n<tool_call>\n{"name": "draw", "arguments": {"size": "large"}}\n</tool_call>'
GLM = (
    "<tool_call>draw\n<arg_key>size</arg_key>\n<arg_value>large</arg_value>\n"
    "<arg_key>n</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"
)


def parse(
    text: str, form: str = "hermes", step: int = 1, thinking: bool = False
) -> list[AnswerPart]:
    parser = AnswerParser(FORMATS[form], reasoning=True, thinking=thinking)
    parts = [part for at in range(0, len(text), step) for part in parser.add(text[at : at + step])]
    return parts + parser.end()


def said(parts: list[AnswerPart], kind: str) -> str:
    return "".join(getattr(part, kind) for part in parts)


@pytest.mark.parametrize("step", [1, 3, 7, 1000])
def test_a_tool_call_is_found_however_the_text_is_cut(step: int) -> None:
    parts = parse(HERMES, step=step)
    assert said(parts, "content").strip() == "First."
    (call,) = [part.call for part in parts if part.call]
    assert (call.name, json.loads(call.arguments)) == ("draw", {"size": "large"})


@pytest.mark.parametrize("step", [1, 5, 1000])
def test_glm_calls_keep_the_types_of_their_arguments(step: int) -> None:
    (call,) = [part.call for part in parse(GLM, "glm47", step) if part.call]
    assert json.loads(call.arguments) == {"size": "large", "n": 2}


def test_two_calls_in_one_answer_are_two_parts() -> None:
    calls = [
        part.call for part in parse(HERMES + "\n" + HERMES.removeprefix("First.\n")) if part.call
    ]
    assert len(calls) == 2


@pytest.mark.parametrize(
    "text", ["<tool_call>not json</tool_call>", '<tool_call>{"name": "dr', "a < b <too"]
)
def test_what_is_no_call_after_all_is_content(text: str) -> None:
    parts = parse(text)
    assert not any(part.call for part in parts)
    assert said(parts, "content").replace("\n", "") in text + "</tool_call>"
    assert said(parts, "content")


def test_llamas_bare_json_is_a_call() -> None:
    (call,) = [
        part.call
        for part in parse('{"name": "draw", "parameters": {"size": "small"}}', "llama3_json")
    ]
    assert call is not None
    assert json.loads(call.arguments) == {"size": "small"}


@pytest.mark.parametrize("step", [1, 4, 1000])
def test_reasoning_is_told_from_content(step: int) -> None:
    parts = parse("<think>\nhm, well\n</think>\n\nYes.", step=step)
    assert said(parts, "reasoning").strip() == "hm, well"
    assert said(parts, "content") == "Yes."


def test_reasoning_that_the_prompt_opened_needs_no_mark() -> None:
    parts = parse("hm</think>Yes.", thinking=True)
    assert (said(parts, "reasoning"), said(parts, "content")) == ("hm", "Yes.")


def test_content_is_not_held_back_longer_than_it_might_be_a_mark() -> None:
    parser = AnswerParser(FORMATS["hermes"], reasoning=True)
    assert parser.add("hello <") == [AnswerPart(content="hello ")]
    assert parser.add("b>") == [AnswerPart(content="<b>")]


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("<arg_key> <tool_call>", "glm47"),
        ("<tool_call>", "hermes"),
        ("<tool_call> <function=example>", "qwen3_coder"),
        ('tools "parameters"', "llama3_json"),
        ("", ""),
    ],
)
def test_the_form_of_calls_is_read_from_the_template(template: str, form: str) -> None:
    assert format_of(template) == form


def test_a_grammar_is_made_only_for_calls_that_are_forced() -> None:
    tools = ({"type": "function", "function": {"name": "draw"}},)
    messages = ({"role": "user", "content": "x"},)
    free = make_request(messages=messages, tools=tools)
    forced = make_request(messages=messages, tools=tools, tool_choice="draw")
    assert forced_call_grammar(free, "hermes", set()) is None
    assert '"const": "draw"' in (forced_call_grammar(forced, "hermes", set()) or "")


CODER = (
    "I look.\n<tool_call>\n<function=find>\n<parameter=code>\n007\n</parameter>\n"
    "<parameter=count>\n3\n</parameter>\n<parameter=deep>\nTrue\n</parameter>\n"
    '<parameter=tags>\n["a", "b"]\n</parameter>\n</function>\n</tool_call>'
)
FIND = {
    "type": "function",
    "function": {
        "name": "find",
        "parameters": {
            "type": "object",
            "properties": {
                "code": {"type": "string"},
                "count": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                "deep": {"type": "boolean"},
                "tags": {"type": "array"},
            },
            "required": ["code"],
        },
    },
}


@pytest.mark.parametrize("text", [CODER, CODER.replace("<tool_call>\n", "").split("\n</tool")[0]])
@pytest.mark.parametrize("step", [1, 6, 1000])
def test_xml_calls_get_the_types_of_their_schema(step: int, text: str) -> None:
    request = make_request(messages=[{"role": "user", "content": "x"}], tools=[FIND])
    parser = AnswerParser(FORMATS["qwen3_coder"], True, schemas=schemas_of(request))
    parts = [part for at in range(0, len(text), step) for part in parser.add(text[at : at + step])]
    parts += parser.end()
    (call,) = [part.call for part in parts if part.call]
    wanted = {"code": "007", "count": 3, "deep": True, "tags": ["a", "b"]}
    assert (call.name, json.loads(call.arguments)) == ("find", wanted)
    assert said(parts, "content").strip() == "I look."


def test_glm_calls_follow_the_schema_where_there_is_one() -> None:
    text = GLM.replace("large", "007").replace("draw", "find").replace("size", "code")
    request = make_request(messages=[{"role": "user", "content": "x"}], tools=[FIND])
    parser = AnswerParser(FORMATS["glm47"], True, schemas=schemas_of(request))
    (call,) = [part.call for part in [*parser.add(text), *parser.end()] if part.call]
    assert json.loads(call.arguments) == {"code": "007", "n": 2}
