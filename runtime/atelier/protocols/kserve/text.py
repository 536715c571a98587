"""KServe v1 and v2 (REST and gRPC) for language models: instances and tensors to TextRequests, text
back."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import kserve
import numpy as np
from grpc import StatusCode
from grpc_interceptor.exceptions import GrpcException
from kserve.protocol.infer_type import InferOutput, InferRequest, InferResponse

from atelier.bounds import MAX_ROWS, read_json
from atelier.errors import AtelierError, InvalidRequest, report
from atelier.protocols.http.deadlines import timed
from atelier.protocols.kserve.tensors import check_outputs, parameter, values
from atelier.protocols.openai.text_answers import usage_object
from atelier.protocols.openai.text_bodies import SAME, tool_choice
from atelier.protocols.text_requests import Answer, complete_all
from atelier.text.request import TextRequest, make_request
from atelier.text.service import TextService

OUTPUTS = ("text", "finish_reason")
FIELDS = {*SAME, "prompt", "messages", "max_tokens", "tools", "tool_choice"}


class KServeTextModel(kserve.Model):
    """The model as KServe's data plane sees it. A text service does the work."""

    def __init__(self, model: TextService, load: Callable[[], Awaitable[None]]) -> None:
        super().__init__(model.name)
        # the server refuses to start otherwise; `healthy` tells whether the weights are here
        self.ready = True
        self.engine = True
        self._model = model
        self._load = load

    def start(self) -> None:
        """Nothing: loading happens in `start_engine`, while the server already answers probes."""

    async def start_engine(self) -> None:
        """Load in the background."""
        await self._load()

    def load(self) -> bool:
        """KServe calls this when a gRPC request meets a model that is not ready."""
        raise GrpcException(
            details=f"the model {self.name} is not ready: {self._model.progress}",
            status_code=StatusCode.UNAVAILABLE,
        )

    async def healthy(self) -> bool:
        return self._model.ready

    def get_input_types(self) -> list[dict[str, Any]]:
        return [{"name": "prompt", "datatype": "BYTES", "shape": [-1]}]

    def get_output_types(self) -> list[dict[str, Any]]:
        return [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in OUTPUTS]

    async def predict(
        self,
        payload: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> dict[str, Any] | InferResponse:
        """Answer one v1 body or one v2 request; for gRPC, errors become status codes here."""
        headers = headers or {}
        if not isinstance(payload, InferRequest):
            with self._model.refusals("v1"):
                requests = [timed(request, headers) for request in parse_v1(payload)]
            answers = await complete_all(self._model, requests, "v1")
            pairs = zip(requests, answers, strict=True)
            return {
                "predictions": [prediction(self.name, request, answer) for request, answer in pairs]
            }
        try:
            return await infer(self._model, payload, headers)
        except AtelierError as error:
            if not payload.from_grpc:
                raise
            raise GrpcException(
                details=error.message, status_code=StatusCode[report(error).grpc]
            ) from error


async def infer(
    model: TextService, payload: InferRequest, headers: Mapping[str, str]
) -> InferResponse:
    """Answer one v2 request, in the form it asks for.

    Raises:
        InvalidRequest: names the tensor, parameter or output.
    """
    protocol = "grpc-v2" if payload.from_grpc else "v2"
    with model.refusals(protocol):
        requests = [timed(request, headers) for request in parse_v2(payload)]
        check_outputs(payload, OUTPUTS)
    answers = await complete_all(model, requests, protocol)
    choices = [choice for answer in answers for choice in answer.choices]
    text = _bytes_output("text", [choice.text("content") for choice in choices])
    reasons = _bytes_output("finish_reason", [choice.reason for choice in choices])
    return InferResponse(
        payload.id or str(uuid.uuid4()),
        model.name,
        [text, reasons],
        use_binary_outputs=payload.use_binary_outputs,
        requested_outputs=payload.request_outputs,
    )


def parse_v1(payload: Any) -> list[TextRequest]:
    """`{"instances": [{"prompt" or "messages": ...}, ...], "parameters": {...}}`; what an instance
    says wins.

    Raises:
        InvalidRequest: names the instance and the field.
    """
    body = read_json(payload) if isinstance(payload, bytes | str) else payload
    if (
        not isinstance(body, dict)
        or not isinstance(body.get("instances"), list)
        or not body["instances"]
    ):
        raise InvalidRequest(
            'the body must be {"instances": [{"prompt": "..."}, ...]}', "instances"
        )
    shared = {} if body.get("parameters") is None else body["parameters"]
    if not isinstance(shared, dict):
        raise InvalidRequest("parameters must be an object of field names and values", "parameters")
    if len(body["instances"]) > MAX_ROWS:
        raise InvalidRequest(
            f"instances has {len(body['instances'])} entries; at most {MAX_ROWS} are taken",
            "instances",
        )
    rows = []
    for index, instance in enumerate(body["instances"]):
        row = {"prompt": instance} if isinstance(instance, str) else instance
        if not isinstance(row, dict):
            raise InvalidRequest(
                f"instances[{index}] must be an object with a prompt", f"instances[{index}]"
            )
        own = {name: value for name, value in row.items() if value is not None}
        rows.append(_request(shared | own, f"instances[{index}]."))
    return rows


def prediction(name: str, request: TextRequest, answer: Answer) -> dict[str, Any]:
    """One v1 prediction; `texts` holds all choices if there are several."""
    first = answer.choices[0]
    said: dict[str, Any] = {
        "model_name": name,
        "text": first.text("content"),
        "finish_reason": first.reason,
        "usage": usage_object([answer.usage]),
    }
    if request.prompt is not None:
        said["prompt"] = request.prompt
    if reasoning := first.text("reasoning"):
        said["reasoning"] = reasoning
    if calls := [part.call for part in first.parts if part.call is not None]:
        said["tool_calls"] = [{"name": call.name, "arguments": call.arguments} for call in calls]
    if len(answer.choices) > 1:
        said["texts"] = [choice.text("content") for choice in answer.choices]
    return said


def parse_v2(payload: InferRequest) -> list[TextRequest]:
    """BYTES tensor `prompt`, one request an element; fields in `parameters` or in tensors of as
    many elements or one.

    Raises:
        InvalidRequest: names the tensor or parameter.
    """
    columns = {tensor.name: values(tensor) for tensor in payload.inputs}
    count = len(columns.get("prompt", []))
    if not count:
        raise InvalidRequest(
            f"a BYTES tensor named prompt is needed; got {sorted(columns) or 'none'}", "prompt"
        )
    for name, column in columns.items():
        if len(column) not in (1, count):
            raise InvalidRequest(
                f"{name}: {len(column)} elements for {count} prompts; send {count} or 1", name
            )
    shared = {name: parameter(value) for name, value in dict(payload.parameters or {}).items()}
    shared.pop("binary_data_output", None)
    return [
        _request(
            shared
            | {name: column[index if len(column) > 1 else 0] for name, column in columns.items()},
            f"prompt[{index}]: " if count > 1 else "",
        )
        for index in range(count)
    ]


def _request(fields: dict[str, Any], where: str) -> TextRequest:
    unknown = sorted(set(fields) - FIELDS)
    if unknown:
        raise InvalidRequest(
            f"{where}{unknown[0]} is not a field; allowed: {', '.join(sorted(FIELDS))}", unknown[0]
        )
    try:
        choice = tool_choice(fields.get("tool_choice"))
        return make_request(**fields | {"tool_choice": choice})
    except InvalidRequest as error:
        raise InvalidRequest(where + error.message, error.field) from None


def _bytes_output(name: str, texts: list[str]) -> InferOutput:
    output = InferOutput(name, [len(texts)], "BYTES")
    output.set_data_from_numpy(
        np.array([text.encode() for text in texts], dtype=object), binary_data=True
    )
    return output
