"""Answers of OpenAI's completions: whole and in chunks, after their prompt where that is echoed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from itertools import accumulate
from typing import Any

from atelier.errors import AtelierError
from atelier.events import Likelihood, PromptRead
from atelier.protocols.http.sse import DONE, frame
from atelier.protocols.openai.text_answers import (
    Named,
    envelope,
    error_frame,
    prompt_logprobs,
    usage_object,
)
from atelier.protocols.openai.text_bodies import WantedCompletions
from atelier.protocols.text_requests import Answer, Piece, pieces, running
from atelier.text.request import TextRequest
from atelier.text.service import TextService


def completion_answer(
    model: TextService,
    wanted: WantedCompletions,
    answers: list[Answer],
    named: Named,
    echoes: list[str],
) -> dict[str, Any]:
    """A `text_completion` object; choices of the first prompt come first. `echoes` has what stands
    before the answers of each prompt."""
    choices: list[dict[str, Any]] = []
    for request, answer, before in zip(wanted.requests, answers, echoes, strict=True):
        echoed = answer.prompt if wanted.echo and request.logprobs is not None else None
        told = prompt_logprobs(answer.prompt, named, wanted.prompt_logprobs)
        for choice in answer.choices:
            logprobs = completion_logprobs(choice.likelihoods, named, request.logprobs, echoed)
            shaped = {
                "index": len(choices),
                "text": before + choice.text("content"),
                "finish_reason": choice.reason,
                "logprobs": logprobs,
            }
            choices.append(shaped | ({} if told is None else {"prompt_logprobs": told}))
    return envelope("text_completion", model, "cmpl") | {
        "choices": choices,
        "usage": usage_object(answer.usage for answer in answers),
    }


async def completion_chunks(
    model: TextService, wanted: WantedCompletions, with_usage: bool, named: Named
) -> AsyncGenerator[bytes]:
    """A completion of one prompt as server-sent events."""
    request = wanted.requests[0]
    about = envelope("text_completion", model, "cmpl")
    lengths = [0] * request.n  # of the tokens' texts so far, by choice

    def chunk(index: int, text: str, reason: str | None, logprobs: Any = None) -> bytes:
        choice = {"index": index, "text": text, "finish_reason": reason, "logprobs": logprobs}
        return frame(about | {"choices": [choice]})

    def listed(
        index: int, likelihoods: Iterable[Likelihood], prompt: PromptRead | None = None
    ) -> dict[str, Any] | None:
        told = completion_logprobs(likelihoods, named, request.logprobs, prompt, lengths[index])
        lengths[index] += sum(map(len, told["tokens"])) if told else 0
        return told

    async with running(model, request) as events:
        echo = await prompt_text(model, request) if wanted.echo else ""
        if echo and request.logprobs is None:
            for index in range(request.n):
                yield chunk(index, echo, None)
        try:
            async for piece in pieces(model, request, events):
                if isinstance(piece, Piece) and piece.prompt is not None:
                    if not lengths[0]:  # a prompt that is read again was told before
                        for index in range(request.n):
                            yield chunk(index, echo, None, listed(index, (), piece.prompt))
                    continue
                if isinstance(piece, Piece):
                    text = "".join(part.content for part in piece.parts)
                    logprobs = listed(piece.choice, piece.likelihoods)
                    yield chunk(piece.choice, text, None, logprobs)
                    continue
                for index, reason in enumerate(piece.reasons):
                    yield chunk(index, "", reason)
                if with_usage and piece.usage is not None:
                    yield frame(about | {"choices": [], "usage": usage_object([piece.usage])})
        except AtelierError as error:
            yield error_frame(error)
        yield DONE


def completion_logprobs(
    likelihoods: Iterable[Likelihood],
    named: Named,
    count: int | None,
    prompt: PromptRead | None = None,
    start: int = 0,
) -> dict[str, Any] | None:
    """The older form, parallel lists: of the `prompt`, whose first token has no probability, and
    then of the answer. `start` is the length of the text before."""
    told = [*(prompt.likelihoods if prompt is not None else ()), *likelihoods]
    first = [named(prompt.ids[0])] if prompt is not None else []
    tokens = [*first, *(named(each.id) for each in told)]
    if not tokens:
        return None
    nothing = [None for _ in first]
    best = [{named(token): value for token, value in each.best[: count or 0]} for each in told]
    return {
        "tokens": tokens,
        "token_logprobs": [*nothing, *(each.logprob for each in told)],
        "top_logprobs": [*nothing, *best],
        "text_offset": list(accumulate(map(len, tokens[:-1]), initial=start)),
    }


async def prompt_text(model: TextService, request: TextRequest) -> str:
    """A completion's prompt, as it came or by its tokens."""
    if request.prompt is not None:
        return request.prompt
    return await model.detokenize(list(request.prompt_ids or ()))
