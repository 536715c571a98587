"""The first pictures, drawn before the model is ready: they prove stacking, fit the previews, and
fill compile caches."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from atelier.errors import AtelierError
from atelier.events import Failed
from atelier.images.arguments import accepted, sized
from atelier.images.drawing import PreparedRequest
from atelier.images.engine import ImageEngine
from atelier.images.family import must_run_alone
from atelier.images.sizes import size_multiple

log = logging.getLogger(__name__)

PROMPTS = ("a small red boat on a lake", "a white cat under a tree")
STEPS = 2
SMALLEST = 8  # in units of the size multiple: enough for any denoiser's down-sampling


def warm_up(engine: ImageEngine, pipeline: Any, sizes: Sequence[tuple[int, int]]) -> None:
    """Draw two different pictures side by side, small ones; then at each of `sizes` (width, height)
    one, and two at once: a compiler takes a lone row for a case of its own, and all other row
    counts for one.

    Two at once is what proves stacking: the engine compares stacked with lone results the first
    time it could stack. A pipeline that cannot draw these is still served, since a request may
    bring what they lack; the log says so.
    """
    began = time.monotonic()
    asyncio.run(_draw(engine, pipeline, _smallest(pipeline), 2))
    for width, height in sizes:
        for count in (1, 2):
            asyncio.run(_draw(engine, pipeline, {"width": width, "height": height}, count))
    log.info("warm-up took %.1f s", time.monotonic() - began)


def _smallest(pipeline: Any) -> dict[str, int]:
    side = size_multiple(pipeline) * SMALLEST
    as_asked = (
        {"use_resolution_binning": False} if "use_resolution_binning" in accepted(pipeline) else {}
    )
    return sized(pipeline, side, side) | as_asked


async def _draw(engine: ImageEngine, pipeline: Any, size: dict[str, int], count: int) -> None:
    steps = {"num_inference_steps": STEPS} if "num_inference_steps" in accepted(pipeline) else {}
    output = {"output_type": "pt" if hasattr(pipeline, "image_processor") else "np"}
    streams = []
    for index in range(min(count, engine.places)):
        arguments = {"prompt": PROMPTS[index % 2], **size, **steps, **output}
        job = PreparedRequest(
            pipeline, arguments, index, 1, deadline=float("inf"), exclusive=must_run_alone(pipeline)
        )
        streams.append(engine.submit(job, "warm-up"))
    for stream in streams:
        async for event in stream:
            if isinstance(event, Failed):
                log.warning(
                    "warm-up at %s failed: %s", size or "the default size", _words(event.error)
                )


def _words(error: AtelierError) -> str:
    return f"{type(error).__name__}: {error.message}"
