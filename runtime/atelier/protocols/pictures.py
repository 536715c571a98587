"""What all picture protocols share: pictures in from text, requests through the model, encoded pictures out."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, field

from atelier.errors import InvalidRequest
from atelier.events import Event, Failed, Finished, Image
from atelier.images import codec
from atelier.images.model import ImageModel
from atelier.images.request import Format, ImageRequest
from atelier.streams import EventStream


@dataclass(frozen=True)
class Picture:
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
class Drawn:
    """The pictures of one request, in order, and the seconds spent by stage."""

    request: ImageRequest
    pictures: list[Picture] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)


def picture_bytes(text: str, where: str) -> bytes:
    """The bytes of a picture given as base64, bare or as a data URL.

    Raises:
        InvalidRequest: neither; `where` is named.
    """
    if text.startswith(("http://", "https://")):
        raise InvalidRequest(f"{where}: URLs are not fetched here; send the picture as base64 or as a data URL", where)
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{where}: not base64: {error}", where) from None


async def draw_all(model: ImageModel, requests: Sequence[ImageRequest], protocol: str) -> list[Drawn]:
    """Draw every request, side by side; one that fails or is refused takes the others back."""
    streams: list[EventStream] = []
    tasks: list[asyncio.Task[Drawn]] = []
    try:
        for request in requests:
            streams.append(await model.submit(request, protocol))  # noqa: PERF401 - the finally needs those admitted so far
        tasks = [asyncio.create_task(collect(*pair)) for pair in zip(requests, streams, strict=True)]
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        for stream in streams:
            stream.cancel()


async def collect(request: ImageRequest, stream: EventStream) -> Drawn:
    """Follow one stream to its end, encoding pictures in threads.

    Raises:
        AtelierError: what the request failed with.
    """
    drawn = Drawn(request)
    async for event in stream:
        await absorb(drawn, event)
    return drawn


async def absorb(drawn: Drawn, event: Event) -> None:
    """Add what one event brings to the result; `Failed` raises its error."""
    if isinstance(event, Image):
        request = drawn.request
        data = await asyncio.to_thread(codec.encode, event, request.format, request.compression)
        drawn.pictures.append(Picture(data, request.format, event.seed, event.width, event.height))
    elif isinstance(event, Finished):
        drawn.timings = event.timings
    elif isinstance(event, Failed):
        raise event.error
