"""How tests on a GPU draw: through the model, as the worker does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np

from atelier.events import Failed, Image
from atelier.images.model import ImageModel
from atelier.images.request import ImageRequest
from atelier.settings import Settings

Pictures = list[np.ndarray[Any, Any]]


def pictures_of(
    checkpoint: Path, device: str, dtype: str, wanted: list[dict[str, Any]], **beside: Any
) -> Pictures:
    """What a model draws that is loaded for it and closed again; `beside` are settings."""
    given = {"model_id": str(checkpoint), "device": device, "dtype": dtype}
    model = ImageModel(Settings(**(given | {"compile": "off", "warmup": "off"} | beside)))
    model.load()
    try:
        return asyncio.run(draw_together(model, wanted))
    finally:
        model.close()


async def draw_together(model: ImageModel, requests: list[dict[str, Any]]) -> Pictures:
    """All requests at once; their pictures in order, height x width x channels of bytes."""
    streams = [await model.submit(ImageRequest.model_validate(one)) for one in requests]
    pictures = []
    for stream in streams:
        async for event in stream:
            assert not isinstance(event, Failed), event.error
            if isinstance(event, Image):
                shape = event.height, event.width, event.channels
                pictures.append(np.frombuffer(event.pixels, np.uint8).reshape(shape))
    return pictures
