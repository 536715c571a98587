"""What all picture protocols share: requests through the model, encoded pictures out."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from atelier.events import Event, Failed, Finished, Image, Preview, Warned
from atelier.images.encoder import PictureEncoder
from atelier.images.request import Format, ImageRequest
from atelier.images.service import PictureService
from atelier.protocols.http.pools import writing
from atelier.streams import EventStream

Watch = Callable[[int, Event], None]


@dataclass(frozen=True)
class EncodedPicture:
    """One encoded picture and the seed that draws it again."""

    data: bytes
    format: Format
    seed: int
    width: int
    height: int

    @property
    def b64(self) -> str:
        return base64.b64encode(self.data).decode()


@dataclass
class DrawnRequest:
    """The pictures of one request, in order, and the seconds spent by stage; with a step cache,
    the number of steps that were computed; what was drawn otherwise than it was asked for."""

    request: ImageRequest
    pictures: list[EncodedPicture] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    steps_run: int | None = None
    warnings: list[str] = field(default_factory=list)


async def draw_all(
    model: PictureService,
    encoder: PictureEncoder,
    requests: Sequence[ImageRequest],
    protocol: str,
) -> list[DrawnRequest]:
    """Draw every request, side by side; one that fails or is refused takes the others back."""
    return await collect_all(encoder, requests, await submit_all(model, requests, protocol))


async def submit_all(
    model: PictureService, requests: Sequence[ImageRequest], protocol: str
) -> list[EventStream]:
    """Have every request admitted, or none. `protocol` is the one that metrics count them under.

    Raises:
        NotReady, InvalidRequest, Busy, Draining: one of them is refused.
    """
    streams: list[EventStream] = []
    try:
        for request in requests:  # no comprehension: those admitted so far are taken back
            streams.append(await model.submit(request, protocol))  # noqa: PERF401
    except BaseException:
        for stream in streams:
            stream.cancel()
        raise
    return streams


async def collect_all(
    encoder: PictureEncoder,
    requests: Sequence[ImageRequest],
    streams: Sequence[EventStream],
    watch: Watch = lambda index, event: None,
) -> list[DrawnRequest]:
    """Follow all streams to their ends; `watch` hears every event with its request's index.

    Raises:
        AtelierError: what the first request failed with; the others are cancelled.
    """
    tasks = [
        asyncio.create_task(collect(encoder, request, stream, partial(watch, index)))
        for index, (request, stream) in enumerate(zip(requests, streams, strict=True))
    ]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        for stream in streams:
            stream.cancel()


async def collect(
    encoder: PictureEncoder,
    request: ImageRequest,
    stream: EventStream,
    watch: Callable[[Event], None],
) -> DrawnRequest:
    """Follow one stream to its end, encoding pictures in threads.

    Raises:
        AtelierError: what the request failed with.
    """
    drawn = DrawnRequest(request)
    async for event in stream:
        watch(event)
        await absorb(encoder, drawn, event)
    return drawn


async def absorb(encoder: PictureEncoder, drawn: DrawnRequest, event: Event) -> None:
    """Add what one event brings to the result; `Failed` raises its error."""
    if isinstance(event, Image):
        drawn.pictures.append(await encode(encoder, event, drawn.request))
    elif isinstance(event, Finished):
        drawn.timings, drawn.steps_run = event.timings, event.steps_run
    elif isinstance(event, Warned):
        drawn.warnings.append(event.message)
    elif isinstance(event, Failed):
        raise event.error


async def encode(encoder: PictureEncoder, image: Image, request: ImageRequest) -> EncodedPicture:
    """The picture in the format that the request wants, encoded and marked in a thread."""
    data = await writing(encoder.encode, image, request)
    return EncodedPicture(data, request.format, image.seed, image.width, image.height)


async def encode_preview(encoder: PictureEncoder, preview: Preview, request: ImageRequest) -> bytes:
    """A preview in the format that the request wants, encoded in a thread."""
    return await writing(encoder.encode_preview, preview, request)
