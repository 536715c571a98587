"""Bodies of OpenAI's Responses API to TextRequests: what a chat calls otherwise, what only this
route has, and what the answer repeats."""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from atelier.bounds import MAX_ENTRIES
from atelier.errors import InvalidRequest, shown
from atelier.protocols.openai.idle_fields import (
    REFUSED_BY_RESPONSES,
    TAKEN_BY_RESPONSES,
    refuse,
    warnings,
    without_effect,
)
from atelier.protocols.openai.response_items import Item, read_items, turns_of
from atelier.protocols.openai.response_store import ResponseStore
from atelier.protocols.openai.text_bodies import shared_fields, switch, template_arguments
from atelier.text.request import TextRequest, make_request

LOGPROBS = "message.output_text.logprobs"
WORDS = {
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "prompt": "input",
    "response_format": "text.format",
    "logprobs": "top_logprobs",
}
"""Fields of a TextRequest, and what they are called here."""

MAX_PAIRS, MAX_NAME, MAX_WORD = 16, 64, 512
"""Of `metadata`, as OpenAI has them: pairs, characters of a name and of a value."""

CUSTOM_SCHEMA = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
"""A custom tool takes free text: to the model, a function with one argument."""


@dataclass(frozen=True)
class WantedResponse:
    """A request, and what of its body the route itself needs.

    `items` are the conversation: those of earlier turns, then the body's own. `custom` names the
    tools that take free text; `repeated` are the fields that the answer repeats; `offset` is the
    number of items of the body, from which those of the answer are counted.
    """

    request: TextRequest
    key: str
    items: list[Item]
    offset: int
    custom: frozenset[str]
    store: bool
    truncate: bool
    repeated: dict[str, Any]
    warnings: list[str]


def read_response(
    body: dict[str, Any], store: ResponseStore, read: Collection[str] = ()
) -> WantedResponse:
    """A `/v1/responses` body; `read` are the fields that the chat template reads.

    Raises:
        InvalidRequest: names the field, its value and what is allowed.
        NotFound: it goes on from a response, or refers to an item, that is not kept.
    """
    refuse(body, REFUSED_BY_RESPONSES)
    if body.get("n") not in (None, 1):
        raise InvalidRequest(f"n={shown(body['n'])}: a response has one answer", "n")
    key, told = uuid.uuid4().hex, warnings(body, TAKEN_BY_RESPONSES)
    own = read_items(body.get("input"), key, store.item, told)
    previous = _text(body, "previous_response_id")
    items = [*(store.get(previous).conversation if previous else []), *own]
    instructions = _text(body, "instructions")
    turns = [{"role": "system", "content": instructions}] if instructions else []
    tools, custom = _tools(body.get("tools"), told)
    tools, choice = _choice(body.get("tool_choice"), tools)
    text, form = _text_options(body, told)
    reasoning = _reasoning(body, told, "reasoning_effort" in read)
    top = body.get("top_logprobs")
    listed = LOGPROBS in _include(body, told)
    shared = shared_fields(body)
    with own_words():
        request = make_request(
            messages=[*turns, *turns_of(items)],
            max_tokens=body.get("max_output_tokens"),
            logprobs=top if top else 0 if listed else None,
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=body.get("parallel_tool_calls"),
            template_arguments=template_arguments(body, reasoning["effort"], "reasoning.effort"),
            **shared | {"n": 1, "response_format": form},
        )
    keep = body.get("store") is None or switch(body, "store")
    repeated = {
        "background": False,
        "instructions": instructions,
        "max_output_tokens": request.max_tokens,
        "max_tool_calls": None,
        "metadata": _metadata(body),
        "parallel_tool_calls": request.parallel_tool_calls,
        "previous_response_id": previous,
        "reasoning": reasoning,
        "service_tier": "default",
        "store": keep,
        "temperature": body.get("temperature"),
        "text": text,
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_logprobs": top or 0,
        "top_p": body.get("top_p"),
        "truncation": "auto" if _truncates(body) else "disabled",
    }
    truncate = _truncates(body)
    return WantedResponse(request, key, items, len(own), custom, keep, truncate, repeated, told)


@contextmanager
def own_words() -> Iterator[None]:
    """Errors raised inside name fields as this route does."""
    try:
        yield
    except InvalidRequest as error:
        root, dot, rest = (error.field or "").partition(".")
        if root not in WORDS:
            raise
        message = re.sub(rf"\b{root}\b", WORDS[root], error.message)
        raise InvalidRequest(message, WORDS[root] + dot + rest) from None


