"""The generate extension of the v2 protocol: one text in, one text out, whole or as a stream of
server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response

from atelier.errors import AtelierError, InvalidRequest, ModelUnknown, shown
from atelier.events import Finished
from atelier.protocols.http.bodies import json_response, read_object
from atelier.protocols.http.deadlines import timed
from atelier.protocols.http.sse import frame, when_begun
from atelier.protocols.openai.text_bodies import SAME
from atelier.protocols.text_requests import complete, pieces, running
from atelier.text.request import TextRequest, make_request
from atelier.text.service import TextService

ALLOWED = {*SAME, "max_tokens"} - {"n"}


def router(model: TextService) -> APIRouter:
    """`/v2/models/{name}/generate` and `/generate_stream`."""
    routes = APIRouter()

    @routes.post("/v2/models/{name}/generate")
    async def generate(name: str, request: Request) -> Response:
        wanted = timed(_parse(model, name, await read_object(request)), request.headers)
        answer = await complete(model, wanted, "v2")
        choice = answer.choices[0]
        return json_response(
            {
                "model_name": model.name,
                "text_output": choice.text("content"),
                "finish_reason": choice.reason,
            }
        )

    @routes.post("/v2/models/{name}/generate_stream")
    async def generate_stream(name: str, request: Request) -> Response:
        wanted = timed(_parse(model, name, await read_object(request)), request.headers)
        return await when_begun(_chunks(model, wanted), _error_frame)

    return routes


async def _chunks(model: TextService, request: TextRequest) -> AsyncGenerator[bytes]:
    async with running(model, request, "v2") as events:
        try:
            async for piece in pieces(model, request, events):
                said: dict[str, Any] = {"model_name": model.name}
                if isinstance(piece, Finished):
                    yield frame(said | {"text_output": "", "finish_reason": piece.reasons[0]})
                elif text := "".join(part.content for part in piece.parts):
                    yield frame(said | {"text_output": text})
        except AtelierError as error:
            yield _error_frame(error)


def _error_frame(error: AtelierError) -> bytes:
    return frame({"error": error.message})


def _parse(model: TextService, name: str, body: dict[str, Any]) -> TextRequest:
    """`{"text_input": "...", "parameters": {...}}`.

    Raises:
        ModelUnknown, InvalidRequest: the name or a field is wrong.
    """
    if name != model.name:
        raise ModelUnknown(f"there is no model {shown(name)} here; this server has {model.name!r}")
    if not isinstance(body.get("text_input"), str):
        raise InvalidRequest("text_input must be text", "text_input")
    parameters = {} if body.get("parameters") is None else body["parameters"]
    if not isinstance(parameters, dict):
        raise InvalidRequest("parameters must be an object of field names and values", "parameters")
    unknown = sorted(set(parameters) - ALLOWED)
    if unknown:
        raise InvalidRequest(
            f"parameters.{unknown[0]} is not a field; allowed: {', '.join(sorted(ALLOWED))}",
            unknown[0],
        )
    return make_request(prompt=body["text_input"], **parameters)
