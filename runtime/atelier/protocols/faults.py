"""Errors as HTTP answers: one function that words them as the route's protocol does, and the handlers that call it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from atelier.errors import AtelierError, Busy, InvalidRequest, NotFound, Report, Unauthorized, report

OPENAI_PREFIXES = (
    "/v1/images",
    "/v1/chat",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/jobs",
    "/openai/",
    "/tokenize",
    "/detokenize",
)


def error_object(error: AtelierError, row: Report | None = None) -> dict[str, Any]:
    """The error as OpenAI's clients read it."""
    row = row or report(error)
    return {
        "message": error.message,
        "type": row.openai_type,
        "param": getattr(error, "field", None),
        "code": row.code,
    }


def error_response(request: Request, error: AtelierError, row: Report | None = None) -> JSONResponse:
    """The error as the route's protocol says it: OpenAI's object below OpenAI paths, KServe's `{"error": text}` elsewhere."""
    row = row or report(error)
    headers = {}
    if isinstance(error, Busy):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    elif isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    openai = request.url.path.startswith(OPENAI_PREFIXES)
    return JSONResponse({"error": error_object(error, row) if openai else error.message}, row.status, headers)


def add_error_handlers(app: FastAPI) -> None:
    """Answer our errors, bodies that fail a route's schema, and routes that do not exist, all in the same two shapes."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, AtelierError)
        return error_response(request, error)

    async def schema(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        fault = error.errors()[0]
        name = ".".join(str(part) for part in fault["loc"])
        return error_response(request, InvalidRequest(f"{name}: {fault['msg']}", name))

    async def framework(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        asked = f"{request.method} {request.url.path}"
        if error.status_code == 404:
            return error_response(request, NotFound(f"{asked}: there is no such route"))
        row = replace(report(InvalidRequest("")), status=error.status_code, code=f"http_{error.status_code}")
        response = error_response(request, InvalidRequest(f"{asked}: {error.detail}"), row)
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(AtelierError, ours)
    app.add_exception_handler(RequestValidationError, schema)
    app.add_exception_handler(HTTPException, framework)
