"""Answers in the shapes of OpenAI's API: whole and in chunks, for chat and for completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from itertools import accumulate
from types import MappingProxyType
from typing import Any

from atelier.errors import AtelierError
from atelier.events import Finished, Likelihood, Usage
from atelier.protocols.http.error_bodies import error_object
from atelier.protocols.http.sse import DONE, frame
from atelier.protocols.text_requests import Answer, AnswerChoice, Piece, pieces, running
from atelier.text.parsing import AnswerPart, ToolCall
from atelier.text.request import TextRequest
from atelier.text.service import TextService

Named = Callable[[int], str]
"""The text of one token."""


def usage_object(usages: Iterable[Usage]) -> dict[str, Any]:
    """Token counts, summed; what came from the cache is part of the prompt's."""
    usages = list(usages)
    prompt, generated = (
        sum(usage.prompt for usage in usages),
        sum(usage.generated for usage in usages),
    )
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached for usage in usages)},
    }


def chat_answer(model: TextService, answer: Answer, named: Named) -> dict[str, Any]:
    """A `chat.completion` object."""
    choices = [
        {
            "index": index,
            "message": _message(choice),
            "finish_reason": _reason(choice.reason, any(part.call for part in choice.parts)),
            "logprobs": chat_logprobs(choice.likelihoods, named),
        }
        for index, choice in enumerate(answer.choices)
    ]
    return _envelope("chat.completion", model, "chatcmpl") | {
        "choices": choices,
        "usage": usage_object([answer.usage]),
    }


def completion_answer(model: TextService, answers: list[Answer], named: Named) -> dict[str, Any]:
    """A `text_completion` object; choices of the first prompt come first."""
    choices = [choice for answer in answers for choice in answer.choices]
    shaped = [
        {
            "index": index,
            "text": choice.text("content"),
            "finish_reason": choice.reason,
            "logprobs": completion_logprobs(choice.likelihoods, named),
        }
        for index, choice in enumerate(choices)
    ]
    return _envelope("text_completion", model, "cmpl") | {
        "choices": shaped,
        "usage": usage_object(answer.usage for answer in answers),
    }


def error_frame(error: AtelierError) -> bytes:
    """What a stream ends with that cannot go on."""
    return frame({"error": error_object(error)})


async def chat_chunks(
    model: TextService,
    request: TextRequest,
    with_usage: bool,
    named: Named,
    told: Mapping[str, Any],
) -> AsyncGenerator[bytes]:
    """A chat answer as server-sent events; the first has `told` beside its choice."""
    envelope = _envelope("chat.completion.chunk", model, "chatcmpl")
    calls = [0] * request.n

    def chunk(
        index: int,
        delta: dict[str, Any],
        reason: str | None = None,
        logprobs: Any = None,
        told: Mapping[str, Any] = MappingProxyType({}),
    ) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return frame({**envelope, "choices": [choice], **told})

    async with running(model, request) as events:
        for index in range(request.n):
            beginning = {"role": "assistant", "content": ""}
            yield chunk(index, beginning, told=told if index == 0 else {})
        try:
            async for piece in pieces(model, request, events):
                if isinstance(piece, Finished):
                    for index, reason in enumerate(piece.reasons):
                        yield chunk(index, {}, _reason(reason, calls[index] > 0))
                    if with_usage and piece.usage is not None:
                        yield frame(
                            envelope | {"choices": [], "usage": usage_object([piece.usage])}
                        )
                    continue
                logprobs = chat_logprobs(piece.likelihoods, named)
                for part in piece.parts or ([AnswerPart()] if logprobs else []):
                    yield chunk(piece.choice, _delta(part, calls, piece.choice), None, logprobs)
                    logprobs = None
        except AtelierError as error:
            yield error_frame(error)
        yield DONE


async def completion_chunks(
    model: TextService, request: TextRequest, with_usage: bool, named: Named
) -> AsyncGenerator[bytes]:
    """A completion of one prompt as server-sent events."""
    envelope = _envelope("text_completion", model, "cmpl")

    def chunk(index: int, text: str, reason: str | None, logprobs: Any = None) -> bytes:
        choice = {"index": index, "text": text, "finish_reason": reason, "logprobs": logprobs}
        return frame(envelope | {"choices": [choice]})

    async with running(model, request) as events:
        try:
            async for piece in pieces(model, request, events):
                if isinstance(piece, Piece):
                    text = "".join(part.content for part in piece.parts)
                    yield chunk(
                        piece.choice, text, None, completion_logprobs(piece.likelihoods, named)
                    )
                    continue
                for index, reason in enumerate(piece.reasons):
                    yield chunk(index, "", reason)
                if with_usage and piece.usage is not None:
                    yield frame(envelope | {"choices": [], "usage": usage_object([piece.usage])})
        except AtelierError as error:
            yield error_frame(error)
        yield DONE


def chat_logprobs(likelihoods: Iterable[Likelihood], named: Named) -> dict[str, Any] | None:
    """`{"content": [...]}`, or None when none were asked for."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = named(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    content = [
        entry(each.id, each.logprob)
        | {"top_logprobs": [entry(token, value) for token, value in each.best]}
        for each in likelihoods
    ]
    return {"content": content, "refusal": None} if content else None


def completion_logprobs(likelihoods: Iterable[Likelihood], named: Named) -> dict[str, Any] | None:
    """The older form: parallel lists."""
    likelihoods = list(likelihoods)
    if not likelihoods:
        return None
    tokens = [named(each.id) for each in likelihoods]
    offsets = list(accumulate(map(len, tokens[:-1]), initial=0))
    return {
        "tokens": tokens,
        "token_logprobs": [each.logprob for each in likelihoods],
        "top_logprobs": [
            {named(token): value for token, value in each.best} for each in likelihoods
        ],
        "text_offset": offsets,
    }


def _message(choice: AnswerChoice) -> dict[str, Any]:
    calls = [part.call for part in choice.parts if part.call is not None]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": choice.text("content") or (None if calls else ""),
    }
    if reasoning := choice.text("reasoning"):
        message |= {"reasoning": reasoning, "reasoning_content": reasoning}
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
    return message


def _delta(part: AnswerPart, calls: list[int], choice: int) -> dict[str, Any]:
    if part.call is not None:
        index, calls[choice] = calls[choice], calls[choice] + 1
        return {"tool_calls": [{"index": index} | _call(part.call)]}
    if part.reasoning:
        return {"reasoning": part.reasoning, "reasoning_content": part.reasoning}
    return {"content": part.content}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _reason(reason: str, called: bool) -> str:
    return "tool_calls" if called and reason == "stop" else reason


def _envelope(kind: str, model: TextService, prefix: str) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model.name,
    }