def _text(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{name}={shown(value)} must be text", name)
    return value or None


def _object(body: dict[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise InvalidRequest(f"{name}={shown(value)} must be an object", name)
    return value or {}


def _tools(given: Any, told: list[str]) -> tuple[list[dict[str, Any]], frozenset[str]]:
    """The tools that the model is offered, and the names of those that take free text. What only
    OpenAI's own servers run is left out, with a warning."""
    if given is None:
        return [], frozenset()
    if not isinstance(given, list):
        raise InvalidRequest("tools must be a list of objects with type and name", "tools")
    tools, custom = [], set()
    for index, tool in enumerate(given):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if not isinstance(kind, str):
            raise InvalidRequest(f"tools.{index}.type is missing", f"tools.{index}.type")
        if kind not in ("function", "custom"):
            if len(told) < MAX_ENTRIES:
                told.append(without_effect(f"tools.{index}.type={shown(kind)}"))
            continue
        name = tool.get("name")
        if not isinstance(name, str):
            raise InvalidRequest(f"tools.{index}.name is missing", f"tools.{index}.name")
        function = {"name": name}
        if tool.get("description") is not None:
            function["description"] = tool["description"]
        schema = tool.get("parameters") or {"type": "object"}
        if kind == "custom":
            custom.add(name)
            schema = CUSTOM_SCHEMA
            if tool.get("format") not in (None, {"type": "text"}):
                told.append(without_effect(f"tools.{index}.format"))
        tools.append({"type": "function", "function": function | {"parameters": schema}})
    return tools, frozenset(custom)


def _choice(value: Any, tools: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str | None]:
    """The tools that may be called, and which must be."""
    if value is None or isinstance(value, str):
        return tools, value
    kind = value.get("type") if isinstance(value, dict) else value
    if kind in ("function", "custom") and isinstance(value.get("name"), str):
        return tools, value["name"]
    allowed = value.get("tools") if kind == "allowed_tools" else None
    if not isinstance(allowed, list):
        raise InvalidRequest(
            f"tool_choice={shown(value)}: allowed: auto, none, required, a function or custom tool"
            " by type and name, or allowed_tools with mode and tools",
            "tool_choice",
        )
    names = [tool.get("name") for tool in allowed if isinstance(tool, dict)]
    return [tool for tool in tools if tool["function"]["name"] in names], value.get("mode")


def _text_options(
    body: dict[str, Any], told: list[str]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """`text` as the answer repeats it, and the form that it asks for."""
    given = _object(body, "text")
    if given.get("verbosity") not in (None, "medium"):
        told.append(without_effect("text.verbosity"))
    form = given.get("format")
    if form is None:
        return {"format": {"type": "text"}}, None
    if not isinstance(form, dict):
        raise InvalidRequest(f"text.format={shown(form)} must be an object", "text.format")
    asked = {"type": form.get("type")}
    if form.get("type") == "json_schema":
        asked["json_schema"] = {"schema": form.get("schema")}
    return {"format": form}, asked


def _reasoning(body: dict[str, Any], told: list[str], read: bool) -> dict[str, Any]:
    given = _object(body, "reasoning")
    told += [
        without_effect(f"reasoning.{name}")
        for name in ("effort", "summary", "generate_summary", "mode", "context")
        if given.get(name) is not None and not (read and name == "effort")
    ]
    return {"effort": given.get("effort"), "summary": given.get("summary")}


def _include(body: dict[str, Any], told: list[str]) -> list[str]:
    given = body.get("include") or []
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise InvalidRequest(f"include={shown(given)} must be a list of names", "include")
    if len(given) > MAX_ENTRIES:
        raise InvalidRequest(
            f"include has {len(given)} names; at most {MAX_ENTRIES} are taken", "include"
        )
    told += [without_effect(f"include={shown(one)}") for one in given if one != LOGPROBS]
    return given


def _metadata(body: dict[str, Any]) -> dict[str, str]:
    given = _object(body, "metadata")
    if len(given) > MAX_PAIRS or not all(
        isinstance(value, str) and len(value) <= MAX_WORD and len(name) <= MAX_NAME
        for name, value in given.items()
    ):
        raise InvalidRequest(
            f"metadata={shown(given)}: at most {MAX_PAIRS} pairs are taken, names of {MAX_NAME}"
            f" characters, values that are texts of {MAX_WORD}",
            "metadata",
        )
    return given


def _truncates(body: dict[str, Any]) -> bool:
    given = body.get("truncation")
    if given not in (None, "disabled", "auto"):
        raise InvalidRequest(f"truncation={shown(given)}: allowed: auto, disabled", "truncation")
    return given == "auto"
