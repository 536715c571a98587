"""OpenAI's images API: generations, edits, variations, and the pictures behind their URLs."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from atelier.errors import AtelierError, InvalidRequest, shown
from atelier.events import Failed, Image, Preview, Warned
from atelier.images.codec import MEDIA_TYPES
from atelier.images.service import PictureService
from atelier.protocols.http.deadlines import timed
from atelier.protocols.http.error_bodies import error_object
from atelier.protocols.http.links import public_base
from atelier.protocols.http.openapi import answers, form_or_json_body, json_body
from atelier.protocols.http.pools import decoding, reading, writing
from atelier.protocols.http.results import ResultStore
from atelier.protocols.http.sse import EventStreamResponse, frame
from atelier.protocols.jobs.job import Jobs
from atelier.protocols.jobs.routes import accepted, wants_job
from atelier.protocols.openai.image_bodies import (
    EditBody,
    GenerationBody,
    ImagesBody,
    ImagesCall,
    VariationBody,
    check,
    translate,
)
from atelier.protocols.openai.image_uploads import Upload, read
from atelier.protocols.openai.image_upscaling import UpscaleBody, upscale_call
from atelier.protocols.picture_requests import DrawnRequest, draw_all
from atelier.protocols.picture_writer import EncodedPicture, PictureWriter
from atelier.settings import Settings
from atelier.streams import EventStream

log = logging.getLogger(__name__)

PROTOCOL = "openai"
PREFIXES = ("/v1", "/openai/v1")
NO_TOKENS = {
    "total_tokens": 0,
    "input_tokens": 0,
    "output_tokens": 0,
    "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
}
"""OpenAI's stream events must have a usage; nothing is counted in tokens here."""


@dataclass(frozen=True)
class ImagesApi:
    """The handlers, over one model."""

    model: PictureService
    writer: PictureWriter
    jobs: Jobs
    store: ResultStore
    settings: Settings

    async def generations(self, request: Request) -> Response:
        """Draw pictures from a prompt."""
        with self.model.refusals(PROTOCOL):
            self.model.check_room()
            upload = await read(request, self.settings)
            if upload.pictures or upload.mask:
                raise InvalidRequest(
                    "image: generations take no picture; send it to /v1/images/edits", "image"
                )
            body = check(GenerationBody, upload.fields)
        return await self._answer(request, body, upload, "image_generation")

    async def edits(self, request: Request) -> Response:
        """Redraw one or several pictures as the prompt says; with a mask, only where it is
        transparent."""
        with self.model.refusals(PROTOCOL):
            self.model.check_room()
            upload = await read(request, self.settings)
            if not upload.pictures:
                raise InvalidRequest("image: is missing", "image")
            body = check(EditBody, upload.fields)
        return await self._answer(request, body, upload, "image_edit")

    async def variations(self, request: Request) -> Response:
        """Draw variations of one picture."""
        with self.model.refusals(PROTOCOL):
            self.model.check_room()
            upload = await read(request, self.settings)
            if len(upload.pictures) != 1 or upload.mask:
                raise InvalidRequest(
                    "image: a variation has exactly one picture and no mask", "image"
                )
            body = check(VariationBody, upload.fields)
        return await self._answer(request, body, upload, "image_edit")

    async def upscale(self, request: Request) -> Response:
        """Make one picture larger, by a network of UPSCALERS. Nothing is drawn."""
        with self.model.refusals(PROTOCOL):
            self.model.check_room()
            upload = await read(request, self.settings)
            body = check(UpscaleBody, upload.fields)
        return await self._answer(request, body, upload, "image_edit")

    async def file(self, name: str) -> Response:
        """A picture that an answer with `response_format: url` named."""
        entry = self.store.get(name)
        left = max(0, int(entry.expires - time.monotonic()))
        return Response(
            entry.data,
            media_type=entry.media_type,
            headers={"Cache-Control": f"private, max-age={left}"},
        )

    async def _answer(
        self, request: Request, body: ImagesBody | UpscaleBody, upload: Upload, kind: str
    ) -> Response:
        if who := body.user or body.safety_identifier:
            log.info("the request is from user %s", shown(who))
        with self.model.refusals(PROTOCOL):
            inside = decoding if upload.mask else reading  # a mask is compared with its picture
            made: Any = upscale_call if isinstance(body, UpscaleBody) else translate
            call = await inside(made, body, upload.pictures, upload.mask, self.model, self.settings)
            requests = [timed(call.request, request.headers)]
            if call.stream and wants_job(request):
                raise InvalidRequest(
                    "stream: a job has its own events; leave out stream or the Prefer header",
                    "stream",
                )
        if call.stream:
            events = await self.model.submit(requests[0], PROTOCOL)
            return EventStreamResponse(_frames(self.writer, kind, call, events))
        base = public_base(request, self.settings)
        finish = partial(self._body, call, base)
        if wants_job(request):
            return accepted(await self.jobs.start(requests, PROTOCOL, finish))
        drawn = await draw_all(self.model, self.writer, requests, PROTOCOL)
        return Response(await finish(drawn), media_type="application/json")

    async def _body(self, call: ImagesCall, base: str, drawn: list[DrawnRequest]) -> bytes:
        """OpenAI's answer, and with each picture the seed that draws it again."""
        pictures = drawn[0].pictures
        if not call.as_url or any(picture.stored for picture in pictures):
            return await writing(_json, call, drawn[0])
        links = [self._link(call, base, picture) for picture in pictures]
        return _json(call, drawn[0], links)

    def _link(self, call: ImagesCall, base: str, picture: EncodedPicture) -> dict[str, Any]:
        name = self.store.put(picture.data, MEDIA_TYPES[picture.format], f".{call.output_format}")
        return {
            "url": f"{base}/v1/images/files/{name}",
            "expires_at": int(time.time() + self.store.seconds),
        }


