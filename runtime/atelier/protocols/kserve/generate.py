"""The generate extension of the v2 protocol: one text in, one text out, whole or as a stream of
server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response

from atelier.errors import AtelierError, InvalidRequest, shown
from atelier.events import Finished
from atelier.protocols.http.bodies import json_response, read_object
from atelier.protocols.http.deadlines import timed
from atelier.protocols.http.models import check_name
from atelier.protocols.http.sse import frame, when_begun
from atelier.protocols.openai.text_bodies import SAME
from atelier.protocols.text_requests import complete, pieces, running
from atelier.text.request import TextRequest, make_request
from atelier.text.service import TextService

ALLOWED = {*SAME, "max_tokens"} - {"n"}
BESIDE = ("text_input", "parameters", "id")
HARMLESS: dict[str, tuple[Any, ...]] = {"exclude_input_in_output": (True,)}
"""Fields of Triton's own backends, with the values that ask for what is done anyway."""


def router(model: TextService) -> APIRouter:
    """`/v2/models/{name}/generate` and `/generate_stream`."""
    routes = APIRouter()

    @routes.post("/v2/models/{name}/generate")
    async def generate(name: str, request: Request) -> Response:
        harmless = HARMLESS | {"stream": (False,)}
        parsed = _parse(model, name, await read_object(request), harmless)
        wanted = timed(parsed, request.headers)
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
        harmless = HARMLESS | {"stream": (True, False)}
        parsed = _parse(model, name, await read_object(request), harmless)
        wanted = timed(parsed, request.headers)
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


def _parse(
    model: TextService, name: str, body: dict[str, Any], harmless: dict[str, tuple[Any, ...]]
) -> TextRequest:
    """`{"text_input": "...", "parameters": {...}}`; as with Triton, parameters may also stand
    beside the text.

    Raises:
        ModelUnknown, InvalidRequest: the name or a field is wrong.
    """
    check_name(model, name)
    if not isinstance(body.get("text_input"), str):
        raise InvalidRequest("text_input must be text", "text_input")
    parameters = {} if body.get("parameters") is None else body["parameters"]
    if not isinstance(parameters, dict):
        raise InvalidRequest("parameters must be an object of field names and values", "parameters")
    beside = {field: value for field, value in body.items() if field not in BESIDE}
    parameters = {
        field: value
        for field, value in (beside | parameters).items()
        if value not in (None, "") and value not in harmless.get(field, ())
    }
    if "stream" in parameters:
        raise InvalidRequest(
            f"stream={shown(parameters['stream'])}: a stream is at generate_stream", "stream"
        )
    unknown = sorted(set(parameters) - ALLOWED)
    if unknown:
        field = unknown[0]
        raise InvalidRequest(
            f"parameters.{field}={shown(parameters[field])} is not offered here; allowed:"
            f" {', '.join(sorted(ALLOWED))}",
            field,
        )
    return make_request(prompt=body["text_input"], **parameters)
