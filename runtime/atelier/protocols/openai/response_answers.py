"""An answer as OpenAI's Responses API tells it: items that grow, an event for each change.

The events are those of its reference (platform.openai.com/docs/api-reference/responses-streaming);
the whole answer is what they add up to.
"""

from __future__ import annotations

import json
import time
import uuid
from itertools import count
from typing import Any

from atelier.errors import AtelierError
from atelier.events import Finished, Likelihood, Usage
from atelier.protocols.http.error_bodies import error_object
from atelier.protocols.openai.response_bodies import WantedResponse
from atelier.protocols.openai.response_items import Item, item_id
from atelier.protocols.openai.text_answers import Named, chat_logprobs
from atelier.protocols.text_requests import Piece
from atelier.text.parsing import AnswerPart, ToolCall

TellableEvent = dict[str, Any]

TEXT_KINDS = {"message": "output_text", "reasoning": "reasoning_text"}
"""Items that hold text, and the type of their one part."""


class ResponseDraft:
    """A `response` object that grows. Each method gives the events that it makes, in order."""

    def __init__(self, wanted: WantedResponse, model: str, named: Named) -> None:
        self.response: dict[str, Any] = {
            "id": f"resp_{wanted.key}",
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": model,
            "output": [],
            "usage": None,
            **wanted.repeated,
        }
        if wanted.warnings:
            self.response["warnings"] = wanted.warnings
        self._wanted = wanted
        self._named = named
        self._numbers = count()
        self._open: Item | None = None
        self._likelihoods: list[Likelihood] = []
        self._tokens = self._thought = 0  # not yet told to be either; of reasoning

    def begin(self) -> list[TellableEvent]:
        """Work has begun."""
        now = self.response | {"output": []}
        return [
            self._event("response.created", response=now),
            self._event("response.in_progress", response=now),
        ]

    def add(self, piece: Piece) -> list[TellableEvent]:
        """What came of the model's answer."""
        self._likelihoods += piece.likelihoods
        self._tokens += piece.tokens
        events = []
        for part in piece.parts:
            if part.call is not None:
                events += [*self._close(), *self._call(part.call)]
            else:
                events += self._grow(part)
            self._thought += self._tokens if part.reasoning else 0
            self._tokens, self._likelihoods = 0, []
        return events

    def end(self, finished: Finished) -> list[TellableEvent]:
        """The answer is done, or as long as it may be."""
        whole = finished.reasons[0] != "length"
        events = [] if self.response["output"] else self._begin_item("message")
        events += self._close("completed" if whole else "incomplete")
        details = None if whole else {"reason": "max_output_tokens"}
        usage = finished.usage or Usage(0, 0, 0)
        self.response |= {
            "status": "completed" if whole else "incomplete",
            "completed_at": int(time.time()) if whole else None,
            "incomplete_details": details,
            "usage": {
                "input_tokens": usage.prompt,
                "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
                "output_tokens": usage.generated,
                "output_tokens_details": {"reasoning_tokens": self._thought},
                "total_tokens": usage.prompt + usage.generated,
            },
        }
        return events

    def last(self) -> TellableEvent:
        """The event that holds the whole answer."""
        return self._event(f"response.{self.response['status']}", response=self.response)

    def fail(self, error: AtelierError) -> TellableEvent:
        """The answer cannot go on."""
        told = {"code": "server_error", "message": error.message}
        self.response |= {"status": "failed", "error": told}
        return self.last()

    def _event(self, kind: str, **fields: Any) -> TellableEvent:
        return {"type": kind, "sequence_number": next(self._numbers)} | fields

    def _begin_item(self, kind: str) -> list[TellableEvent]:
        output = self.response["output"]
        own: Item = {"role": "assistant"} if kind == "message" else {"summary": []}
        item = self._item(kind) | own | {"content": []}
        self._open = item
        output.append(item)
        added = self._event(
            "response.output_item.added",
            output_index=len(output) - 1,
            item=item | {"content": []},
        )
        part: Item = {"type": TEXT_KINDS[kind], "text": ""}
        part |= {"annotations": [], "logprobs": []} if kind == "message" else {}
        item["content"].append(part)
        return [added, self._of_part(item, "response.content_part.added", part=dict(part))]

    def _grow(self, part: AnswerPart) -> list[TellableEvent]:
        kind, text = ("reasoning", part.reasoning) if part.reasoning else ("message", part.content)
        events = []
        if self._open is None or self._open["type"] != kind:
            events += [*self._close(), *self._begin_item(kind)]
        item = self._open
        assert item is not None
        grown = item["content"][0]
        grown["text"] += text
        extra = {}
        if kind == "message":
            told = chat_logprobs(self._likelihoods, self._named)
            extra["logprobs"] = told["content"] if told else []
            grown["logprobs"] += extra["logprobs"]
        name = f"response.{TEXT_KINDS[kind]}.delta"
        return [*events, self._of_part(item, name, delta=text, **extra)]

    def _close(self, status: str = "completed") -> list[TellableEvent]:
        item, self._open = self._open, None
        if item is None:
            return []
        item["status"] = status
        part = item["content"][0]
        told = {name: part[name] for name in ("text", "logprobs") if name in part}
        return [
            self._of_part(item, f"response.{part['type']}.done", **told),
            self._of_part(item, "response.content_part.done", part=part),
            self._of_item("response.output_item.done", item=item),
        ]

    def _call(self, call: ToolCall) -> list[TellableEvent]:
        custom = call.name in self._wanted.custom
        kind = "custom_tool_call" if custom else "function_call"
        field = "input" if custom else "arguments"
        told = _free_text(call.arguments) if custom else call.arguments
        item = self._item(kind)
        item |= {"call_id": f"call_{uuid.uuid4().hex[:24]}", "name": call.name, field: told}
        self.response["output"].append(item)
        changing = f"response.{kind}_{field}"
        begun = item | {field: "", "status": "in_progress"}
        item["status"] = "completed"
        return [
            self._of_item("response.output_item.added", item=begun),
            self._of_item(f"{changing}.delta", item_id=item["id"], delta=told),
            self._of_item(f"{changing}.done", item_id=item["id"], **{field: told}),
            self._of_item("response.output_item.done", item=item),
        ]

    def _item(self, kind: str) -> Item:
        index = self._wanted.offset + len(self.response["output"])
        return {
            "id": item_id(kind, self._wanted.key, index),
            "type": kind,
            "status": "in_progress",
        }

    def _of_item(self, kind: str, **fields: Any) -> TellableEvent:
        return self._event(kind, output_index=len(self.response["output"]) - 1, **fields)

    def _of_part(self, item: Item, kind: str, **fields: Any) -> TellableEvent:
        return self._of_item(kind, item_id=item["id"], content_index=0, **fields)


def error_event(error: AtelierError) -> TellableEvent:
    """What a stream says that ends before the answer began."""
    told = error_object(error)
    return {
        "type": "error",
        "sequence_number": 0,
        "code": told["code"],
        "message": told["message"],
        "param": told["param"],
    }


def _free_text(arguments: str) -> str:
    """What a custom tool is given, out of the one argument that the model was asked for."""
    given = json.loads(arguments)
    text = given.get("input") if isinstance(given, dict) else None
    return text if isinstance(text, str) else arguments