def _json(
    call: ImagesCall, drawn: DrawnRequest, links: list[dict[str, Any]] | None = None
) -> bytes:
    """The whole answer: links, where the pictures are stored, or else the pictures as text, which
    is work for a thread."""
    pictures = drawn.pictures
    contents = links or [_content(picture) for picture in pictures]
    data = [content | picture.further for content, picture in zip(contents, pictures, strict=True)]
    first = pictures[0]
    described = _described(call, first.width, first.height)
    steps = {} if drawn.steps_run is None else {"steps_run": drawn.steps_run}
    warnings = [*call.warnings, *drawn.warnings]
    told = {"warnings": warnings} if warnings else {}
    created = {"created": int(time.time())}
    return orjson.dumps(created | {"data": data} | described | steps | told)


def _content(picture: EncodedPicture) -> dict[str, Any]:
    return picture.stored.told() if picture.stored else {"b64_json": picture.b64}


def _described(call: ImagesCall, width: int, height: int) -> dict[str, str]:
    return {
        "background": call.background,
        "output_format": call.output_format,
        "quality": call.quality,
        "size": f"{width}x{height}",
    }


async def _frames(
    writer: PictureWriter, kind: str, call: ImagesCall, stream: EventStream
) -> AsyncGenerator[bytes]:
    """OpenAI's events: previews as they come, then each finished picture; a failure is an `error`
    event."""
    previews = 0
    warnings = list(call.warnings)
    try:
        async for event in stream:
            if isinstance(event, Warned):
                warnings.append(event.message)
            elif isinstance(event, Preview):
                data = await writer.preview(event, call.request)
                extra: dict[str, Any] = {"partial_image_index": previews}
                content = {"b64_json": base64.b64encode(data).decode()}
                yield _event(f"{kind}.partial_image", call, content, event, extra)
                previews += 1
            elif isinstance(event, Image):
                picture = await writer.write(event, call.request)
                extra = {"usage": NO_TOKENS} | picture.further
                extra |= {"warnings": warnings} if warnings else {}
                yield _event(f"{kind}.completed", call, _content(picture), event, extra)
            elif isinstance(event, Failed):
                raise event.error
    except AtelierError as error:  # of the engine, or of what becomes of a picture after it
        yield frame({"type": "error", "error": error_object(error)}, "error")
    finally:
        stream.cancel()


def _event(
    name: str,
    call: ImagesCall,
    content: dict[str, Any],
    size: Preview | Image,
    extra: dict[str, Any],
) -> bytes:
    body = {"type": name} | content | {"created_at": int(time.time())}
    return frame(body | _described(call, size.width, size.height) | extra, name)


def router(api: ImagesApi) -> APIRouter:
    """The routes under both prefixes; the second is hidden from the OpenAPI document, which it
    would only repeat."""
    routes = APIRouter(tags=["Images"])
    edit, variation = EditBody.model_json_schema(), VariationBody.model_json_schema()
    handlers: list[tuple[str, Any, dict[str, Any]]] = [
        ("generations", api.generations, json_body(GenerationBody.model_json_schema())),
        ("edits", api.edits, form_or_json_body(edit, mask=True)),
        ("upscale", api.upscale, form_or_json_body(UpscaleBody.model_json_schema(), mask=False)),
        ("variations", api.variations, form_or_json_body(variation, mask=False)),
    ]
    options = answers("application/json", "text/event-stream", job=True)
    for prefix in PREFIXES:
        shown = prefix == PREFIXES[0]
        for name, handler, body in handlers:
            path = f"{prefix}/images/{name}"
            routes.add_api_route(
                path,
                handler,
                methods=["POST"],
                include_in_schema=shown,
                openapi_extra=body,
                **options,
            )
    files = answers(*MEDIA_TYPES.values())
    routes.add_api_route("/v1/images/files/{name}", api.file, methods=["GET"], **files)
    return routes
