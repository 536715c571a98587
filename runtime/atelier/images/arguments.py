"""From an ImageRequest to the arguments of the pipeline that serves it, with every misfit named
before any work is done."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atelier.errors import InvalidRequest
from atelier.images import codec
from atelier.images.argument_types import read_argument, sendable
from atelier.images.request import ImageRequest
from atelier.images.sizes import DrawableSizes, native_size

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

# Arguments that the engine sets itself, or that carry tensors and callables, which no protocol can
# send.
RESERVED = {
    "self",
    "generator",
    "output_type",
    "return_dict",
    "latents",
    "image_latents",
    "masked_image_latents",
    "kwargs",
}
NOT_SENDABLE = re.compile(
    r"callback|embeds|_attention_mask$|_kwargs$|ip_adapter|^control_image|^prior_latents"
)
PICTURES = ("image", "mask_image")
OWN = (
    "negative_prompt",
    "num_inference_steps",
    "guidance_scale",
    "clip_skip",
    "max_sequence_length",
    "strength",
)


# Pipelines that take several pictures for one prompt; the others would read them as several
# requests.
TAKES_SEVERAL = {
    "BriaFibo2Pipeline",
    "Flux2KleinKVPipeline",
    "Flux2KleinPipeline",
    "Flux2Pipeline",
    "QwenImage21Pipeline",
    "QwenImageEditPlusPipeline",
    "ZImageOmniPipeline",
}


TAKES_THEM_SIDE_BY_SIDE = {"FluxKontextPipeline"}
"""Pipelines that read several pictures in one, as their makers show it: of one height, in a row."""


def accepted(pipeline: Any) -> list[str]:
    """The names of the arguments that a request may send to this pipeline."""
    return [
        name
        for name, parameter in _parameters(pipeline).items()
        if name not in RESERVED
        and not NOT_SENDABLE.search(name)
        and (name in PICTURES or sendable(parameter))
    ]


def _parameters(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(pipeline).__call__).parameters


def default_guidance(pipeline: Any) -> float | None:
    """The pipeline's own guidance scale; None if it has no such argument."""
    names = inspect.signature(type(pipeline).__call__).parameters
    scale = names["guidance_scale"].default if "guidance_scale" in names else None
    return float(scale) if isinstance(scale, int | float) else None


def sized(pipeline: Any, width: int | None, height: int | None) -> dict[str, int]:
    """The arguments that make this pipeline draw that size. Some keep only the ratio, unless told
    the area too."""
    wanted = {
        "width": width,
        "height": height,
        "max_area": width * height if width and height else None,
    }
    return {
        name: value
        for name, value in wanted.items()
        if value is not None and name in accepted(pipeline)
    }


def fitted(
    pipeline: Any, request: ImageRequest, drawable: DrawableSizes
) -> tuple[ImageRequest, tuple[str, ...]]:
    """The request at the nearest size that this pipeline draws, and a warning if that is not the
    size that was asked for."""
    if request.width is None and request.height is None:
        return request, ()
    native = native_size(pipeline)
    width, height = request.width or native[0], request.height or native[1]
    near = drawable.nearest(width, height)
    if near == (width, height):
        return request, ()
    said = "size: {} x {} is not drawn by this model; {} x {} is the nearest that is"
    changed = request.model_copy(update={"width": near[0], "height": near[1]})
    return changed, (said.format(width, height, *near),)


def build(
    pipeline: Any, request: ImageRequest, drawable: DrawableSizes, max_steps: int
) -> dict[str, Any]:
    """Check the request against the pipeline's signature and translate it.

    Raises:
        InvalidRequest: an argument this pipeline does not have, a size it cannot draw, or a picture
            that is none.
    """
    names = accepted(pipeline)
    wanted = {
        name: value for name in OWN if (value := getattr(request, name)) is not None
    } | request.extra
    sizes = {
        name: value for name in ("width", "height") if (value := getattr(request, name)) is not None
    }
    if (
        request.image is None or "strength" not in names
    ):  # else the picture is brought to this size beforehand
        wanted |= sizes
    for name in wanted:
        if name not in names:
            raise InvalidRequest(
                f"{name}: {type(pipeline).__name__} does not take it; it takes {', '.join(names)}",
                name,
            )
    parameters = _parameters(pipeline)
    wanted |= {
        name: read_argument(name, parameters[name], value, max_steps, drawable.pixels)
        for name, value in request.extra.items()
    }
    _check_clip_skip(pipeline, request)
    wanted |= _strength(pipeline, wanted)
    if sizes:
        native = native_size(pipeline)
        drawable.check(sizes.get("width", native[0]), sizes.get("height", native[1]), "width")
    arguments = {
        "prompt": request.prompt,
        **sized(pipeline, request.width, request.height),
        **wanted,
    }
    arguments |= _inputs(pipeline, request, drawable)
    if request.num_images_per_prompt > 1:
        arguments["num_images_per_prompt"] = request.num_images_per_prompt
    # A tensor can be turned into bytes on the device; old pipelines without this processor scale
    # only arrays to 0..1.
    arguments["output_type"] = "pt" if hasattr(pipeline, "image_processor") else "np"
    return arguments


