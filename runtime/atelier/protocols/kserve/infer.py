"""KServe's v2 infer over REST as a route of our own, which takes what Triton's clients send: JSON
without a content type, and binary tensors that are no text, such as pictures. KServe's own decoder
refuses both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from fastapi import APIRouter, Request
from fastapi.responses import Response
from kserve.protocol.infer_type import InferRequest, InferResponse

from atelier.protocols.http.models import ServedModel, check_name
from atelier.protocols.http.openapi import answers, json_body
from atelier.protocols.http.pools import reading, writing
from atelier.protocols.kserve.tensors import Body, decode, encode

Infer = Callable[[InferRequest, Mapping[str, str]], Awaitable[InferResponse]]


class Counted(ServedModel, Protocol):
    """A model that counts what it refuses."""

    def refusals(self, protocol: str) -> AbstractContextManager[None]:
        """Count an error raised inside as a request that was not admitted."""


def router(model: Counted, infer: Infer) -> APIRouter:
    """`POST /v2/models/{name}/infer`; `infer` answers a decoded request, given the headers."""
    routes = APIRouter(tags=["V2"])
    options = answers("application/json", "application/octet-stream")

    @routes.post(
        "/v2/models/{model_name}/infer",
        openapi_extra=json_body(Body.model_json_schema()),
        **options,
    )
    async def infer_rest(model_name: str, request: Request) -> Response:
        """Answer a tensor of prompts."""
        check_name(model, model_name)
        with model.refusals("v2"):
            payload = await reading(decode, await request.body(), request.headers, model.name)
        return await writing(encode, await infer(payload, dict(request.headers)))

    return routes
