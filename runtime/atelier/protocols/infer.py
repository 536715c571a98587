"""KServe's v2 infer over REST as a route of our own, which takes what Triton's clients send: JSON without a content type, and
binary tensors that are no text, such as pictures. KServe's own decoder refuses both."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from kserve.protocol.infer_type import InferInput, InferRequest, InferResponse, RequestedOutput
from pydantic import BaseModel, Field, ValidationError

from atelier.errors import InvalidRequest
from atelier.images.model import ImageModel
from atelier.protocols.kserve import infer
from atelier.protocols.models import check_name
from atelier.protocols.openapi import answers, json_body
from atelier.settings import Settings

LENGTH_HEADER = "inference-header-content-length"


class Tensor(BaseModel):
    """An input: its elements are in `data`, or follow the JSON as `binary_data_size` bytes."""

    name: str
    shape: list[int] = Field(max_length=8)
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class Output(BaseModel):
    """An output that is asked for, and in which form."""

    name: str
    parameters: dict[str, Any] = {}


class Body(BaseModel):
    """The JSON of a v2 inference request."""

    id: str | None = None
    inputs: list[Tensor] = Field(min_length=1)
    outputs: list[Output] = []
    parameters: dict[str, Any] = {}


def router(model: ImageModel, settings: Settings) -> APIRouter:
    """`POST /v2/models/{name}/infer`."""
    routes = APIRouter(tags=["V2"])
    options = answers("application/json", "application/octet-stream")

    @routes.post("/v2/models/{model_name}/infer", openapi_extra=json_body(Body.model_json_schema()), **options)
    async def infer_rest(model_name: str, request: Request) -> Response:
        """Pictures for a tensor of prompts."""
        check_name(model, model_name)
        with model.refusals("v2"):
            payload = await asyncio.to_thread(decode, await request.body(), request.headers, model.name)
        return await asyncio.to_thread(encode, await infer(model, settings, payload, dict(request.headers)))

    return routes


def decode(body: bytes, headers: Mapping[str, str], model: str) -> InferRequest:
    """The request in `body`: JSON, and after it the bytes of its binary tensors.

    Raises:
        InvalidRequest: it is not JSON of a v2 request, or its lengths do not add up.
    """
    length = headers.get(LENGTH_HEADER, str(len(body)))
    if not length.isdecimal() or int(length) > len(body):
        raise InvalidRequest(f"{LENGTH_HEADER}: {length} of a body of {len(body)} bytes", LENGTH_HEADER)
    try:
        told = Body.model_validate(orjson.loads(body[: int(length)]))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = ".".join(map(str, fault["loc"]))
        raise InvalidRequest(f"{name}: {fault['msg']}", name) from None
    inputs, rest = [], memoryview(body)[int(length) :]
    for tensor in told.inputs:
        size = tensor.parameters.get("binary_data_size", 0)
        if not isinstance(size, int) or not 0 <= size <= len(rest) or (tensor.data is None) != bool(size):
            raise InvalidRequest(
                f"{tensor.name}: it needs either data or a binary_data_size of at most the {len(rest)} bytes left",
                tensor.name,
            )
        made = InferInput(tensor.name, tensor.shape, tensor.datatype, data=tensor.data, parameters=tensor.parameters)
        made._raw_data = bytes(rest[:size]) if size else None
        rest = rest[size:]
        inputs.append(made)
    outputs = [RequestedOutput(output.name, output.parameters) for output in told.outputs]
    return InferRequest(model, inputs, told.id, parameters=told.parameters, request_outputs=outputs or None)


def encode(response: InferResponse) -> Response:
    """JSON, or JSON and the bytes of the tensors that were asked for in binary."""
    body, length = response.to_rest()
    if isinstance(body, bytes):
        return Response(body, media_type="application/octet-stream", headers={LENGTH_HEADER: str(length)})
    return Response(orjson.dumps(body), media_type="application/json")
