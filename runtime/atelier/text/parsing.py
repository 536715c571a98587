"""A model's answer taken apart while it arrives: reasoning, content, tool calls.

Models write tool calls as text, each family in its own form. A `ToolFormat` knows one form;
`AnswerParser` finds it in a stream of pieces, and passes everything else through without delay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from atelier.text.embedded.detokenizer import held_back
from atelier.text.request import TextRequest, tool_names

THINK, UNTHINK = "<think>", "</think>"


@dataclass(frozen=True)
class ToolCall:
    """A call of function `name`; `arguments` is JSON text of an object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class AnswerPart:
    """A piece of an answer: exactly one field is set."""

    content: str = ""
    reasoning: str = ""
    call: ToolCall | None = None


@dataclass(frozen=True)
class ToolFormat:
    """How calls are written: between `opening` and `closing` (empty: until the end), read by
    `parse`."""

    opening: str
    closing: str
    parse: Callable[[str], ToolCall | None]
    grammar: str


def _json_call(body: str) -> ToolCall | None:
    try:
        call = json.loads(body)
        arguments = call.get("arguments", call.get("parameters", {}))
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        return ToolCall(str(call["name"]), json.dumps(arguments, ensure_ascii=False))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _glm_call(body: str) -> ToolCall | None:
    name = re.match(r"\s*([\w.-]+)", body)
    if name is None:
        return None
    pairs = re.findall(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", body, re.DOTALL)
    return ToolCall(
        name[1],
        json.dumps({key.strip(): _value(value) for key, value in pairs}, ensure_ascii=False),
    )


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


FORMATS = {
    "hermes": ToolFormat(
        "<tool_call>", "</tool_call>", _json_call, '"<tool_call>\\n" call "\\n</tool_call>"'
    ),
    "glm47": ToolFormat("<tool_call>", "</tool_call>", _glm_call, ""),
    "llama3_json": ToolFormat('{"name":', "", _json_call, "call"),
}


def format_of(template: str, chosen: str = "auto") -> str:
    """The name of the tool format a chat template teaches; empty if it has none."""
    if chosen != "auto":
        return chosen if chosen in FORMATS else ""
    if "<arg_key>" in template:
        return "glm47"
    if "<tool_call>" in template:
        return "hermes"
    return "llama3_json" if '"parameters"' in template and "tools" in template else ""


def forced_call_grammar(request: TextRequest, format_name: str, special: set[str]) -> str | None:
    """A Lark grammar for an answer that must be a tool call; None if the request forces none or the
    form has none."""
    if request.tool_choice in ("auto", "none") or not request.tools or format_name not in FORMATS:
        return None
    form = FORMATS[format_name]
    if not form.grammar:
        return None
    wanted = (
        tool_names(request.tools) if request.tool_choice == "required" else [request.tool_choice]
    )
    key = "parameters" if format_name == "llama3_json" else "arguments"
    choices = []
    for tool in request.tools:
        function = tool["function"]
        if function["name"] in wanted:
            arguments = function.get("parameters") or {"type": "object"}
            fields = {"name": {"const": function["name"]}, key: arguments}
            choices.append(
                {
                    "type": "object",
                    "properties": fields,
                    "required": list(fields),
                    "additionalProperties": False,
                }
            )
    style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    schema = json.dumps({"x-guidance": style, "anyOf": choices})
    body = form.grammar
    for marker in ("<tool_call>", "</tool_call>"):
        if marker in special:  # a token of its own, which a quoted string would not match
            body = body.replace(f'"{marker}\\n"', f'{marker} "\\n"').replace(
                f'"\\n{marker}"', f'"\\n" {marker}'
            )
    return f"start: {body}\ncall: %json {schema}"


class AnswerParser:
    """Takes pieces of text and gives parts. `tools` is the form to look for, or None; `thinking`
    says that the prompt already opened the reasoning."""

    def __init__(self, tools: ToolFormat | None, reasoning: bool, thinking: bool = False) -> None:
        self._tools = tools
        self._reasoning = reasoning
        self._state = "reasoning" if thinking and reasoning else "content"
        self._held = ""
        self._begun = False
        self._trim = False

    def add(self, piece: str) -> list[AnswerPart]:
        """The parts that are certain now."""
        self._held += piece
        parts: list[AnswerPart] = []
        while (step := self._next()) is not None:
            parts += step
        return parts

    def end(self) -> list[AnswerPart]:
        """What was held back; an unfinished call is content after all."""
        held, self._held = self._held, ""
        if not held:
            return []
        if self._state == "call" and self._tools is not None:
            call = self._tools.parse(
                held if not self._tools.closing else held.removeprefix(self._tools.opening)
            )
            return [AnswerPart(call=call)] if call else [AnswerPart(content=held)]
        return [
            AnswerPart(reasoning=held) if self._state == "reasoning" else AnswerPart(content=held)
        ]

    def _next(self) -> list[AnswerPart] | None:
        """One move of the state machine; None when more text is needed."""
        if self._trim:  # line breaks after a mark belong to the mark, and may come piece by piece
            self._held = self._held.lstrip("\n")
            self._trim = not self._held
        if not self._held:
            return None
        if self._state == "reasoning":
            return self._until(UNTHINK, "content", lambda text: AnswerPart(reasoning=text))
        if self._state == "call":
            return self._call()
        openings = [self._tools.opening] if self._tools is not None else []
        if self._reasoning and not self._begun:
            openings.append(THINK)
        found = [(at, mark) for mark in openings if (at := self._held.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            before, self._state = self._held[:at], "reasoning" if mark == THINK else "call"
            self._trim = mark == THINK
            self._held = self._held[at + len(mark) :] if mark == THINK else self._held[at:]
            return [AnswerPart(content=before)] if before.strip() else []
        return self._release(openings)

    def _release(self, openings: list[str]) -> list[AnswerPart] | None:
        keep = max((held_back(self._held, mark) for mark in openings), default=0)
        ready, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        if not ready:
            return None
        self._begun = self._begun or bool(ready.strip())
        return [AnswerPart(content=ready)]

    def _until(
        self, mark: str, state: str, make: Callable[[str], AnswerPart]
    ) -> list[AnswerPart] | None:
        at = self._held.find(mark)
        if at >= 0:
            text, self._held, self._state = self._held[:at], self._held[at + len(mark) :], state
            self._begun = self._trim = True
            return [make(text)] if text else []
        keep = held_back(self._held, mark)
        ready, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return [make(ready)] if ready else None

    def _call(self) -> list[AnswerPart] | None:
        form = self._tools
        if form is None or not form.closing or form.closing not in self._held:
            return None
        body, _, rest = self._held.removeprefix(form.opening).partition(form.closing)
        whole = self._held[: len(self._held) - len(rest)]
        self._held, self._state, self._trim = rest, "content", True
        call = form.parse(body)
        return [AnswerPart(call=call)] if call else [AnswerPart(content=whole)]
