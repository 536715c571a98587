"""KServe v1 and v2 (REST and gRPC) for picture models: bodies and tensors to ImageRequests,
pictures back."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import kserve
import numpy as np
from grpc import StatusCode
from grpc_interceptor.exceptions import GrpcException
from kserve.protocol.infer_type import InferOutput, InferRequest, InferResponse

from atelier.bounds import MAX_PICTURE_VALUES, read_json
from atelier.errors import AtelierError, InvalidRequest, report, shown
from atelier.images.request import ImageRequest, without_empties
from atelier.images.service import PictureService
from atelier.images.unread import MAGIC
from atelier.protocols.control_pictures import CONTROL_FIELDS, with_control_pictures
from atelier.protocols.http.deadlines import timed
from atelier.protocols.http.pools import reading
from atelier.protocols.http.remote import picture_bytes, picture_text
from atelier.protocols.kserve.tensors import check_outputs, parameter, values
from atelier.protocols.picture_requests import DrawnRequest, draw_all
from atelier.protocols.picture_writer import PictureWriter
from atelier.settings import Settings

PICTURE_FIELDS = ("image", "mask_image")


class KServeImageModel(kserve.Model):
    """The model as KServe's data plane sees it. A picture service does the work."""

    def __init__(
        self,
        model: PictureService,
        writer: PictureWriter,
        settings: Settings,
        load: Callable[[], Any],
    ) -> None:
        super().__init__(model.name)
        # the server refuses to start otherwise; `healthy` tells whether the weights are here
        self.ready = True
        self.engine = True
        self._model = model
        self._writer = writer
        self._settings = settings
        self._load = load

    def start(self) -> None:
        """Nothing: loading happens in `start_engine`, while the server already answers probes."""

    async def start_engine(self) -> None:
        """Load in the background."""
        await self._load()

    def load(self) -> bool:
        """KServe calls this when a gRPC request meets a model that is not ready."""
        told = f"the model {self.name} is not ready: {self._model.progress}"
        raise GrpcException(status_code=StatusCode.UNAVAILABLE, details=told)

    async def healthy(self) -> bool:
        return self._model.ready

    def get_input_types(self) -> list[dict[str, Any]]:
        return [{"name": "prompt", "datatype": "BYTES", "shape": [-1]}]

    def get_output_types(self) -> list[dict[str, Any]]:
        return [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "seed", "datatype": "INT64", "shape": [-1]},
        ]

    async def predict(
        self,
        payload: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> dict[str, Any] | InferResponse:
        """Answer one v1 body or one v2 request; for gRPC, errors become status codes here."""
        headers = headers or {}
        if not isinstance(payload, InferRequest):
            return await self._predict_v1(payload, headers)
        try:
            return await infer(self._model, self._writer, self._settings, payload, headers)
        except AtelierError as error:
            if not payload.from_grpc:
                raise
            raise GrpcException(
                status_code=StatusCode[report(error).grpc], details=error.message
            ) from error

    async def _predict_v1(self, payload: Any, headers: dict[str, str]) -> dict[str, Any]:
        with self._model.refusals("v1"):
            self._model.check_room()
            parsed = await reading(parse_v1, payload, self._settings)
            requests = [timed(one, headers) for one in parsed]
        drawn = await draw_all(self._model, self._writer, requests, "v1")
        return {"predictions": [prediction(self._model, each) for each in drawn]}


async def infer(
    model: PictureService,
    writer: PictureWriter,
    settings: Settings,
    payload: InferRequest,
    headers: Mapping[str, str],
) -> InferResponse:
    """Answer one v2 request, in the form it asks for.

    Raises:
        InvalidRequest: names the tensor or parameter.
    """
    protocol = "grpc-v2" if payload.from_grpc else "v2"
    with model.refusals(protocol):
        model.check_room()
        parsed = await reading(parse_v2, payload, settings)
        requests = [timed(one, headers) for one in parsed]
        check_outputs(payload, ("image", "seed", "url"))
    drawn = await draw_all(model, writer, requests, protocol)
    pictures = [picture for each in drawn for picture in each.pictures]
    binary = _wants_binary(payload)
    data = [picture.data if binary else picture.b64 for picture in pictures]
    image = _texts("image", data, binary)
    urls = [picture.stored.url if picture.stored else "" for picture in pictures]
    outputs = [image, _texts("url", urls, binary)] if any(urls) else [image]
    seed = InferOutput("seed", [len(pictures)], "INT64")
    seed.set_data_from_numpy(np.array([p.seed for p in pictures], dtype=np.int64), binary_data=True)
    steps_run = [str(each.steps_run) for each in drawn if each.steps_run is not None]
    told = {"steps_run": ",".join(steps_run)} if steps_run else {}
    if any(picture.flags for picture in pictures):
        told["flags"] = ";".join(",".join(picture.flags) for picture in pictures)
    if warnings := dict.fromkeys(warning for each in drawn for warning in each.warnings):
        told["warnings"] = "; ".join(warnings)
    return InferResponse(
        payload.id or str(uuid.uuid4()),
        model.name,
        [*outputs, seed],
        parameters=told or None,
        use_binary_outputs=payload.use_binary_outputs,
        requested_outputs=payload.request_outputs,
    )


def _texts(name: str, values: Sequence[str | bytes], binary: bool) -> InferOutput:
    output = InferOutput(name, [len(values)], "BYTES")
    encoded = [one.encode() if binary and isinstance(one, str) else one for one in values]
    output.set_data_from_numpy(np.array(encoded, dtype=object), binary_data=binary)
    return output


def _wants_binary(payload: InferRequest) -> bool:
    """Whether the picture goes out as bytes: gRPC and the binary extension can, JSON has it as
    base64 text."""
    named = [output for output in payload.request_outputs or [] if output.name == "image"]
    return bool(
        payload.from_grpc or (named[0].binary_data if named else payload.use_binary_outputs)
    )


def parse_v1(payload: Any, settings: Settings) -> list[ImageRequest]:
    """`{"instances": [...], "parameters": {...}}`; what an instance says wins over the parameters.

    Raises:
        InvalidRequest: names the instance and the field.
    """
    body = read_json(payload, MAX_PICTURE_VALUES) if isinstance(payload, bytes | str) else payload
    if not isinstance(body, dict) or not isinstance(body.get("instances"), list):
        raise InvalidRequest(
            'the body must be {"instances": [{"prompt": "..."}, ...]}', "instances"
        )
    shared = {} if body.get("parameters") is None else body["parameters"]
    if not isinstance(shared, dict):
        raise InvalidRequest("parameters must be an object of field names and values", "parameters")
    if not body["instances"]:
        raise InvalidRequest("instances is empty; it needs at least one prompt", "instances")
    _check_count(len(body["instances"]), settings)
    shared = _with_pictures(shared, "parameters.", settings)
    rows = []
    for index, instance in enumerate(body["instances"]):
        if isinstance(instance, str):
            instance = {"prompt": instance}
        if not isinstance(instance, dict):
            raise InvalidRequest(
                f"instances[{index}] must be an object with a prompt", f"instances[{index}]"
            )
        own = _with_pictures(instance, f"instances[{index}].", settings)
        rows.append(shared | without_empties(own))
    return _requests(rows, settings, lambda index: f"instances[{index}].")


def prediction(model: PictureService, drawn: DrawnRequest) -> dict[str, Any]:
    """One v1 prediction; `images` holds all pictures if there are several, `steps_run` says how
    many steps the step cache left to compute, `warnings` what was changed in what was asked."""
    images = [
        {"format": picture.format}
        | (picture.stored.told() if picture.stored else {"b64": picture.b64})
        | picture.further
        for picture in drawn.pictures
    ]
    first = {key: value for key, value in images[0].items() if key != "seed"}
    answer: dict[str, Any] = {
        "model_name": model.name,
        "prompt": drawn.request.prompt,
        "seed": drawn.pictures[0].seed,
        "image": first,
    }
    if drawn.steps_run is not None:
        answer["steps_run"] = drawn.steps_run
    if drawn.warnings:
        answer["warnings"] = drawn.warnings
    return answer | ({"images": images} if len(images) > 1 else {})


def parse_v2(payload: InferRequest, settings: Settings) -> list[ImageRequest]:
    """BYTES tensor `prompt`, one request an element; other tensors by field name, with as many
    elements or one. Where pictures are only enlarged, `image` may stand in its place.

    Raises:
        InvalidRequest: names the tensor or parameter.
    """
    columns = {
        tensor.name: values(tensor, raw=tensor.name in PICTURE_FIELDS) for tensor in payload.inputs
    }
    shared = {name: parameter(value) for name, value in dict(payload.parameters or {}).items()}
    shared.pop("binary_data_output", None)
    enlarges = "upscale" in (shared.get("task"), *columns.get("task", ()))
    leader = "image" if enlarges and "prompt" not in columns else "prompt"
    if leader not in columns:
        raise InvalidRequest(
            f"an input tensor named {leader} is needed; got {sorted(columns) or 'none'}", leader
        )
    count = len(columns[leader])
    if not count:
        raise InvalidRequest(f"{leader}: the tensor is empty", leader)
    _check_count(count, settings)
    for name, column in columns.items():
        if len(column) not in (1, count):
            raise InvalidRequest(
                f"{name}: {len(column)} elements for {count} {leader}s; send {count} or 1", name
            )
    shared = _with_pictures(shared, "", settings)
    for name in set(columns) & set(PICTURE_FIELDS):
        columns[name] = [_pictures_in(name, each, "", settings) for each in columns[name]]
    for name in set(columns) & set(CONTROL_FIELDS):
        columns[name] = [
            with_control_pictures({name: each}, "", settings)[name] for each in columns[name]
        ]
    rows = [
        shared | {name: column[index if len(column) > 1 else 0] for name, column in columns.items()}
        for index in range(count)
    ]
    return _requests(rows, settings, lambda _: "")


def _requests(
    rows: list[dict[str, Any]], settings: Settings, where: Callable[[int], str]
) -> list[ImageRequest]:
    requests = [
        ImageRequest.parse(fields, settings, where(index)) for index, fields in enumerate(rows)
    ]
    _check_count(sum(request.num_images_per_prompt for request in requests), settings)
    return requests


def _check_count(pictures: int, settings: Settings) -> None:
    limit = settings.max_images_per_request
    if pictures > limit:
        raise InvalidRequest(
            f"{pictures} pictures are asked for; MAX_IMAGES_PER_REQUEST={limit}", "instances"
        )


def _with_pictures(fields: dict[str, Any], where: str, settings: Settings) -> dict[str, Any]:
    """The fields with pictures as bytes; what rows share is decoded once."""
    decoded = {name: _pictures_in(name, value, where, settings) for name, value in fields.items()}
    return with_control_pictures(decoded, where, settings)


def _is_picture(entry: bytes) -> bool:
    """Bytes of a picture, or of anything else that is no text."""
    start = entry[:64]
    return entry.startswith(MAGIC) or not start.isascii() or not entry.isascii() or b"\0" in start


def _pictures_in(name: str, value: Any, where: str, settings: Settings) -> Any:
    """Picture fields as bytes: from base64 text, or, in a binary tensor, as they are; None where
    there is none."""
    if name not in PICTURE_FIELDS:
        return value
    many = value if isinstance(value, list) else [value]
    if not many:
        raise InvalidRequest(f"{where}{name} is an empty list of pictures", where + name)
    many = [entry for entry in many if entry not in (None, "", b"")]
    if not many:
        return None
    decoded = []
    for entry in many:
        if isinstance(entry, bytes) and not _is_picture(entry):
            entry = entry.decode()
        entry = picture_text(entry)
        if not isinstance(entry, str | bytes):
            raise InvalidRequest(
                f"{where}{name}: {shown(entry)} is no picture as base64 text", f"{where}{name}"
            )
        decoded.append(
            picture_bytes(entry, where + name, settings) if isinstance(entry, str) else entry
        )
    if name == "image":
        return decoded
    if len(decoded) != 1:
        raise InvalidRequest(
            f"{where}{name}: {len(decoded)} pictures for one mask", f"{where}{name}"
        )
    return decoded[0]
