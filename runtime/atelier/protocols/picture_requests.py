"""What all picture protocols share: requests through the model, pictures out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from atelier.events import Event, Failed, Finished, Image, Warned
from atelier.images.request import ImageRequest
from atelier.images.service import PictureService
from atelier.protocols.picture_writer import EncodedPicture, PictureWriter
from atelier.streams import EventStream

Watch = Callable[[int, Event], None]


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
    writer: PictureWriter,
    requests: Sequence[ImageRequest],
    protocol: str,
) -> list[DrawnRequest]:
    """Draw every request, side by side; one that fails or is refused takes the others back."""
    return await collect_all(writer, requests, await submit_all(model, requests, protocol))


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
    writer: PictureWriter,
    requests: Sequence[ImageRequest],
    streams: Sequence[EventStream],
    watch: Watch = lambda index, event: None,
) -> list[DrawnRequest]:
    """Follow all streams to their ends; `watch` hears every event with its request's index.

    Raises:
        AtelierError: what the first request failed with; the others are cancelled, and what was
            stored of them is removed.
    """
    drawn = [DrawnRequest(request) for request in requests]
    tasks = [
        asyncio.create_task(collect(writer, one, stream, partial(watch, index)))
        for index, (one, stream) in enumerate(zip(drawn, streams, strict=True))
    ]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await writer.discard(picture for one in drawn for picture in one.pictures)
        raise
    finally:
        for stream in streams:
            stream.cancel()
    return drawn


async def collect(
    writer: PictureWriter,
    drawn: DrawnRequest,
    stream: EventStream,
    watch: Callable[[Event], None],
) -> None:
    """Follow one stream to its end, and add its pictures to the result.

    Raises:
        AtelierError: what the request failed with.
    """
    async for event in stream:
        watch(event)
        await absorb(writer, drawn, event)


async def absorb(writer: PictureWriter, drawn: DrawnRequest, event: Event) -> None:
    """Add what one event brings to the result; `Failed` raises its error."""
    if isinstance(event, Image):
        drawn.pictures.append(await writer.write(event, drawn.request))
    elif isinstance(event, Finished):
        drawn.timings, drawn.steps_run = event.timings, event.steps_run
    elif isinstance(event, Warned):
        drawn.warnings.append(event.message)
    elif isinstance(event, Failed):
        raise event.error
