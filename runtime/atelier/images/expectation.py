"""What a request will take, as far as its arguments tell before it has begun."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any

from atelier.images.drawing import PreparedRequest
from atelier.images.sizes import native_size

USUAL_STEPS = 28  # of pipelines that have no such argument, as priors and decoders joined into one
FLOAT_PIXEL = 12  # bytes of a picture's pixel once it is a tensor


def expected(job: PreparedRequest) -> dict[str, Any]:
    """By the names of `scheduler.Schedulable`. Only the order of requests and estimates depend on
    it, and most of it is replaced by what is seen once the request runs."""
    given = _defaults(type(job.pipeline).__call__) | job.arguments
    native = native_size(job.pipeline)
    width, height = given.get("width") or native[0], given.get("height") or native[1]
    steps = given.get("num_inference_steps") or USUAL_STEPS
    if "image" in job.arguments:
        steps *= given.get("strength") or 1.0
    guided = (given.get("guidance_scale") or 1.0) > 1
    return {
        "kind": (job.family, width, height),
        "pixels": width * height,
        "steps_left": max(1, round(steps)),
        "rows": job.pictures * (2 if guided else 1),
        "bytes": FLOAT_PIXEL * width * height * len(_pictures(job)),
        "adapters": job.adapters,
        "exclusive": job.exclusive,
    }


def _pictures(job: PreparedRequest) -> list[Any]:
    """Input pictures, masks included."""
    found = [job.arguments.get(name) for name in ("image", "mask_image")]
    return [one for each in found for one in (each if isinstance(each, list) else [each]) if one]


@cache
def _defaults(call: Callable[..., Any]) -> dict[str, Any]:
    parameters = signature(call).parameters.values()
    return {
        one.name: one.default
        for one in parameters
        if one.default is not one.empty and isinstance(one.default, int | float)
    }
