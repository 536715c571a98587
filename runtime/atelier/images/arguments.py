"""From an ImageRequest to the arguments of the pipeline that serves it, with every misfit named
before any work is done."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

from atelier.errors import InvalidRequest
from atelier.images import codec
from atelier.images.argument_types import check_argument, sendable
from atelier.images.request import ImageRequest

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


MOST_STRETCHED = 64
"""Longer side over shorter one: a line of pixels costs what a picture costs and shows nothing."""


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


def size_multiple(pipeline: Any) -> int:
    """The number that width and height must be divisible by: the VAE's factor times the denoiser's
    patch, in pixels."""
    factor = getattr(pipeline, "vae_scale_factor", None) or 8
    processor = getattr(getattr(pipeline, "image_processor", None), "config", {})
    patch = getattr(
        getattr(getattr(pipeline, "transformer", None), "config", None), "patch_size", 1
    )
    patch = patch if isinstance(patch, int) else max(patch or [1])
    return math.lcm(int(factor) * patch, int(processor.get("vae_scale_factor", 1)))


def native_size(pipeline: Any) -> tuple[int, int]:
    """Width and height in pixels that the pipeline draws if none are given: the denoiser's sample
    size times the VAE's factor, or 1024, which is what the families without a sample size use."""
    for name in ("transformer", "unet"):
        sample = getattr(
            getattr(getattr(pipeline, name, None), "config", None), "sample_size", None
        )
        if isinstance(sample, int):
            side = sample * int(getattr(pipeline, "vae_scale_factor", 8))
            return side, side
    side = int(getattr(pipeline, "default_sample_size", 128)) * int(
        getattr(pipeline, "vae_scale_factor", 8)
    )
    return side, side


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


def build(pipeline: Any, request: ImageRequest, max_pixels: int, max_steps: int) -> dict[str, Any]:
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
    for name, value in request.extra.items():
        check_argument(name, _parameters(pipeline)[name], value, max_steps, max_pixels)
    _check_clip_skip(pipeline, request)
    multiple = size_multiple(pipeline)
    for name, value in sizes.items():
        if value % multiple:
            raise InvalidRequest(
                f"{name}: {value} is not divisible by {multiple}, which this model needs", name
            )
    if sizes:
        native = native_size(pipeline)
        _check_pixels(
            sizes.get("width", native[0]), sizes.get("height", native[1]), max_pixels, "width"
        )
    arguments = {
        "prompt": request.prompt,
        **sized(pipeline, request.width, request.height),
        **wanted,
    }
    arguments |= _inputs(pipeline, request, max_pixels)
    if request.num_images_per_prompt > 1:
        arguments["num_images_per_prompt"] = request.num_images_per_prompt
    # A tensor can be turned into bytes on the device; old pipelines without this processor scale
    # only arrays to 0..1.
    arguments["output_type"] = "pt" if hasattr(pipeline, "image_processor") else "np"
    return arguments


def _check_pixels(width: int, height: int, max_pixels: int, name: str) -> None:
    if width * height > max_pixels:
        raise InvalidRequest(
            f"{name}: {width} x {height} pixels are more than fit this device; the largest picture"
            f" has {max_pixels} pixels",
            name,
        )
    if max(width, height) > MOST_STRETCHED * min(width, height):
        raise InvalidRequest(
            f"{name}: {width} x {height} pixels; one side may be {MOST_STRETCHED} times the other",
            name,
        )


def _check_clip_skip(pipeline: Any, request: ImageRequest) -> None:
    layers = getattr(
        getattr(getattr(pipeline, "text_encoder", None), "config", None), "num_hidden_layers", None
    )
    if request.clip_skip is not None and layers is not None and request.clip_skip >= layers:
        raise InvalidRequest(
            f"clip_skip: {request.clip_skip} of the text encoder's {layers} layers", "clip_skip"
        )


def _inputs(pipeline: Any, request: ImageRequest, max_pixels: int) -> dict[str, Any]:
    """Decoded input pictures, cut to a size the model can take: of the request, or of the picture
    itself."""
    if request.image is None:
        return {}
    if len(request.image) > 1 and type(pipeline).__name__ not in TAKES_SEVERAL:
        raise InvalidRequest(
            f"image: {type(pipeline).__name__} takes one picture, not {len(request.image)}", "image"
        )
    pictures = [codec.decode(data, max_pixels, "image").convert("RGB") for data in request.image]
    multiple = size_multiple(pipeline)
    width = request.width or max(multiple, pictures[0].width // multiple * multiple)
    height = request.height or max(multiple, pictures[0].height // multiple * multiple)
    _check_pixels(width, height, max_pixels, "image")  # thin pictures grow to the multiple
    inputs: dict[str, Any] = {**sized(pipeline, width, height)}
    if "strength" in accepted(pipeline):
        pictures = [picture.resize((width, height)) for picture in pictures]
    inputs["image"] = pictures[0] if len(pictures) == 1 else pictures
    if request.mask_image is not None:
        mask = codec.decode(request.mask_image, max_pixels, "mask_image")
        inputs["mask_image"] = mask.convert("L").resize((width, height))
    return inputs
