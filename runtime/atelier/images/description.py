"""What a loaded pipeline tells of itself, for clients that ask what a request may hold."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

from atelier.images.arguments import accepted, default_guidance
from atelier.images.family import schedulers_of
from atelier.images.sizes import native_size, size_multiple
from atelier.settings import Settings

if TYPE_CHECKING:
    from atelier.hardware.choice import MemoryPlan


def default_steps(pipeline: Any) -> int | None:
    """The pipeline's own number of steps; None if it has no such argument."""
    steps = signature(type(pipeline).__call__).parameters.get("num_inference_steps")
    return steps.default if steps and isinstance(steps.default, int) else None


def gives_alpha(pipeline: Any) -> bool:
    """True if the VAE decodes to four channels."""
    config = getattr(getattr(pipeline, "vae", None), "config", {})
    return 4 in (config.get("out_channels"), config.get("input_channels"))


def describe(pipeline: Any, settings: Settings, plan: MemoryPlan) -> dict[str, Any]:
    """Its class, what a request may ask for and what it gets if it does not."""
    return {
        "pipeline": type(pipeline).__name__,
        "arguments": accepted(pipeline),
        "default_steps": default_steps(pipeline),
        "default_guidance": default_guidance(pipeline),
        "native_size": native_size(pipeline),
        "size_multiple": size_multiple(pipeline),
        "limits": {
            "max_pixels": min(settings.max_pixels, plan.max_pixels),
            "max_steps": settings.max_steps,
            "max_images_per_request": settings.max_images_per_request,
        },
        "schedulers": schedulers_of(pipeline),
    }
