"""JSON bodies as Python values: one reader, and one wording of its refusals, for all protocols."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import Request, Response

from atelier.errors import InvalidRequest


def json_value(raw: bytes | str) -> Any:
    """The value of a JSON body.

    Raises:
        InvalidRequest: it is not JSON.
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None


def json_object(raw: bytes | str) -> dict[str, Any]:
    """The object that a JSON body holds.

    Raises:
        InvalidRequest: it is not JSON, or not an object.
    """
    body = json_value(raw)
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    return body


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object of a request; errors as `json_object`."""
    return json_object(await request.body())


def json_response(data: Any, status: int = 200) -> Response:
    """A JSON answer, written by orjson: a token's log probabilities make bodies large."""
    return Response(orjson.dumps(data), status, media_type="application/json")
