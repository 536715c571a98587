"""Answers in the shapes of OpenAI's API: a chat's, whole and in chunks, and what a completion's
share with them."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from atelier.errors import AtelierError
from atelier.events import Finished, Likelihood, PromptRead, Usage
from atelier.protocols.http.error_bodies import error_object
from atelier.protocols.http.sse import DONE, frame
from atelier.protocols.text_requests import Answer, AnswerChoice, pieces, running
from atelier.text.parsing import AnswerPart, ToolCall
from atelier.text.request import TextRequest
from atelier.text.service import Names, TextService


@dataclass(frozen=True)
class Named:
    """What tokens are called in answers: `named(token)` is the text of one."""

    names: Names

    def __call__(self, token: int) -> str:
        return self.names.pieces([token])[0]

    def bytes(self, token: int) -> list[int]:
        """The bytes of one, which clients join where a character is spread over several."""
        return list(self.names.raw(token))


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


def chat_answer(
    model: TextService, answer: Answer, named: Named, prompted: int | None = None
) -> dict[str, Any]:
    """A `chat.completion` object; with `prompted`, as many likeliest tokens in the place of each of
    the prompt's."""
    choices = [
        {
            "index": index,
            "message": _message(choice),
            "finish_reason": _reason(choice.reason, any(part.call for part in choice.parts)),
            "logprobs": chat_logprobs(choice.likelihoods, named),
        }
        for index, choice in enumerate(answer.choices)
    ]
    told = prompt_logprobs(answer.prompt, named, prompted)
    return envelope("chat.completion", model, "chatcmpl") | {
        "choices": choices,
        "usage": usage_object([answer.usage]),
        **({} if told is None else {"prompt_logprobs": told}),
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
    about = envelope("chat.completion.chunk", model, "chatcmpl")
    calls = [0] * request.n

    def chunk(
        index: int,
        delta: dict[str, Any],
        reason: str | None = None,
        logprobs: Any = None,
        told: Mapping[str, Any] = MappingProxyType({}),
    ) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return frame({**about, "choices": [choice], **told})

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
                        yield frame(about | {"choices": [], "usage": usage_object([piece.usage])})
                    continue
                logprobs = chat_logprobs(piece.likelihoods, named)
                for part in piece.parts or ([AnswerPart()] if logprobs else []):
                    yield chunk(piece.choice, _delta(part, calls, piece.choice), None, logprobs)
                    logprobs = None
        except AtelierError as error:
            yield error_frame(error)
        yield DONE


def chat_logprobs(likelihoods: Iterable[Likelihood], named: Named) -> dict[str, Any] | None:
    """`{"content": [...]}`, or None when none were asked for."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {"token": named(token), "logprob": logprob, "bytes": named.bytes(token)}

    content = [
        entry(each.id, each.logprob)
        | {"top_logprobs": [entry(token, value) for token, value in each.best]}
        for each in likelihoods
    ]
    return {"content": content, "refusal": None} if content else None


def prompt_logprobs(
    prompt: PromptRead | None, named: Named, count: int | None
) -> list[dict[str, Any] | None] | None:
    """A prompt's log probabilities as vLLM tells them: by token id, each token's own and the
    `count` likeliest; nothing of the first token. None if none were asked for."""
    if prompt is None or count is None:
        return None

    def entry(token: int, logprob: float, rank: int) -> dict[str, Any]:
        return {"logprob": logprob, "rank": rank, "decoded_token": named(token)}

    told: list[dict[str, Any] | None] = [None]
    for each in prompt.likelihoods:
        own = {str(each.id): entry(each.id, each.logprob, each.rank)}
        best = enumerate(each.best[:count], 1)
        told.append(own | {str(token): entry(token, value, rank) for rank, (token, value) in best})
    return told


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


def envelope(kind: str, model: TextService, prefix: str) -> dict[str, Any]:
    """What every answer and chunk of one request begins with."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model.name,
    }
