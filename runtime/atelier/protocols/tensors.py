"""KServe bodies as Python values, for every kind of model: v1 JSON, v2 tensors and parameters."""

from __future__ import annotations

import struct
from typing import Any

import kserve
import orjson

from atelier.errors import InvalidRequest

UNREADABLE = (ValueError, TypeError, KeyError, IndexError, OverflowError, struct.error)  # what decoding tensors raises


def values(tensor: Any, raw: bool = False) -> list[Any]:
    """The elements of a v2 tensor in row-major order; bytes are decoded as UTF-8 unless they are wanted `raw`.

    Raises:
        InvalidRequest: the data do not fit the shape or type, or are not text; the tensor is named.
    """
    try:
        flat = tensor.as_numpy().reshape(-1).tolist()
    except (*UNREADABLE, kserve.errors.InvalidInput, kserve.errors.InferenceError) as error:
        raise InvalidRequest(f"{tensor.name}: the tensor cannot be read: {error}", tensor.name) from None
    if raw:
        return list(flat)
    try:
        return [value.decode() if isinstance(value, bytes) else value for value in flat]
    except UnicodeDecodeError:
        raise InvalidRequest(f"{tensor.name}: the tensor is not UTF-8 text", tensor.name) from None


def parameter(value: Any) -> Any:
    """A request parameter; over gRPC it arrives as a protobuf union."""
    which = getattr(value, "WhichOneof", None)
    return getattr(value, which("parameter_choice")) if which else value


def json_value(raw: bytes | str) -> Any:
    """The value of a JSON body.

    Raises:
        InvalidRequest: it is not JSON.
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
