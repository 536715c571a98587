"""A model's answer taken apart while it arrives: reasoning, content, tool calls.

Models write tool calls as text, each family in its own form (`calls`). `AnswerParser` finds them in
a stream of pieces, and passes everything else through without delay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from atelier.text.calls import Schemas, ToolCall, ToolFormat
from atelier.text.embedded.detokenizer import held_back

THINK, UNTHINK = "<think>", "</think>"


@dataclass(frozen=True)
class AnswerPart:
    """A piece of an answer: exactly one field is set."""

    content: str = ""
    reasoning: str = ""
    call: ToolCall | None = None


class AnswerParser:
    """Takes pieces of text and gives parts. `tools` is the form to look for, or None; `thinking`
    says that the prompt already opened the reasoning; `schemas` gives arguments their types."""

    def __init__(
        self,
        tools: ToolFormat | None,
        reasoning: bool,
        thinking: bool = False,
        schemas: Schemas | None = None,
    ) -> None:
        self._tools = tools
        self._schemas = schemas or {}
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
            bare = not self._tools.closing or not held.startswith(self._tools.opening)
            body = held if bare else held.removeprefix(self._tools.opening)
            call = self._tools.parse(body, self._schemas)
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
        openings = self._openings()
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

    def _openings(self) -> list[str]:
        if self._tools is None:
            return []
        return [self._tools.opening, *(self._tools.inner or ())[:1]]

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
        if form is None or not form.closing:
            return None
        bare = form.inner is not None and self._held.startswith(form.inner[0])
        closing = form.inner[1] if bare and form.inner is not None else form.closing
        if closing not in self._held:
            return None
        body, _, rest = self._held.partition(closing)
        whole = body + closing
        self._held, self._state, self._trim = rest, "content", True
        call = form.parse(whole if bare else body.removeprefix(form.opening), self._schemas)
        return [AnswerPart(call=call)] if call else [AnswerPart(content=whole)]
