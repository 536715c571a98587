"""Anthropic's Messages API: bodies to TextRequests, answers as content blocks, whole or as a stream
of block events."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request, Response

from atelier.errors import AtelierError, InvalidRequest, shown
from atelier.events import Finished, Usage
from atelier.protocols.anthropic.blocks import left_out, own_tools, turns_of
from atelier.protocols.http.bodies import json_response, read_object
from atelier.protocols.http.deadlines import timed
from atelier.protocols.http.error_bodies import anthropic_error
from atelier.protocols.http.models import check_name
from atelier.protocols.http.sse import frame, when_begun
from atelier.protocols.openai.text_bodies import switch
from atelier.protocols.text_requests import complete, pieces, running
from atelier.text.parsing import AnswerPart
from atelier.text.request import TextRequest, make_request
from atelier.text.service import TextService

REASONS = {"stop": "end_turn", "length": "max_tokens"}
CHOICES = {"auto": "auto", "any": "required", "none": "none"}


async def messages(model: TextService, request: Request) -> Response:
    """`/v1/messages`."""
    with model.refusals("anthropic"):
        body = await read_object(request)
        check_name(model, body.get("model", model.name))
        if body.get("max_tokens") is None:
            raise InvalidRequest("max_tokens is required and must be a whole number", "max_tokens")
        wanted = timed(message_request(body), request.headers)
        streaming = switch(body, "stream")
    told = left_out(body)
    if streaming:
        return await when_begun(message_events(model, wanted, told), _error_event)
    return json_response(await message_answer(model, wanted) | _warned(told))


async def count_tokens(model: TextService, request: Request) -> Response:
    """`/v1/messages/count_tokens`."""
    body = await read_object(request)
    check_name(model, body.get("model", model.name))
    ids = await model.tokenize(message_request(body))
    return json_response({"input_tokens": len(ids)})


def message_request(body: dict[str, Any]) -> TextRequest:
    """A Messages body as a request with chat messages.

    Raises:
        InvalidRequest: names the field and what is allowed.
    """
    if not isinstance(body.get("messages"), list):
        raise InvalidRequest("messages must be a list of objects with role and content", "messages")
    system = body.get("system")
    if system is not None and not isinstance(system, str | list):
        raise InvalidRequest("system must be text or a list of text blocks", "system")
    turns = [{"role": "system", "content": system}] if system else []
    for index, message in enumerate(body["messages"]):
        turns += turns_of(message, f"messages.{index}")
    return make_request(
        messages=turns,
        max_tokens=body.get("max_tokens"),
        cut_to_context=True,  # clients ask for the most that any model could say
        temperature=body.get("temperature"),
        top_p=body.get("top_p"),
        top_k=body.get("top_k"),
        stop=body.get("stop_sequences"),
        tools=own_tools(body),
        tool_choice=_choice(body.get("tool_choice")),
        parallel_tool_calls=_parallel(body.get("tool_choice")),
        response_format=_form(body),
    )


async def message_answer(model: TextService, request: TextRequest) -> dict[str, Any]:
    """A whole message."""
    answer = await complete(model, request, "anthropic")
    choice = answer.choices[0]
    blocks: list[dict[str, Any]] = []
    for part in choice.parts:
        kind = _kind(part)
        if part.call is not None:
            arguments = json.loads(part.call.arguments)
            blocks.append(
                {"type": "tool_use", "id": _id("toolu"), "name": part.call.name, "input": arguments}
            )
        elif blocks and blocks[-1]["type"] == kind:
            blocks[-1][kind] += part.content or part.reasoning
        else:
            blocks.append({"type": kind, kind: part.content or part.reasoning})
    called = any(part.call for part in choice.parts)
    return _message(model, blocks, answer.usage) | _ending(choice.reason, called, choice.stopped)


async def message_events(
    model: TextService, request: TextRequest, told: list[str]
) -> AsyncGenerator[bytes]:
    """A message as a stream: blocks open, grow and close in order; `told` are its warnings."""
    async with running(model, request, "anthropic") as events:
        begun = _message(model, [], Usage(0, 0, 0)) | _warned(told)
        yield _event("message_start", message=begun)
        index, open_kind, called = -1, "", False
        try:
            async for piece in pieces(model, request, events):
                if isinstance(piece, Finished):
                    if open_kind:
                        yield _event("content_block_stop", index=index)
                    stopped = piece.stopped[0] if piece.stopped else None
                    delta = _ending(piece.reasons[0], called, stopped)
                    yield _event(
                        "message_delta", delta=delta, usage=_usage(piece.usage or Usage(0, 0, 0))
                    )
                    yield _event("message_stop")
                    continue
                for part in piece.parts:
                    kind = _kind(part)
                    if kind != open_kind or part.call is not None:
                        if open_kind:
                            yield _event("content_block_stop", index=index)
                        index, open_kind = index + 1, kind
                        yield _event(
                            "content_block_start", index=index, content_block=_empty_block(part)
                        )
                    called = called or part.call is not None
                    yield _event("content_block_delta", index=index, delta=_delta(part))
        except AtelierError as error:
            yield _error_event(error)


def _error_event(error: AtelierError) -> bytes:
    return frame(anthropic_error(error), "error")


def _choice(choice: Any) -> str | None:
    if choice is None:
        return None
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "tool":
        return str(choice.get("name"))
    if not isinstance(kind, str) or kind not in CHOICES:
        raise InvalidRequest(
            f"tool_choice.type={shown(kind)}: allowed: auto, any, none, tool", "tool_choice"
        )
    return CHOICES[kind]


def _parallel(choice: Any) -> bool:
    alone = choice.get("disable_parallel_tool_use") if isinstance(choice, dict) else None
    return alone is not True


def _form(body: dict[str, Any]) -> dict[str, Any] | None:
    """The form of the answer: `output_config.format`, or `output_format` as clients called it."""
    config = body.get("output_config")
    form = config.get("format") if isinstance(config, dict) else body.get("output_format")
    if form is None:
        return None
    kind, schema = (form.get("type"), form.get("schema")) if isinstance(form, dict) else (form, 0)
    if kind != "json_schema" or not isinstance(schema, dict):
        raise InvalidRequest(
            f'output_config.format={shown(form)}: allowed: {{"type": "json_schema", "schema":'
            " {...}}",
            "output_config",
        )
    return {"type": "json_schema", "json_schema": {"schema": schema}}


def _message(model: TextService, blocks: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
    envelope = {
        "id": _id("msg"),
        "type": "message",
        "role": "assistant",
        "model": model.name,
        "content": blocks,
    }
    return envelope | {"stop_reason": None, "stop_sequence": None, "usage": _usage(usage)}


def _warned(told: list[str]) -> dict[str, Any]:
    return {"warnings": told} if told else {}


def _usage(usage: Usage) -> dict[str, Any]:
    fresh = usage.prompt - usage.cached
    return {
        "input_tokens": fresh,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.generated,
    }


def _kind(part: AnswerPart) -> str:
    return "tool_use" if part.call is not None else "thinking" if part.reasoning else "text"


def _empty_block(part: AnswerPart) -> dict[str, Any]:
    if part.call is not None:
        return {"type": "tool_use", "id": _id("toolu"), "name": part.call.name, "input": {}}
    return (
        {"type": "thinking", "thinking": "", "signature": ""}
        if part.reasoning
        else {"type": "text", "text": ""}
    )


def _delta(part: AnswerPart) -> dict[str, Any]:
    if part.call is not None:
        return {"type": "input_json_delta", "partial_json": part.call.arguments}
    if part.reasoning:
        return {"type": "thinking_delta", "thinking": part.reasoning}
    return {"type": "text_delta", "text": part.content}


def _event(kind: str, **fields: Any) -> bytes:
    return frame({"type": kind} | fields, kind)


def _ending(reason: str, called: bool, stopped: str | None) -> dict[str, Any]:
    """Why the message ended; `stopped` is the stop sequence that it met."""
    if stopped is not None and reason == "stop":
        return {"stop_reason": "stop_sequence", "stop_sequence": stopped}
    told = "tool_use" if called and reason == "stop" else REASONS[reason]
    return {"stop_reason": told, "stop_sequence": None}


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex[:24]}"
