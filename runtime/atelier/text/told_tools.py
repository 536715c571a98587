"""Tools for chat templates that know none: they are told in words, calls become text of the turn
that made them, and results become turns of the user.

Many templates want user and assistant to take turns, so neighbours of one role become one turn.
"""

from __future__ import annotations

import json
from typing import Any

HOW = (
    "You may call these functions. To call one, answer with\n<tool_call>\n"
    '{"name": <its name>, "arguments": <an object>}\n</tool_call>\nand nothing else.'
)


def folded(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as plain turns, with the tools told in the system text, or before the first
    words of the user where there is none."""
    turns: list[dict[str, Any]] = []
    for message in map(_plain_turn, messages):
        merged = turns and turns[-1]["role"] == message["role"] == "user"
        if merged and (turns[-1].get("folded") or message.get("folded")):
            turns[-1]["content"] += "\n\n" + message["content"]
            turns[-1]["folded"] = True
        else:
            turns.append(message)
    for turn in turns:
        turn.pop("folded", None)
    if tools and turns:
        functions = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        first = turns[0]
        text = f"{HOW}\n{functions}"
        before = first["role"] != "system"
        parts = [text, first["content"]] if before else [first["content"], text]
        first["content"] = "\n\n".join(part for part in parts if part)
    return turns


def alternating(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with every system text before the words of the user that follow it, and with
    neighbours of user or assistant as one turn; calls and results stay turns of their own."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        turn = message | {"role": "user" if message["role"] == "system" else message["role"]}
        last = turns[-1] if turns else {}
        same = last.get("role") == turn["role"] in ("user", "assistant")
        if same and not last.get("tool_calls") and not turn.get("tool_calls"):
            last["content"] = _joined(last["content"], turn["content"])
        else:
            turns.append(turn)
    return turns


def _joined(first: Any, second: Any) -> Any:
    """Two texts, or two lists of parts."""
    if isinstance(first, str):
        return "\n\n".join(text for text in (first, second) if text)
    return [*first, *second]


def _plain_turn(message: dict[str, Any]) -> dict[str, Any]:
    turn = dict(message)
    if turn["role"] == "tool":
        name = turn.get("name") or turn.get("tool_call_id") or "the call"
        content = f"Result of {name}:\n{turn['content']}"
        return {"role": "user", "content": content, "folded": True}
    calls = turn.pop("tool_calls", None) or []
    texts = [turn["content"]] if turn["content"] else []
    for call in calls:
        function = call["function"]
        arguments = function.get("arguments")
        written = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
        said = f'{{"name": {json.dumps(function.get("name"))}, "arguments": {written}}}'
        texts.append(f"<tool_call>\n{said}\n</tool_call>")
    turn["content"] = "\n".join(texts)
    return turn
