"""What a Messages body says in blocks: turns of a conversation and tools, as a chat has them.

Tools that Anthropic's own servers run, and what they once gave, are left out: `left_out` names
them.
"""

from __future__ import annotations

import re
from typing import Any

from atelier.errors import InvalidRequest, shown
from atelier.protocols.openai.idle_fields import without_effect

ROLES = ("user", "assistant", "system")

SERVER_TOOLS = re.compile(
    r"(web_search|web_fetch|code_execution|tool_search_tool\w*|mcp_toolset)(_\d+)?"
)
"""Types of tools that no client runs."""

SERVER_BLOCKS = re.compile(
    r"redacted_thinking|server_tool_use|mcp_tool_use|mcp_tool_result|\w+_tool_result"
)
"""Types of blocks that nothing here can read: sealed, or of tools of Anthropic's servers."""


def own_tools(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The tools that the model is offered, as functions.

    Raises:
        InvalidRequest: one has no name, or they are no list.
    """
    tools = [] if body.get("tools") is None else body["tools"]
    if not isinstance(tools, list):
        raise InvalidRequest("tools must be a list of objects with name and input_schema", "tools")
    return [_function(tool, index) for index, tool in enumerate(tools) if not _is_server_tool(tool)]


def left_out(body: dict[str, Any]) -> list[str]:
    """A warning for each type of tools that are not offered."""
    kinds = [tool["type"] for tool in body.get("tools") or () if _is_server_tool(tool)]
    return [without_effect(f"tools.type={shown(kind)}") for kind in dict.fromkeys(kinds)]


def turns_of(message: Any, where: str) -> list[dict[str, Any]]:
    """One Anthropic message as one or more chat messages: tool results become messages of their
    own."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise InvalidRequest(f"{where}.role must be user or assistant", f"{where}.role")
    content = message.get("content")
    if isinstance(content, str):
        return [{"role": message["role"], "content": content}]
    if not isinstance(content, list):
        raise InvalidRequest(
            f"{where}.content must be text or a list of blocks", f"{where}.content"
        )
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_use":
            calls.append(_call(block, where))
        elif kind == "tool_result":
            said = block.get("content") or ""
            text = said if isinstance(said, str) else _result(said, f"{where}.tool_result")
            turn = {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text}
            results.append(turn)
        elif kind == "thinking":
            thoughts.append(str(block.get("thinking") or ""))
        elif not isinstance(kind, str) or not SERVER_BLOCKS.fullmatch(kind):
            texts.append(_text(block, where))
    if not texts and not calls:
        return results
    turn = {"role": message["role"], "content": "".join(texts)}
    if thought := "".join(thoughts):
        turn["reasoning_content"] = thought
    return [*results, turn | ({"tool_calls": calls} if calls else {})]


def _call(block: dict[str, Any], where: str) -> dict[str, Any]:
    """Input that is text was cut off; it stays as it is, and an empty one is an empty object."""
    name, given = block.get("name"), block.get("input") or {}
    if not isinstance(name, str) or not isinstance(given, dict | str):
        raise InvalidRequest(
            f"{where}.content has a tool_use without a name and an object as input", where
        )
    function = {"name": name, "arguments": given}
    return {"id": block.get("id"), "type": "function", "function": function}


def _result(content: Any, where: str) -> str:
    if not isinstance(content, list):
        raise InvalidRequest(
            f"{where}.content={shown(content)} must be text or a list of blocks", where
        )
    return "".join(_text(block, where) for block in content)


def _text(block: Any, where: str) -> str:
    """The text of a block that has some, search results among them.

    Raises:
        InvalidRequest: it is a picture, or something else that this model does not read.
    """
    kind, block = (block.get("type"), block) if isinstance(block, dict) else (block, {})
    if kind == "text" and isinstance(block.get("text"), str):
        return str(block["text"])
    if kind == "search_result":
        return _result(block.get("content"), where)
    if kind == "tool_reference":
        return str(block.get("tool_name"))
    raise InvalidRequest(
        f"{where}.content has a block of type {shown(kind)}; this model reads text", where
    )


def _is_server_tool(tool: Any) -> bool:
    kind = tool.get("type") if isinstance(tool, dict) else None
    return isinstance(kind, str) and SERVER_TOOLS.fullmatch(kind) is not None


def _function(tool: Any, index: int) -> dict[str, Any]:
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        raise InvalidRequest(f"tools.{index}.name is missing", f"tools.{index}.name")
    function = {"name": tool["name"], "description": tool.get("description") or ""}
    return {
        "type": "function",
        "function": function | {"parameters": tool.get("input_schema") or {"type": "object"}},
    }