def _check_clip_skip(pipeline: Any, request: ImageRequest) -> None:
    layers = getattr(
        getattr(getattr(pipeline, "text_encoder", None), "config", None), "num_hidden_layers", None
    )
    if request.clip_skip is not None and layers is not None and request.clip_skip >= layers:
        raise InvalidRequest(
            f"clip_skip: {request.clip_skip} of the text encoder's {layers} layers", "clip_skip"
        )


def _strength(pipeline: Any, wanted: Mapping[str, Any]) -> dict[str, float]:
    """What is to be said of the strength: nothing, or a larger one than the pipeline's own where
    that would leave less than one step. Some pipelines fail at that, others return no picture.

    Raises:
        InvalidRequest: the request's own strength leaves less than one step.
    """
    if "strength" not in _parameters(pipeline):
        return {}
    strength = wanted.get("strength") or _parameters(pipeline)["strength"].default
    if not isinstance(strength, float | int):
        return {}
    chosen = wanted.get("sigmas") or wanted.get("timesteps")
    steps = len(chosen) if chosen else wanted.get("num_inference_steps")
    steps = steps or _parameters(pipeline)["num_inference_steps"].default
    if strength * steps >= 1:
        return {}
    if wanted.get("strength") is not None:
        raise InvalidRequest(
            f"strength: {strength:g} of {steps} steps is less than one; {1 / steps:.2g} is the"
            " least, or take more num_inference_steps",
            "strength",
        )
    least = 1 / steps
    return {"strength": least if least * steps >= 1 else math.nextafter(least, 1)}


def _inputs(pipeline: Any, request: ImageRequest, drawable: DrawableSizes) -> dict[str, Any]:
    """Decoded input pictures, cut to a size the model can take: of the request, or of the picture
    itself."""
    if request.image is None:
        return {}
    name = type(pipeline).__name__
    if len(request.image) > 1 and name not in TAKES_SEVERAL | TAKES_THEM_SIDE_BY_SIDE:
        raise InvalidRequest(f"image: {name} takes one picture, not {len(request.image)}", "image")
    most = drawable.pixels
    pictures = [codec.decode(data, most, "image").convert("RGB") for data in request.image]
    width, height = drawable.like(*pictures[0].size)
    width, height = request.width or width, request.height or height
    drawable.check(width, height, "image")  # thin pictures grow to the multiple
    inputs: dict[str, Any] = {**sized(pipeline, width, height)}
    if "strength" in accepted(pipeline):
        pictures = [picture.resize((width, height)) for picture in pictures]
    if name in TAKES_THEM_SIDE_BY_SIDE:
        pictures = [side_by_side(pictures)]
    inputs["image"] = pictures[0] if len(pictures) == 1 else pictures
    if request.mask_image is not None:
        mask = codec.decode(request.mask_image, most, "mask_image")
        inputs["mask_image"] = mask.convert("L").resize((width, height))
    return inputs


def side_by_side(pictures: Sequence[PILImage]) -> PILImage:
    """In a row, in their order, each scaled to the height of the first."""
    height = pictures[0].height
    widths = [max(1, round(one.width * height / one.height)) for one in pictures]
    row = pictures[0].resize((sum(widths), height))
    for place, (one, width) in enumerate(zip(pictures, widths, strict=True)):
        row.paste(one.resize((width, height)), (sum(widths[:place]), 0))
    return row if len(pictures) > 1 else pictures[0]
