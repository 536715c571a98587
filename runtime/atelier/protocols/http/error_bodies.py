"""Errors as HTTP answers: one function that words them as the route's protocol does, and the
handlers that call it."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from atelier.errors import (
    AtelierError,
    Busy,
    ErrorReport,
    InvalidRequest,
    NotFound,
    NotReady,
    Unauthorized,
    UnsupportedEncoding,
    report,
)

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
ANTHROPIC = re.compile(r"(/openai)?/v1/messages(/.*)?")
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_object(error: AtelierError, row: ErrorReport | None = None) -> dict[str, Any]:
    """The error as OpenAI's clients read it."""
    row = row or report(error)
    return {
        "message": error.message,
        "type": row.openai_type,
        "param": getattr(error, "field", None),
        "code": row.code,
    }


def anthropic_error(error: AtelierError, row: ErrorReport | None = None) -> dict[str, Any]:
    """The body of an error as Anthropic's clients read it."""
    kind = ANTHROPIC_TYPES.get((row or report(error)).status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def error_body(path: str, error: AtelierError, row: ErrorReport | None = None) -> dict[str, Any]:
    """The body of an error as the route's protocol has it: Anthropic's, OpenAI's, or else KServe's
    `{"error": text}`."""
    if ANTHROPIC.fullmatch(path):
        return anthropic_error(error, row)
    return {
        "error": error_object(error, row) if path.startswith(OPENAI_PREFIXES) else error.message
    }


def retry_after(seconds: float | None) -> dict[str, str]:
    """The header that says when to ask again, if that is known."""
    return {} if seconds is None else {"Retry-After": str(math.ceil(seconds))}


def error_response(
    request: Request, error: AtelierError, row: ErrorReport | None = None
) -> JSONResponse:
    """The error as the route's protocol says it."""
    row = row or report(error)
    headers = {}
    if isinstance(error, Busy | NotReady):
        headers = retry_after(error.retry_after_s)
    elif isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    elif isinstance(error, UnsupportedEncoding):
        headers["Accept-Encoding"] = "gzip, deflate"  # RFC 9110, section 15.5.16
    return JSONResponse(error_body(request.url.path, error, row), row.status, headers)


def add_error_handlers(app: FastAPI) -> None:
    """Answer our errors, bodies that fail a route's schema, and routes that do not exist, all in
    the shape of the route."""

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
        row = replace(
            report(InvalidRequest("")), status=error.status_code, code=f"http_{error.status_code}"
        )
        response = error_response(request, InvalidRequest(f"{asked}: {error.detail}"), row)
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(AtelierError, ours)
    app.add_exception_handler(RequestValidationError, schema)
    app.add_exception_handler(HTTPException, framework)
