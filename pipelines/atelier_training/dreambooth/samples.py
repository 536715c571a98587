"""Many pictures from a pipeline at once, through the serving engine's step batching: for class
pictures, validation and evaluation. Every picture has its own seed, so neither its neighbours nor
the batch size change it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

from atelier.events import Failed
from atelier.events import Image as Drawn
from atelier.images.arguments import accepted
from atelier.images.drawing import PreparedRequest
from atelier.images.engine import EngineLimits, ImageEngine
from atelier.images.interception import install


@dataclass(frozen=True)
class Wish:
    """One picture to draw."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Style:
    """How all pictures of a call are drawn. None means the pipeline's own default; `size` is
    (width, height) in pixels and `rows` the most rows of one denoiser call (pictures, doubled by
    guidance)."""

    steps: int = 20
    guidance: float | None = None
    size: tuple[int, int] | None = None
    rows: int = 8
    text_tokens: int | None = None

    def arguments(self, pipeline: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = {"num_inference_steps": self.steps, "output_type": "pt"}
        if self.guidance is not None:
            arguments["guidance_scale"] = self.guidance
        if self.size:
            arguments |= {"width": self.size[0], "height": self.size[1]}
        if self.text_tokens is not None:
            arguments["max_sequence_length"] = self.text_tokens
        return {
            name: value
            for name, value in arguments.items()
            if name in accepted(pipeline) or name == "output_type"
        }


def draw(pipeline: Any, wishes: Sequence[Wish], style: Style) -> list[Image.Image]:
    """One picture for each wish, in order.

    Raises:
        AtelierError: what the engine says of the first picture that failed.
    """
    gates = install(pipeline)
    engine = ImageEngine(EngineLimits(rows=style.rows, queue=len(wishes) + 1))
    try:
        # In a thread of its own, because a notebook's event loop is running already.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, _draw_all(engine, pipeline, wishes, style)).result()
    finally:
        engine.close()
        for gate in gates:
            gate.take_down()


async def _draw_all(
    engine: ImageEngine, pipeline: Any, wishes: Sequence[Wish], style: Style
) -> list[Image.Image]:
    fixed = style.arguments(pipeline)
    streams = [
        engine.submit(
            PreparedRequest(
                pipeline, {"prompt": wish.prompt, **fixed}, wish.seed, 1, deadline=float("inf")
            ),
            "training",
        )
        for wish in wishes
    ]
    pictures = []
    for stream in streams:
        async for event in stream:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Drawn):
                pictures.append(Image.frombytes("RGB", (event.width, event.height), event.pixels))
    return pictures
