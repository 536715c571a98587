"""What Codex sends to a provider with `wire_api = "responses"`, by the forms of its source
(github.com/openai/codex, codex-rs/core/src/client.rs and its tools). It is an application, so its
requests are played here: nothing is kept, and each turn sends all items again."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.conftest import Server

HEADERS = {
    "Authorization": "Bearer none",
    "Accept": "text/event-stream",
    "originator": "codex_cli_rs",
    "session_id": "01990a3c-1111-7000-8000-000000000000",
    "User-Agent": "codex_cli_rs/0.99.0 (Linux; x86_64) xterm",
}
SHELL = {
    "type": "function",
    "name": "generate_image",
    "description": "Draws.",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {"prompt": {"type": "string"}},
        "required": ["prompt"],
        "additionalProperties": False,
    },
}
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'},
}
SEARCH = {"type": "web_search", "external_web_access": False}


def said(role: str, text: str) -> dict[str, Any]:
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "role": role, "content": content}


def ask(server: Server, items: list[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    """One turn; the events, each with the name that its frame has."""
    body = {
        "model": server.model,
        "instructions": "",
        "input": items,
        "tools": [SHELL],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": HEADERS["session_id"],
        "text": {"verbosity": "medium"},
        "temperature": 0,
    } | fields
    answer = httpx.post(f"{server.url}/v1/responses", json=body, headers=HEADERS, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def test_a_call_is_made_and_its_output_answered(scenes: Server) -> None:
    wish = said("user", "Please draw a red circle above a blue square.")
    first = ask(scenes, [wish])
    (done,) = [one["item"] for one in first if one["type"] == "response.output_item.done"]
    assert (done["type"], done["name"]) == ("function_call", "generate_image")
    drawn = json.loads(done["arguments"])["prompt"]
    assert first[-1]["type"] == "response.completed"
    assert first[-1]["response"]["usage"]["output_tokens"] > 0
    output = {"type": "function_call_output", "call_id": done["call_id"], "output": drawn}
    second = ask(scenes, [wish, done, output])
    deltas = [one["delta"] for one in second if one["type"] == "response.output_text.delta"]
    assert "".join(deltas) == f"Here is your picture: {drawn}."


def test_its_messages_of_a_developer_and_tools_of_all_kinds_are_taken(scenes: Server) -> None:
    items = [
        said("developer", "<permissions instructions>You may read.</permissions instructions>"),
        said("user", "<environment_context><cwd>/src</cwd></environment_context>"),
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": "gAAAA"},
        {"role": "assistant", "type": "message", "content": [
            {"type": "output_text", "text": "Ready."}
        ]},
        said("user", "something round and red"),
    ]  # fmt: skip
    (done,) = [
        one
        for one in ask(scenes, items, tools=[SHELL, PATCH, SEARCH], instructions="You draw.")
        if one["type"] == "response.completed"
    ]
    told = " ".join(done["response"]["warnings"])
    assert "web_search" in told
    assert "tools.1.format" in told
