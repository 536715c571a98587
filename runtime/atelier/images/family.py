"""The pipelines that share one checkpoint's modules: text to image, image to image, inpainting."""

from __future__ import annotations

import threading
from typing import Any

from atelier.errors import InvalidRequest, shown
from atelier.images.arguments import accepted
from atelier.images.request import ImageRequest

# Pipelines with this prefix of attribute exchange the attention processors of the shared denoiser
# while they run.
EXCHANGES_PROCESSORS = "pag_applied_layers"

# They go with any model that DDIM goes with, though DDIM does not say so; distilled adapters need
# them.
FEW_STEP_SCHEDULERS = ("LCMScheduler", "TCDScheduler")

FLOW_SCHEDULERS = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
)


class PipelineFamily:
    """Picks the pipeline class for a request and makes it, once, around the modules already
    loaded."""

    def __init__(self, base: Any) -> None:
        self.base = base
        self._derived: dict[str, Any] = {}
        self._lock = threading.Lock()

    def pipeline_for(self, request: ImageRequest) -> Any:
        """The pipeline whose inputs are those of the request.

        Raises:
            InvalidRequest: diffusers has no such form of this family.
        """
        wanted = (
            "mask_image"
            if request.mask_image is not None
            else "image"
            if request.image is not None
            else ""
        )
        if not wanted or wanted in accepted(self.base):
            return self.base
        with (
            self._lock
        ):  # importing the map of all pipelines takes seconds; two requests must not do it twice
            if wanted not in self._derived:
                self._derived[wanted] = self._derive(wanted)
            return self._derived[wanted]

    def _derive(self, wanted: str) -> Any:
        from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

        auto = AutoPipelineForInpainting if wanted == "mask_image" else AutoPipelineForImage2Image
        try:
            pipeline = auto.from_pipe(self.base)
        except ValueError:
            form = "inpainting" if wanted == "mask_image" else "image-to-image"
            raise InvalidRequest(
                f"{wanted}: {type(self.base).__name__} has no {form} form", wanted
            ) from None
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def must_run_alone(pipeline: Any) -> bool:
    """True of pipelines whose calls change the shared modules, so that no other request may run in
    between."""
    return hasattr(pipeline, EXCHANGES_PROCESSORS)


def schedulers_of(pipeline: Any) -> list[str]:
    """The schedulers that a request may ask for: the pipeline's own and its kin. Those that need a
    library which is not installed, a placeholder with `_backends` in diffusers, are left out."""
    import diffusers

    current = getattr(pipeline, "scheduler", None)
    if current is None:
        return []
    own = type(current).__name__
    kin = FLOW_SCHEDULERS if own in FLOW_SCHEDULERS else tuple(getattr(current, "_compatibles", ()))
    if "DDIMScheduler" in kin:
        kin += FEW_STEP_SCHEDULERS
    return sorted(
        each for each in {own, *kin} if not hasattr(getattr(diffusers, each), "_backends")
    )


def scheduler_for(pipeline: Any, name: str, field: str) -> Any:
    """A scheduler of class `name`, configured as the pipeline's own.

    Raises:
        InvalidRequest: no such scheduler, or one for another kind of model; the message lists what
            fits.
    """
    import diffusers

    allowed = schedulers_of(pipeline)
    if name not in allowed:
        raise InvalidRequest(
            f"{field}: {shown(name)} does not fit this model; allowed: {', '.join(allowed)}", field
        )
    return getattr(diffusers, name).from_config(pipeline.scheduler.config)
