"""One answer of a language model as it comes: text, reasoning and tool calls put together from a
chat completion's deltas."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from atelier.studio.client import EndpointClient

DRAW_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "generate_image",
        "description": "Draw a picture from a description and show it to the user.",
        "parameters": {
            "type": "object",
            "properties": {"prompt": {"type": "string", "description": "What the picture shows."}},
            "required": ["prompt"],
        },
    },
}
"""The one tool a model is given here."""


@dataclass
class StreamedCall:
    """A call as far as it has come; `arguments` is JSON."""

    id: str = ""
    name: str = ""
    arguments: str = ""

    def prompt(self) -> str:
        """What is to be drawn; empty if the call is not one of `DRAW_TOOL`."""
        if self.name != DRAW_TOOL["function"]["name"]:
            return ""
        try:
            given = json.loads(self.arguments or "{}")
        except json.JSONDecodeError:
            return ""
        return str(given.get("prompt", "")) if isinstance(given, dict) else ""


@dataclass
class ChatAnswer:
    """What the model has said so far."""

    text: str = ""
    reasoning: str = ""
    calls: list[StreamedCall] = field(default_factory=list)

    def take(self, delta: dict[str, Any]) -> None:
        """Add one delta."""
        self.text += delta.get("content") or ""
        self.reasoning += delta.get("reasoning_content") or delta.get("reasoning") or ""
        for part in delta.get("tool_calls") or ():
            while len(self.calls) <= part.get("index", 0):
                self.calls.append(StreamedCall())
            call, function = self.calls[part.get("index", 0)], part.get("function", {})
            call.id = part.get("id") or call.id
            call.name += function.get("name") or ""
            call.arguments += function.get("arguments") or ""

    def message(self) -> dict[str, Any]:
        """The answer as the next request's history has it."""
        said: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.calls:
            said["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.calls
            ]
        return said


def tool_result(call: StreamedCall, words: str) -> dict[str, Any]:
    """What came of a call, for the model."""
    return {"role": "tool", "tool_call_id": call.id, "content": words}


async def answered(
    endpoint: EndpointClient, model: str, dialogue: Sequence[dict[str, Any]], key: str, draws: bool
) -> AsyncGenerator[ChatAnswer]:
    """The answer to a dialogue, yielded whenever there is more of it.

    Raises:
        EndpointError: the endpoint refuses, or fails on the way.
    """
    body: dict[str, Any] = {"model": model, "messages": list(dialogue), "stream": True}
    if draws:
        body["tools"] = [DRAW_TOOL]
    answer = ChatAnswer()
    async with aclosing(endpoint.chat(body, key)) as deltas:
        async for delta in deltas:
            answer.take(delta)
            yield answer
