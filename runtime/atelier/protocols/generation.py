"""What all text protocols share: starting a request, reading its events to the end, and server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from atelier.errors import AtelierError, InvalidRequest, ModelUnknown, report
from atelier.events import Event, Failed, Finished, Likelihood, Started, Token, Usage
from atelier.protocols.http import seconds_allowed
from atelier.text.model import TextModel
from atelier.text.parsing import Part
from atelier.text.request import TextRequest

DONE = b"data: [DONE]\n\n"


@dataclass
class Choice:
    """One finished answer, taken apart."""

    parts: list[Part] = field(default_factory=list)
    likelihoods: list[Likelihood] = field(default_factory=list)
    reason: str = "stop"

    def text(self, kind: str) -> str:
        """All `content` or all `reasoning`."""
        return "".join(getattr(part, kind) for part in self.parts)


@dataclass
class Answer:
    """A finished request."""

    choices: list[Choice]
    usage: Usage


@dataclass(frozen=True)
class Piece:
    """Part of a streamed answer: what one event, or the end of one choice, added."""

    choice: int
    parts: list[Part]
    likelihoods: tuple[Likelihood, ...] = ()


@asynccontextmanager
async def running(
    model: TextModel, request: TextRequest, protocol: str = "openai"
) -> AsyncIterator[AsyncIterator[Event]]:
    """Submit, wait until work begins, and give the events that follow; leaving cancels what still runs. `protocol` is
    the name that metrics and logs use.

    Raises:
        AtelierError: the request was refused, or failed before it began; no answer has been started then.
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
    model: TextModel, request: TextRequest, events: AsyncIterator[Event]
) -> AsyncIterator[Piece | Finished]:
    """The answer as it arrives, and `Finished` at last.

    Raises:
        AtelierError: generation failed.
    """
    parsers = [model.parser(request) for _ in range(request.n)]
    async for event in events:
        if isinstance(event, Token):
            yield Piece(event.choice, parsers[event.choice].add(event.text), event.likelihoods)
        elif isinstance(event, Finished):
            for choice, parser in enumerate(parsers):
                if rest := parser.end():
                    yield Piece(choice, rest)
            yield event
        elif isinstance(event, Failed):
            raise event.error


async def complete(model: TextModel, request: TextRequest, protocol: str = "openai") -> Answer:
    """Run a request to its end."""
    choices = [Choice() for _ in range(request.n)]
    usage = Usage(0, 0, 0)
    async with running(model, request, protocol) as events:
        async for piece in pieces(model, request, events):
            if isinstance(piece, Piece):
                choices[piece.choice].parts += piece.parts
                choices[piece.choice].likelihoods += piece.likelihoods
            else:
                usage = piece.usage or usage
                for choice, reason in zip(choices, piece.reasons, strict=True):
                    choice.reason = reason
    return Answer(choices, usage)


async def complete_all(model: TextModel, requests: list[TextRequest], protocol: str = "openai") -> list[Answer]:
    """Run requests side by side; if one fails, the others are cancelled."""
    tasks = [asyncio.ensure_future(complete(model, request, protocol)) for request in requests]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def read_body(request: Request) -> dict[str, Any]:
    """The JSON object of a request."""
    try:
        body = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    return body


def timed(wanted: TextRequest, headers: Mapping[str, str]) -> TextRequest:
    """The request with the shorter of its own `timeout` and the header X-Request-Timeout (seconds).

    Raises:
        InvalidRequest: the header is not a positive number.
    """
    seconds = seconds_allowed(headers)
    if seconds is None:
        return wanted
    return wanted.model_copy(update={"timeout": min(seconds, wanted.timeout or seconds)})


def check_model(model: TextModel, body: dict[str, Any]) -> None:
    """Refuse a body that names another model."""
    name = body.get("model", model.name)
    if name != model.name:
        raise ModelUnknown(f"there is no model {name!r} here; this server has {model.name!r}")


def json_response(data: Any, status: int = 200) -> Response:
    """A JSON answer, written by orjson: a token's log probabilities make bodies large."""
    return Response(orjson.dumps(data), status, media_type="application/json")


def sse(data: Any, event: str = "") -> bytes:
    """One server-sent event."""
    head = f"event: {event}\n".encode() if event else b""
    return head + b"data: " + orjson.dumps(data) + b"\n\n"


async def stream_response(chunks: AsyncIterator[bytes]) -> StreamingResponse:
    """Answer with `chunks`, once the first is there: what fails before it is still a proper error response."""
    first = await anext(chunks)

    async def all_of_them() -> AsyncIterator[bytes]:
        try:
            yield first
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(all_of_them(), media_type="text/event-stream", headers=headers)


def openai_error(error: AtelierError) -> dict[str, Any]:
    """The error object of OpenAI's API, for streams that have begun."""
    row = report(error)
    field_name = getattr(error, "field", None)
    return {"error": {"message": error.message, "type": row.openai_type, "param": field_name, "code": row.code}}
