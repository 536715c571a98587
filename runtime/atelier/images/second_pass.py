"""`highres`: a finished picture, scaled up, goes through image-to-image of its family once more, so
that what one pass at that size would draw twice is drawn once, and then gets its details."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from atelier.errors import InvalidRequest
from atelier.images.arguments import accepted, build, default_guidance, sized
from atelier.images.description import default_steps
from atelier.images.family import PipelineFamily
from atelier.images.request import SCHEDULES, ImageRequest
from atelier.images.sizes import DrawableSizes, native_size


@dataclass(frozen=True)
class SecondPass:
    """The second pipeline call of a request, but for its picture; `steps` as far as is known."""

    pipeline: Any
    arguments: dict[str, Any]
    width: int
    height: int
    steps: int

    @property
    def size(self) -> dict[str, Any]:
        """Of the pictures that come of it, as arguments name it."""
        return {"width": self.width, "height": self.height}

    @property
    def kind(self) -> tuple[str, int, int]:
        """As `expectation.expected` names what its times depend on."""
        return type(self.pipeline).__name__, self.width, self.height

    def arguments_for(self, pixels: torch.Tensor) -> dict[str, Any]:
        """With the first pass's pictures, rows x height x width x channels in 0..1, scaled up."""
        rows = pixels[..., :3].permute(0, 3, 1, 2)
        large = functional.interpolate(
            rows, (self.height, self.width), mode="bicubic", align_corners=False
        )
        return self.arguments | {"image": large.clamp(0, 1)}


def second_pass(
    request: ImageRequest, family: PipelineFamily, max_pixels: int, max_steps: int
) -> SecondPass | None:
    """What the request's `highres` asks for; None without one.

    Raises:
        InvalidRequest: the family has no image-to-image, the size is not drawn, or the request has
            what a second pass does not go with.
    """
    wanted = request.highres
    if wanted is None:
        return None
    for name in ("image", "mask_image", "control"):
        if getattr(request, name):
            raise InvalidRequest(
                f"highres: it does not go with {name}; leave one of them out", "highres"
            )
    try:
        pipeline = family.pipeline_for(request.model_copy(update={"image": [b""]}))
    except InvalidRequest as error:
        raise InvalidRequest(f"highres: {error.message}", "highres") from None
    if "strength" not in accepted(pipeline):
        raise InvalidRequest(
            f"highres: {type(pipeline).__name__} has no image-to-image form", "highres"
        )
    native, drawable = native_size(family.base), DrawableSizes.of(pipeline, max_pixels)
    width, height = request.width or native[0], request.height or native[1]
    width, height = (
        int(side * wanted.scale) // drawable.multiple * drawable.multiple
        for side in (width, height)
    )
    drawable.check(width, height, "highres")
    given = _as_first(request, family.base, pipeline)
    given |= {"width": None, "height": None, "strength": wanted.strength}
    request = request.model_copy(update=given)
    arguments = build(pipeline, request, drawable, max_steps)
    return SecondPass(
        pipeline=pipeline,
        arguments=arguments | sized(pipeline, width, height),
        width=width,
        height=height,
        steps=int(wanted.strength * (request.num_inference_steps or default_steps(pipeline) or 0)),
    )


def _as_first(request: ImageRequest, first: Any, second: Any) -> dict[str, Any]:
    """Steps and guidance that the first pass has by default: image-to-image has others of its own
    in some families."""
    names = accepted(second)
    found: dict[str, Any] = {}
    if request.guidance_scale is None and "guidance_scale" in names:
        found["guidance_scale"] = default_guidance(first)
    chosen = request.num_inference_steps or any(name in request.extra for name in SCHEDULES)
    if not chosen and "num_inference_steps" in names:
        found["num_inference_steps"] = default_steps(first)
    return found
