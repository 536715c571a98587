"""What all text protocols share: starting a request, and reading its events to the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from atelier.errors import AtelierError
from atelier.events import (
    Event,
    Failed,
    Finished,
    Likelihood,
    PromptRead,
    Started,
    Token,
    Usage,
)
from atelier.text.parsing import AnswerPart
from atelier.text.request import TextRequest
from atelier.text.service import TextService

DONE = b"data: [DONE]\n\n"


@dataclass
class AnswerChoice:
    """One finished answer, taken apart."""

    parts: list[AnswerPart] = field(default_factory=list)
    likelihoods: list[Likelihood] = field(default_factory=list)
    reason: str = "stop"
    stopped: str | None = None

    def text(self, kind: str) -> str:
        """All `content` or all `reasoning`."""
        return "".join(getattr(part, kind) for part in self.parts)


@dataclass
class Answer:
    """A finished request; `prompt` has log probabilities, if it asked for them."""

    choices: list[AnswerChoice]
    usage: Usage
    prompt: PromptRead | None = None


@dataclass(frozen=True)
class Piece:
    """Part of a streamed answer: what one event, or the end of one choice, added, and how many
    tokens it was; or the prompt that all choices go on from."""

    choice: int
    parts: list[AnswerPart]
    likelihoods: tuple[Likelihood, ...] = ()
    tokens: int = 0
    prompt: PromptRead | None = None


@asynccontextmanager
async def running(
    model: TextService, request: TextRequest, protocol: str = "openai"
) -> AsyncIterator[AsyncIterator[Event]]:
    """Submit, wait until work begins, and give the events that follow; leaving cancels what still
    runs. `protocol` is the name that metrics and logs use.

    Raises:
        AtelierError: the request was refused, or failed before it began; no answer has been started
            then.
    """
    from atelier.text.metrics import measured

    try:
        stream = await model.submit(request)
    except AtelierError as error:
        model.observer.refused(protocol, error)
        raise
    follow = model.observer.request(protocol)
    events = measured(model.name, aiter(stream), follow)
    try:
        async for event in events:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Started):
                break
        yield events
    finally:
        stream.cancel()
        await events.aclose()  # type: ignore[attr-defined]


async def pieces(
    model: TextService, request: TextRequest, events: AsyncIterator[Event]
) -> AsyncIterator[Piece | Finished]:
    """The answer as it arrives, and `Finished` at last. Of several tool calls the first alone is
    told where the request wants one at most.

    Raises:
        AtelierError: generation failed.
    """
    parsers = [model.parser(request) for _ in range(request.n)]
    called: set[int] = set()

    def wanted(choice: int, parts: list[AnswerPart]) -> list[AnswerPart]:
        kept = []
        for part in parts:
            if part.call is None or request.parallel_tool_calls or choice not in called:
                kept.append(part)
            if part.call is not None:
                called.add(choice)
        return kept

    async for event in events:
        if isinstance(event, Token):
            parts = wanted(event.choice, parsers[event.choice].add(event.text))
            yield Piece(event.choice, parts, event.likelihoods, len(event.ids))
        elif isinstance(event, PromptRead):
            yield Piece(0, [], prompt=event)
        elif isinstance(event, Finished):
            for choice, parser in enumerate(parsers):
                if rest := wanted(choice, parser.end()):
                    yield Piece(choice, rest)
            yield event
        elif isinstance(event, Failed):
            raise event.error


async def complete(model: TextService, request: TextRequest, protocol: str = "openai") -> Answer:
    """Run a request to its end."""
    choices = [AnswerChoice() for _ in range(request.n)]
    usage, prompt = Usage(0, 0, 0), None
    async with running(model, request, protocol) as events:
        async for piece in pieces(model, request, events):
            if isinstance(piece, Piece):
                prompt = piece.prompt or prompt
                choices[piece.choice].parts += piece.parts
                choices[piece.choice].likelihoods += piece.likelihoods
            else:
                usage = piece.usage or usage
                for choice, reason in zip(choices, piece.reasons, strict=True):
                    choice.reason = reason
                for choice, stopped in zip(choices, piece.stopped, strict=False):
                    choice.stopped = stopped
    return Answer(choices, usage, prompt)


async def complete_all(
    model: TextService, requests: list[TextRequest], protocol: str = "openai"
) -> list[Answer]:
    """Run requests side by side; if one fails, the others are cancelled."""
    tasks = [asyncio.ensure_future(complete(model, request, protocol)) for request in requests]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
