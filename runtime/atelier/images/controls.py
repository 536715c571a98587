"""ControlNets and T2I-Adapters by name: loaded at the start, chosen by requests, run in diffusers'
own pipelines around the modules that all share.

A request's copy of such a pipeline is given the controls that it names. Each stands behind a gate
of its own, so the calls of different requests are stacked as the denoiser's are.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image as PIL

from atelier.errors import InvalidRequest, shown
from atelier.images import codec
from atelier.images.control_nets import UNSCALED, MeanEncoder, load_control
from atelier.images.control_request import Control
from atelier.images.interception import Gate, Stage
from atelier.images.preprocessing import PREPROCESSORS
from atelier.images.request import ImageRequest
from atelier.images.sizes import DrawableSizes
from atelier.sources.checkpoint.controls import ControlFolder, Kind

FORMS: Mapping[tuple[Kind, str], Mapping[str, str]] = {
    ("ControlNet", "StableDiffusionPipeline"): {
        "": "StableDiffusionControlNetPipeline",
        "image": "StableDiffusionControlNetImg2ImgPipeline",
        "mask_image": "StableDiffusionControlNetInpaintPipeline",
    },
    ("ControlNet", "StableDiffusionXLPipeline"): {
        "": "StableDiffusionXLControlNetPipeline",
        "image": "StableDiffusionXLControlNetImg2ImgPipeline",
        "mask_image": "StableDiffusionXLControlNetInpaintPipeline",
    },
    ("ControlNet", "StableDiffusion3Pipeline"): {"": "StableDiffusion3ControlNetPipeline"},
    ("ControlNet", "FluxPipeline"): {
        "": "FluxControlNetPipeline",
        "image": "FluxControlNetImg2ImgPipeline",
        "mask_image": "FluxControlNetInpaintPipeline",
    },
    ("T2I-Adapter", "StableDiffusionPipeline"): {"": "StableDiffusionAdapterPipeline"},
    ("T2I-Adapter", "StableDiffusionXLPipeline"): {"": "StableDiffusionXLAdapterPipeline"},
}
"""diffusers' pipelines by kind of control and the model's own class, then by the input picture."""

SLOTS: Mapping[Kind, str] = {"ControlNet": "controlnet", "T2I-Adapter": "adapter"}
"""What the pipelines call the module."""

TOGETHER = {
    "ControlNetModel": "MultiControlNetModel",
    "SD3ControlNetModel": "SD3MultiControlNetModel",
    "FluxControlNetModel": "FluxMultiControlNetModel",
    "T2IAdapter": "MultiAdapter",
}
"""What adds up several of a class."""


@dataclass(frozen=True)
class ChosenControls:
    """The controls of one request, with their pictures."""

    entries: tuple[Control, ...]
    pictures: tuple[PIL.Image, ...]
    kind: Kind


class Controls:
    """Those of one model; for any thread."""

    def __init__(
        self, base: Any, folders: Sequence[ControlFolder], device: str, dtype: str
    ) -> None:
        """
        Raises:
            CheckpointError: one cannot be loaded.
        """
        self._base = base
        self._folders = {one.name: one for one in folders}
        self.modules = {one.name: load_control(one, device, dtype) for one in folders}
        self._pipelines: dict[tuple[Kind, str], Any] = {}
        self._lock = threading.Lock()

    @property
    def gates(self) -> list[Gate]:
        """Before each control."""
        return [
            Gate(
                f"control:{name}",
                module,
                UNSCALED if hasattr(module, UNSCALED) else "forward",
                Stage.CONTROL,
            )
            for name, module in self.modules.items()
        ]

    @property
    def names(self) -> list[str]:
        """Those that a request can name."""
        return sorted(self.modules)

    def chosen(self, request: ImageRequest, most_pixels: int) -> ChosenControls | None:
        """What the request names, its pictures decoded; None if that is nothing. One of weight 0
        adds nothing and is left out.

        Raises:
            InvalidRequest: a name that is not here, or what is no picture.
        """
        for place, entry in enumerate(request.control or ()):
            if entry.name not in self.modules:
                raise InvalidRequest(
                    f"control.{place}.name: {shown(entry.name)} is not here; available:"
                    f" {', '.join(self.names) or 'none'}",
                    f"control.{place}.name",
                )
        pictures = [
            codec.decode(entry.image, most_pixels, f"control.{place}.image").convert("RGB")
            for place, entry in enumerate(request.control or ())
        ]
        pairs = [
            (entry, picture)
            for entry, picture in zip(request.control or (), pictures, strict=True)
            if entry.weight
        ]
        if not pairs:
            return None
        kinds = sorted({self._folders[entry.name].kind for entry, _ in pairs})
        if len(kinds) > 1:
            raise InvalidRequest(
                f"control: {' and '.join(kinds)} do not go together in one picture", "control"
            )
        entries, kept = zip(*pairs, strict=True)
        self._check_span(entries, kinds[0])
        return ChosenControls(entries, kept, kinds[0])

    def pipeline_for(self, request: ImageRequest, kind: Kind) -> Any:
        """The pipeline whose inputs are those of the request, controls among them.

        Raises:
            InvalidRequest: diffusers has no such form of this family.
        """
        form = "mask_image" if request.mask_image else "image" if request.image else ""
        with self._lock:
            if (kind, form) not in self._pipelines:
                self._pipelines[kind, form] = self._made(kind, form)
            return self._pipelines[kind, form]

    def sized(
        self, request: ImageRequest, chosen: ChosenControls, drawable: DrawableSizes
    ) -> ImageRequest:
        """The request at the size of its first control's picture, if nothing else says one."""
        if request.image is not None or (request.width and request.height):
            return request
        width, height = drawable.like(*chosen.pictures[0].size)
        size = {"width": request.width or width, "height": request.height or height}
        return request.model_copy(update=size)

    def arguments(
        self, pipeline: Any, chosen: ChosenControls, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The pipeline's arguments with those of the controls.

        Raises:
            InvalidRequest: the request sets one of these itself.
        """
        size = arguments["width"], arguments["height"]
        names = inspect.signature(type(pipeline).__call__).parameters
        columns: dict[str, list[Any]] = {
            "control_image" if "control_image" in names else "image": [
                self._prepared(entry, picture.resize(size, PIL.Resampling.LANCZOS))
                for entry, picture in zip(chosen.entries, chosen.pictures, strict=True)
            ]
        }
        weights = [float(entry.weight) for entry in chosen.entries]
        ends = [float(entry.end) for entry in chosen.entries]
        if chosen.kind == "T2I-Adapter":
            self._check_sides(size, chosen)
            columns["adapter_conditioning_scale"] = weights
        else:
            columns["controlnet_conditioning_scale"] = weights
            columns["control_guidance_start"] = [float(entry.start) for entry in chosen.entries]
            columns["control_guidance_end"] = ends
        own = {name: values if len(values) > 1 else values[0] for name, values in columns.items()}
        if "adapter_conditioning_factor" in names:
            own["adapter_conditioning_factor"] = ends[0]
        for name in own:
            if name in arguments:
                raise InvalidRequest(f"{name}: control says it; leave it out", name)
        return {**arguments, **own}

    def parts(self, chosen: ChosenControls) -> dict[str, Any]:
        """What the request's copy of the pipeline is given in place of the shared modules."""
        import diffusers

        nets = [self.modules[entry.name] for entry in chosen.entries]
        together = getattr(diffusers, TOGETHER[type(nets[0]).__name__])
        own = {SLOTS[chosen.kind]: nets[0] if len(nets) == 1 else together(nets)}
        if type(nets[0]).__name__ == "SD3ControlNetModel":
            own["vae"] = MeanEncoder(self._base.vae)
        return own

    def _prepared(self, entry: Control, picture: PIL.Image) -> PIL.Image:
        made = PREPROCESSORS[entry.preprocess](picture) if entry.preprocess else picture
        grey = self._folders[entry.name].component.config.get("in_channels") == 1
        return made.convert("L") if grey else made

    def _check_span(self, entries: Sequence[Control], kind: Kind) -> None:
        """T2I-Adapters are computed once; XL's may end early, all at one step."""
        if kind == "ControlNet":
            return
        can_end = type(self._base).__name__ == "StableDiffusionXLPipeline"
        for place, entry in enumerate(entries):
            if entry.start:
                raise InvalidRequest(
                    f"control.{place}.start: {entry.start:g}: T2I-Adapters begin at once; leave"
                    " it out",
                    f"control.{place}.start",
                )
            if entry.end != (entries[0].end if can_end else 1):
                wanted = "all end at one step" if can_end else "work to the last step"
                raise InvalidRequest(
                    f"control.{place}.end: {entry.end:g}: T2I-Adapters of this model {wanted}",
                    f"control.{place}.end",
                )

    def _check_sides(self, size: tuple[int, int], chosen: ChosenControls) -> None:
        """A T2I-Adapter folds squares of pixels into channels, and halves what comes of it."""
        factor = max(self.modules[entry.name].total_downscale_factor for entry in chosen.entries)
        for side, pixels in zip(("width", "height"), size, strict=True):
            if pixels % factor:
                raise InvalidRequest(
                    f"{side}: {pixels}: with this T2I-Adapter it must be divisible by {factor}",
                    side,
                )

    def _made(self, kind: Kind, form: str) -> Any:
        import diffusers

        name = type(self._base).__name__
        forms = FORMS[kind, name]
        if form not in forms:
            raise InvalidRequest(
                f"control: {name} takes a {kind} without {form}; leave one of them out", "control"
            )
        pipeline_class = getattr(diffusers, forms[form])
        nets = [
            module
            for control, module in self.modules.items()
            if self._folders[control].kind == kind
        ]
        # Stable Diffusion 3's gives its positions to controls that have none, to each of several.
        given = nets if len(nets) > 1 and "3" in name else nets[0]
        known = {**self._base.config, **self._base.components, SLOTS[kind]: given}
        wanted = inspect.signature(pipeline_class.__init__).parameters
        pipeline = pipeline_class(**{one: known[one] for one in wanted if one in known})
        pipeline.set_progress_bar_config(disable=True)
        return pipeline
