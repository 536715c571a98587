"""The OpenAPI document: our routes, KServe's behind them, and the errors that all of them can
answer with."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from fastapi.routing import RouteContext, iter_route_contexts

from atelier import __version__
from atelier.errors import REPORTS
from atelier.images.request import ImageRequest

PICTURE = {"type": "string", "description": "Base64 text or a data URL."}
UPLOAD = {"type": "string", "format": "binary"}

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "required": ["message", "type", "param", "code"],
                    "properties": {
                        "message": {"type": "string"},
                        "type": {"type": "string"},
                        "param": {"type": ["string", "null"]},
                        "code": {"type": "string"},
                    },
                },
            ]
        }
    },
}


NOT_SERVED = (
    "/v1/models/{model_name}:explain",
    "/v2/models/{model_name}/versions/{model_version}/ready",
)
"""Routes of KServe's that answer 501 to everything here: there is no explainer, and a model has no
versions."""


def _instance() -> dict[str, Any]:
    """An instance of v1 predict: an ImageRequest with its pictures as text."""
    schema = ImageRequest.model_json_schema()
    schema["properties"] |= {
        "image": {"anyOf": [PICTURE, {"type": "array", "items": PICTURE}]},
        "mask_image": PICTURE,
    }
    return schema


PREDICT_BODY = {
    "type": "object",
    "required": ["instances"],
    "properties": {
        "instances": {"type": "array", "minItems": 1, "items": _instance()},
        "parameters": {
            "type": "object",
            "description": "Fields for all instances; an instance's own win.",
        },
    },
}


JOB_LINKS = {
    operation: {"operationId": operation, "parameters": {"job_id": "$response.body#/id"}}
    for operation in ("get_job", "follow_job", "cancel_job")
}
"""What can be asked about a job, for clients that walk the document."""

PREFER = {
    "name": "Prefer",
    "in": "header",
    "description": "respond-async starts a job and answers at once (RFC 7240).",
    "schema": {"type": "string", "enum": ["respond-async"]},
}


def answers(*media_types: str, job: bool = False) -> dict[str, Any]:
    """Options of a route that makes its own responses: what a 200 holds, and whether the route can
    start a job."""
    responses: dict[int | str, dict[str, Any]] = {
        200: {"content": {name: {} for name in media_types}}
    }
    if job:
        accepted = {
            "description": "A job, because of Prefer: respond-async",
            "content": {"application/json": {}},
            "links": JOB_LINKS,
        }
        responses[202] = accepted
    return {"response_class": Response, "responses": responses}


def json_body(schema: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads a JSON body by itself."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def form_or_json_body(schema: dict[str, Any], mask: bool) -> dict[str, Any]:
    """`openapi_extra` of a route that takes pictures, in JSON as text or in a form as files."""

    def with_pictures(picture: dict[str, Any]) -> dict[str, Any]:
        properties = {
            "image": {"anyOf": [picture, {"type": "array", "items": picture}]} if mask else picture
        }
        properties |= {"mask": picture} if mask else {}
        required = [*schema.get("required", []), "image"]
        return schema | {"properties": schema["properties"] | properties, "required": required}

    content = {
        "application/json": {"schema": with_pictures(PICTURE)},
        "multipart/form-data": {"schema": with_pictures(UPLOAD)},
    }
    return {"requestBody": {"required": True, "content": content}}


def describe(app: FastAPI, forwards: Callable[[], tuple[str, ...]] = tuple) -> None:
    """Make `/openapi.json` tell what really answers: of several routes for one path the first, the
    paths that a child engine answers, which are known for certain once it runs, and our errors."""
    app.title, app.version = "Atelier", __version__
    described: tuple[str, ...] = ()

    def document() -> dict[str, Any]:
        nonlocal described
        if app.openapi_schema is None or described != forwards():
            described = forwards()
            document = get_openapi(title=app.title, version=app.version, routes=_first(app))
            document["paths"] |= {path: {"post": _forwarded(path)} for path in described}
            app.openapi_schema = _with_errors(document)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _forwarded(path: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}
    answered = {"200": {"description": "What the child engine answers", "content": content}}
    return {"summary": f"{path} of the child engine", "responses": answered} | json_body(
        {"type": "object"}
    )


def _first(app: FastAPI) -> list[RouteContext]:
    """The routes that requests can reach; a later one for the same path and method is hidden by the
    first."""
    seen: set[tuple[str, str]] = set()
    routes = []
    for route in iter_route_contexts(app.routes):
        path = re.sub(r"{[^}]*}", "{}", route.path or "")
        methods = {(path, method) for method in route.methods or ()}
        if not methods <= seen:
            routes.append(route)
        seen |= methods
    return routes


def _with_errors(document: dict[str, Any]) -> dict[str, Any]:
    """Every operation's error answers, from the table of errors, in place of the framework's
    422."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    errors = {
        str(row.status): {"description": row.code.replace("_", " "), "content": content}
        for row in REPORTS.values()
    }
    document.setdefault("components", {}).setdefault("schemas", {})["Error"] = ERROR
    document["paths"]["/metrics"]["get"]["responses"]["200"]["content"] = {
        "text/plain": {}
    }  # KServe says JSON
    for path in NOT_SERVED:
        document["paths"].pop(path, None)
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["parameters"] = [
                p for p in operation.get("parameters", []) if p["name"] != "model_version"
            ]
            operation["responses"].pop("422", None)
            if "202" in operation["responses"]:
                operation["parameters"].append(PREFER)
            operation["responses"] |= errors
    return document
