"""The list of models and their readiness, for KServe's and OpenAI's clients alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from atelier.errors import ModelUnknown, shown
from atelier.protocols.http.error_bodies import retry_after

TRITON_TYPES = {"BYTES": "STRING"}
"""Types of the v2 protocol that Triton's model configuration calls otherwise."""


class ServedModel(Protocol):
    """What every kind of model tells of itself."""

    name: str

    @property
    def progress(self) -> str:
        """What the start, or a restart, is doing."""

    @property
    def ready(self) -> bool:
        """Whether a request would be served now."""

    def metadata(self) -> dict[str, Any]:
        """What the metadata route adds about this model."""


def router(
    model: ServedModel,
    outputs: dict[str, str],
    expected: Callable[[], float | None] = lambda: None,
) -> APIRouter:
    """Routes that must match before KServe's own: lists in both conventions, readiness that tells
    what is going on. `outputs` maps the v2 output tensors to their types; `expected` says in how
    many seconds a model that is not ready will be, if that is known."""
    routes = APIRouter()
    created = int(time.time())

    def entry() -> dict[str, Any]:
        return {"id": model.name, "object": "model", "created": created, "owned_by": "atelier"}

    def readiness(name: str) -> JSONResponse:
        check_name(model, name)
        if model.ready:
            return JSONResponse(entry() | {"name": name, "ready": True})
        said = {"name": name, "ready": False, "error": f"not ready: {model.progress}"}
        return JSONResponse(said, 503, retry_after(expected()))

    @routes.get("/v1/models")
    @routes.get("/openai/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [entry()], "models": [model.name]}

    @routes.get("/v1/models/{name}")
    @routes.get("/openai/v1/models/{name}")
    async def one(name: str) -> JSONResponse:
        return readiness(name)

    @routes.get("/v2/models/{name}/ready")
    async def ready(name: str) -> JSONResponse:
        return readiness(name)

    @routes.get("/v2/models/{name}")
    async def metadata(name: str) -> dict[str, Any]:
        check_name(model, name)
        inputs = [{"name": "prompt", "datatype": "BYTES", "shape": [-1]}]
        made = [
            {"name": output, "datatype": datatype, "shape": [-1]}
            for output, datatype in outputs.items()
        ]
        described = {
            "name": name,
            "platform": "atelier",
            "versions": [],
            "inputs": inputs,
            "outputs": made,
        }
        return described | {"properties": model.metadata()}

    @routes.get("/v2/models/{name}/config")
    async def config(name: str) -> dict[str, Any]:
        check_name(model, name)
        return triton_config(name, {"prompt": "BYTES"}, outputs)

    @routes.get("/health")
    async def health() -> JSONResponse:
        if model.ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": model.progress}, 503, retry_after(expected()))

    return routes


def triton_config(name: str, inputs: dict[str, str], outputs: dict[str, str]) -> dict[str, Any]:
    """What Triton's clients read of a model beside its metadata, in the JSON form of its
    `ModelConfig` (github.com/triton-inference-server/common, protobuf/model_config.proto).

    `max_batch_size` 0 says that a tensor's first axis is among its dims, as the metadata has it.
    """

    def tensors(types: dict[str, str]) -> list[dict[str, Any]]:
        return [
            {"name": tensor, "data_type": f"TYPE_{TRITON_TYPES.get(kind, kind)}", "dims": [-1]}
            for tensor, kind in types.items()
        ]

    return {
        "name": name,
        "platform": "atelier",
        "backend": "atelier",
        "max_batch_size": 0,
        "input": tensors(inputs),
        "output": tensors(outputs),
    }


def check_name(model: ServedModel, name: Any) -> None:
    """See that a request means the served model; null or empty is the one model there is.

    Raises:
        ModelUnknown: it means another.
    """
    if name not in (None, "", model.name):
        raise ModelUnknown(f"there is no model {shown(name)} here; this server has {model.name!r}")
