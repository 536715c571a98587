"""Items of OpenAI's Responses API, which a conversation consists of there: read, with ids of our
own, and as the turns of a chat.

An item's id holds the key of the response that it belongs to, so that a reference to it finds it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import orjson

from atelier.bounds import MAX_MESSAGES
from atelier.errors import InvalidRequest, shown
from atelier.protocols.openai.idle_fields import without_effect

Item = dict[str, Any]

ROLES = ("user", "assistant", "system", "developer")
TEXTS = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "reasoning_text": "text",
    "summary_text": "text",
    "refusal": "refusal",
}
"""Types of parts, each with the field that holds its text."""

PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
}
"""The types that are understood, each with the beginning of its ids."""

LEFT_OUT = re.compile(
    r"(web_search|file_search|code_interpreter|image_generation|local_shell|shell|apply_patch"
    r"|tool_search)_(call|output|call_output)|mcp_\w+|compaction"
)
"""Types of items of tools that are not offered here: what earlier answers of other servers hold."""

KEY_CHARACTERS = 32


def item_id(kind: str, key: str, index: int) -> str:
    """The id of a response's item, input and output counted through."""
    return f"{PREFIXES[kind]}_{key}{index:04x}"


def key_of(identifier: str) -> str:
    """The key of the response that an item or a response is called after."""
    return identifier.partition("_")[2][:KEY_CHARACTERS]


def read_items(given: Any, key: str, found: Callable[[str], Item], told: list[str]) -> list[Item]:
    """The `input` of a body as whole items of the response `key`.

    Args:
        found: gives the kept item of an id, or raises NotFound.
        told: gets a warning for each type of items that is left out.

    Raises:
        InvalidRequest: names the item and what is allowed.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise InvalidRequest("input must be text or a list of items", "input")
    if len(given) > MAX_MESSAGES:
        raise InvalidRequest(
            f"input has {len(given)} items; at most {MAX_MESSAGES} are taken", "input"
        )
    items = []
    for index, item in enumerate(given):
        where = f"input.{index}"
        if not isinstance(item, dict):
            raise InvalidRequest(f"{where}={shown(item)} must be an object", where)
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind == "item_reference" or (kind is None and isinstance(item.get("id"), str)):
            items.append(found(str(item.get("id"))))
            continue
        if LEFT_OUT.fullmatch(str(kind)):
            if (warning := without_effect(f"input.type={shown(kind)}")) not in told:
                told.append(warning)
            continue
        reader = READERS.get(str(kind))
        if reader is None:
            raise InvalidRequest(
                f"{where}.type={shown(kind)}: allowed: {', '.join(PREFIXES)}, item_reference",
                f"{where}.type",
            )
        whole = {"id": item_id(str(kind), key, index), "type": str(kind)}
        items.append(whole | reader(item, where))
    return items


def turns_of(items: list[Item]) -> list[dict[str, Any]]:
    """The items as messages of a chat: calls side by side are one turn, and reasoning goes with
    the turn that came of it."""
    turns: list[dict[str, Any]] = []
    thought = ""
    for item in items:
        kind = item["type"]
        if kind == "reasoning":
            thought += text_of(item["content"] or item["summary"])
        elif kind.endswith("_output"):
            turn = {"role": "tool", "tool_call_id": item["call_id"]}
            turns.append(turn | {"content": text_of(item["output"])})
        elif kind == "message" and item["role"] != "assistant":
            thought = ""
            turns.append({"role": item["role"], "content": text_of(item["content"])})
        else:
            last = turns[-1] if turns else {}
            if last.get("role") != "assistant" or thought or kind == "message":
                last = {"role": "assistant", "content": ""}
                last |= {"reasoning_content": thought} if thought else {}
                turns.append(last)
                thought = ""
            if kind == "message":
                last["content"] = text_of(item["content"])
            else:
                last.setdefault("tool_calls", []).append(_call(item))
    return turns


def text_of(content: Any) -> str:
    """The text of parts that were read."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content)


def _call(item: Item) -> dict[str, Any]:
    custom = item["type"] == "custom_tool_call"
    arguments = {"input": item["input"]} if custom else item["arguments"]
    function = {"name": item["name"], "arguments": arguments}
    return {"id": item["call_id"], "type": "function", "function": function}


def _message(item: Item, where: str) -> Item:
    role = item.get("role")
    if role not in ROLES:
        raise InvalidRequest(
            f"{where}.role={shown(role)}: allowed: {', '.join(ROLES)}", f"{where}.role"
        )
    said = role == "assistant"
    empty: Item = {"annotations": [], "logprobs": []} if said else {}
    kind = "output_text" if said else "input_text"
    given = item.get("content")
    texts = _texts("" if given is None and said else given, where)
    content = [{"type": kind, "text": text, **empty} for text in texts]
    return {"role": role, "status": "completed", "content": content}


def _function_call(item: Item, where: str) -> Item:
    return {
        "call_id": _word(item, "call_id", where),
        "name": _word(item, "name", where),
        "arguments": _arguments(item, where),
        "status": "completed",
    }


def _custom_call(item: Item, where: str) -> Item:
    return {name: _word(item, name, where) for name in ("call_id", "name", "input")}


def _output(item: Item, where: str) -> Item:
    output = item.get("output")
    texts = _texts("" if output is None else output, where, "output")
    return {
        "call_id": _word(item, "call_id", where),
        "output": "".join(texts),
        "status": "completed",
    }


def _reasoning(item: Item, where: str) -> Item:
    parts: Item = {}
    for field, kind in (("summary", "summary_text"), ("content", "reasoning_text")):
        texts = _texts(item.get(field) or [], where, field)
        parts[field] = [{"type": kind, "text": text} for text in texts]
    return parts


READERS: dict[str, Callable[[Item, str], Item]] = {
    "message": _message,
    "reasoning": _reasoning,
    "function_call": _function_call,
    "function_call_output": _output,
    "custom_tool_call": _custom_call,
    "custom_tool_call_output": _output,
}


def _arguments(item: Item, where: str) -> str:
    """The text of a call's arguments, which some clients have read already."""
    given = item.get("arguments")
    if isinstance(given, dict):
        return orjson.dumps(given).decode()
    return _word(item, "arguments", where)


def _word(item: Item, name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(f"{where}.{name}={shown(value)} must be text", f"{where}.{name}")
    return value


def _texts(content: Any, where: str, field: str = "content") -> list[str]:
    """The texts of a content, part by part."""
    name = f"{where}.{field}"
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise InvalidRequest(f"{name}={shown(content)} must be text or a list of parts", name)
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else part
        held_in = TEXTS.get(kind) if isinstance(kind, str) else None
        text = part.get(held_in) if held_in and isinstance(part, dict) else None
        if not isinstance(text, str):
            raise InvalidRequest(
                f"{name} has a part of type {shown(kind)}; this model reads text only", name
            )
        texts.append(text)
    return texts
