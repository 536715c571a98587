"""KServe bodies as Python values and back, for every kind of model: v1 JSON, v2 requests with their
tensors and parameters."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Annotated, Any

import kserve
import orjson
from fastapi.responses import Response
from kserve.protocol.infer_type import InferInput, InferRequest, InferResponse, RequestedOutput
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from atelier.bounds import MAX_ROWS, read_json
from atelier.errors import InvalidRequest, shown

DATATYPES = (
    "BYTES", "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
    "FP16", "FP32", "FP64",
)  # fmt: skip
"""Types of tensors in the v2 protocol that are read here."""

LENGTH_HEADER = "inference-header-content-length"

UNREADABLE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    struct.error,
)  # what decoding tensors raises


def _as_text(value: Any) -> Any:
    """Ids are text; some clients count with numbers."""
    return str(value) if type(value) in (int, float) else value


def _known_type(value: Any) -> Any:
    name = value.strip().upper() if isinstance(value, str) else value
    if isinstance(name, str) and name not in DATATYPES:
        raise ValueError(f"{shown(value)} is none; there are {', '.join(DATATYPES)}")
    return name


class NullIsAbsent(BaseModel):
    """Explicit nulls, as KServe's own client writes them, are fields that were left out."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: each for name, each in value.items() if each is not None}


class TensorBody(NullIsAbsent):
    """An input: its elements are in `data`, or follow the JSON as `binary_data_size` bytes."""

    name: str
    shape: list[int] = Field(max_length=8)
    datatype: Annotated[str, BeforeValidator(_known_type)]
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class Output(NullIsAbsent):
    """An output that is asked for, and in which form."""

    name: str
    parameters: dict[str, Any] = {}


class Body(NullIsAbsent):
    """The JSON of a v2 inference request."""

    id: Annotated[str | None, BeforeValidator(_as_text)] = None
    inputs: list[TensorBody] = Field(min_length=1)
    outputs: list[Output] = []
    parameters: dict[str, Any] = {}


def values(tensor: Any, raw: bool = False) -> list[Any]:
    """The elements of a v2 tensor in row-major order; bytes are decoded as UTF-8 unless they are
    wanted `raw`.

    Raises:
        InvalidRequest: the data do not fit the shape or type, are too many, or are not text; the
            tensor is named.
    """
    count = math.prod(tensor.shape)
    if min(tensor.shape, default=0) < 0 or count > MAX_ROWS:
        raise InvalidRequest(
            f"{tensor.name}: its shape {list(tensor.shape)} is not one of at most {MAX_ROWS}"
            " elements",
            tensor.name,
        )
    packed = tensor._raw_data if tensor.datatype == "BYTES" else None
    try:
        flat = (
            tensor.as_numpy().reshape(-1).tolist() if packed is None else _unpacked(packed, count)
        )
    except (*UNREADABLE, kserve.errors.InvalidInput, kserve.errors.InferenceError) as error:
        raise InvalidRequest(
            f"{tensor.name}: the tensor cannot be read: {error}", tensor.name
        ) from None
    if raw:
        return list(flat)
    try:
        return [value.decode() if isinstance(value, bytes) else value for value in flat]
    except UnicodeDecodeError:
        raise InvalidRequest(f"{tensor.name}: the tensor is not UTF-8 text", tensor.name) from None


def _unpacked(packed: bytes, count: int) -> list[bytes]:
    """`count` elements, each after its length: 4 bytes, little-endian."""
    elements, start = [], 0
    for _ in range(count):
        (length,) = struct.unpack_from("<I", packed, start)
        start += 4 + length
        elements.append(packed[start - length : start])
    if start != len(packed):
        raise ValueError(f"{len(packed)} bytes, where {count} elements take {start}")
    return elements


def parameter(value: Any) -> Any:
    """A request parameter; over gRPC it arrives as a protobuf union, which may be empty.

    Raises:
        InvalidRequest: it is empty.
    """
    which = getattr(value, "WhichOneof", None)
    if which is None:
        return value
    name = which("parameter_choice")
    if name is None:
        raise InvalidRequest("parameters: one of them has no value", "parameters")
    return getattr(value, name)


def check_outputs(payload: InferRequest, made: tuple[str, ...]) -> None:
    """See that only outputs are asked for that the model makes.

    Raises:
        InvalidRequest: names the one that is not made.
    """
    for output in payload.request_outputs or []:
        if output.name not in made:
            raise InvalidRequest(
                f"outputs: {shown(output.name)} is not made here; there are {' and '.join(made)}",
                "outputs",
            )


def decode(body: bytes, headers: Mapping[str, str], model: str) -> InferRequest:
    """The request in `body`: JSON, and after it the bytes of its binary tensors.

    Raises:
        InvalidRequest: it is not JSON of a v2 request, or its lengths do not add up.
    """
    length = headers.get(LENGTH_HEADER, str(len(body)))
    # Python converts no more than 4,300 digits
    if not length.isdecimal() or len(length) > 12 or int(length) > len(body):
        raise InvalidRequest(
            f"{LENGTH_HEADER}: {length[:40]} of a body of {len(body)} bytes", LENGTH_HEADER
        )
    try:
        told = Body.model_validate(read_json(body[: int(length)]))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = ".".join(map(str, fault["loc"]))
        reason = fault["msg"].removeprefix("Value error, ")
        raise InvalidRequest(f"{name}: {reason}", name) from None
    inputs, rest = [], memoryview(body)[int(length) :]
    for tensor in told.inputs:
        size = tensor.parameters.get("binary_data_size") or 0
        if (
            not isinstance(size, int)
            or not 0 <= size <= len(rest)
            or (tensor.data is None) != bool(size)
        ):
            raise InvalidRequest(
                f"{tensor.name}: it needs either data or a binary_data_size of at most the"
                f" {len(rest)} bytes left",
                tensor.name,
            )
        made = InferInput(
            tensor.name,
            tensor.shape,
            tensor.datatype,
            data=tensor.data,
            parameters=tensor.parameters,
        )
        made._raw_data = bytes(rest[:size]) if size else None
        rest = rest[size:]
        inputs.append(made)
    outputs = [RequestedOutput(output.name, output.parameters) for output in told.outputs]
    return InferRequest(
        model, inputs, told.id, parameters=told.parameters, request_outputs=outputs or None
    )


def encode(response: InferResponse) -> Response:
    """JSON, or JSON and the bytes of the tensors that were asked for in binary."""
    body, length = response.to_rest()
    if isinstance(body, bytes):
        return Response(
            body, media_type="application/octet-stream", headers={LENGTH_HEADER: str(length)}
        )
    return Response(orjson.dumps(body), media_type="application/json")
