"""A request that draws nothing: a picture that was sent is made larger, as a job of the device like
any other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from atelier.errors import InvalidRequest
from atelier.images import codec
from atelier.images.request import ImageRequest

HEEDED = {
    "task",
    "prompt",
    "image",
    "upscale",
    "upscaler",
    "format",
    "compression",
    "output",
    "timeout",
    "seed",
}
"""Fields that mean something to it."""


class PictureAsSent:
    """In place of a pipeline: no modules, no steps, the picture of its argument."""

    def __call__(
        self, image: Any, width: int, height: int, generator: Any = None
    ) -> tuple[torch.Tensor]:
        """The picture as 1 x channels x height x width in 0..1."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return (pixels[None].float() / 255,)


def enlarging_arguments(request: ImageRequest, most_pixels: int) -> dict[str, Any]:
    """The arguments of `PictureAsSent`. Decodes the picture.

    Raises:
        InvalidRequest: not one picture, no `upscale`, or a field that is for drawing.
    """
    if request.upscale is None:
        raise InvalidRequest("upscale: is missing; it is 2 or 4", "upscale")
    if request.image is None or len(request.image) != 1:
        raise InvalidRequest("image: to be enlarged, exactly one is taken", "image")
    unset = type(request).model_fields
    for name in (*request.model_fields_set, *request.extra):
        value = request.extra.get(name, getattr(request, name, None))
        default = unset[name].default if name in unset else None
        if name not in HEEDED and value not in (None, default):
            raise InvalidRequest(f"{name}: it has no meaning where nothing is drawn", name)
    picture = codec.decode(request.image[0], most_pixels, "image").convert("RGB")
    return {"image": picture, "width": picture.width, "height": picture.height}
