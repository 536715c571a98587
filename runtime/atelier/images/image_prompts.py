"""IP-Adapters by name: loaded at the start, switched on for the requests that name them.

An adapter exchanges attention processors of the shared denoiser, so one of the denoising thread's
calls has either exactly those of its requests or none: plain requests run the plain denoiser. Each
adapter's weights are held once, however they are put together.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from atelier.errors import CheckpointError, InvalidRequest, SettingsError, shown
from atelier.hardware.plan import MemoryPlan
from atelier.images import codec
from atelier.images.adapters import Selection
from atelier.images.arguments import default_guidance
from atelier.images.interception import Gate
from atelier.images.prompt_attachments import LoadedAdapter, SummedAdapters, TimedAdapter
from atelier.images.request import ImageRequest
from atelier.sources.checkpoint.image_prompts import ImagePromptFile

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageEncoder:
    """What turns pictures into embeddings, shared by the adapters that lie beside it."""

    module: Any
    processor: Any


@dataclass(frozen=True)
class ChosenImagePrompts:
    """The image prompts of one request: by the order of names, pixels as the encoders read them."""

    selection: Selection
    pixels: tuple[torch.Tensor, ...]
    encoders: tuple[ImageEncoder, ...]
    files: tuple[ImagePromptFile, ...]

    def arguments(self, pipeline: Any, given: dict[str, Any]) -> dict[str, Any]:
        """The pipeline's arguments with embeddings. For the request's greenlet.

        The pipeline is not given the pictures themselves: it would look at the adapters that are
        in the denoiser at that moment, which may be another request's.
        """
        pairs = [
            self._encoded(pipeline, *each)
            for each in zip(self.pixels, self.encoders, self.files, strict=True)
        ]
        pictures = given.get("num_images_per_prompt", 1)
        if hasattr(pipeline, "transformer") and not self.files[0].timed:
            embeds = [torch.cat([positive] * pictures) for positive, _ in pairs]
            return given | {"joint_attention_kwargs": {"ip_adapter_image_embeds": embeds}}
        scale = given.get("guidance_scale", default_guidance(pipeline))
        vars(pipeline)["_guidance_scale"] = scale
        guided = pipeline.do_classifier_free_guidance
        embeds = [
            torch.cat([negative, positive]) if guided else positive for positive, negative in pairs
        ]
        return given | {"ip_adapter_image_embeds": embeds[0] if self.files[0].timed else embeds}

    @staticmethod
    def _encoded(
        pipeline: Any, pixels: torch.Tensor, encoder: ImageEncoder, file: ImagePromptFile
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A picture's embeddings and those of none, 1 x 1 x ... each; timed ones 1 x tokens x
        width."""
        module = encoder.module
        values = pixels.to(device=next(module.parameters()).device, dtype=module.dtype)
        if file.timed:
            states = module(values, output_hidden_states=True).hidden_states[-2]
            return states, torch.zeros_like(states)
        if file.projected:
            found = module(values).image_embeds[None]
            return found, torch.zeros_like(found)
        states, without = (
            module(one, output_hidden_states=True).hidden_states[-2][None]
            for one in (values, torch.zeros_like(values))
        )
        return states, without


class ImagePrompts:
    """Those of one model. `chosen` is for any thread, `use` for the denoising one."""

    def __init__(self, pipeline: Any, files: Sequence[ImagePromptFile], plan: MemoryPlan) -> None:
        """
        Raises:
            SettingsError: the plan's arrangement does not go with adapters.
            CheckpointError: one cannot be loaded.
        """
        self._denoiser: Any = None
        self._plain: dict[str, Any] = {}
        self._active: Selection | None = ()
        self._encoders: dict[Path, ImageEncoder] = {}
        self._adapters: dict[str, LoadedAdapter] = {}
        self._sets: dict[tuple[str, ...], tuple[dict[str, Any], Any]] = {}
        timed = any(file.timed for file in files)
        self._attachment = TimedAdapter() if timed else SummedAdapters()
        if files:
            _check_plan(plan)
            self._denoiser = getattr(
                pipeline, "unet" if hasattr(pipeline, "unet") else "transformer"
            )
            self._plain = dict(self._denoiser.attn_processors)
        for file in files:
            self._encoders.setdefault(file.encoder, _encoder(file, plan))
            self._adapters[file.name] = self._loaded(pipeline, file)
            log.info("IP-Adapter %s from %s", file.name, file.path)

    @property
    def names(self) -> list[str]:
        """Those that a request can name."""
        return sorted(self._adapters)

    @property
    def gates(self) -> list[Gate]:
        """Before the image encoders."""
        return [Gate("image_encoder", one.module, "forward") for one in self._encoders.values()]

    def chosen(
        self, request: ImageRequest, pipeline: Any, most_pixels: int
    ) -> ChosenImagePrompts | None:
        """What the request names, its pictures decoded; None if that is nothing. One of weight 0
        adds nothing and is left out.

        Raises:
            InvalidRequest: a name that is not here or comes twice, what is no picture, or what
                does not go together.
        """
        found: dict[str, tuple[float, torch.Tensor]] = {}
        for place, entry in enumerate(request.image_prompt or ()):
            where = f"image_prompt.{place}.name"
            if entry.name not in self._adapters:
                raise InvalidRequest(
                    f"{where}: {shown(entry.name)} is not here; available:"
                    f" {', '.join(self.names) or 'none'}",
                    where,
                )
            if entry.name in found:
                raise InvalidRequest(f"{where}: {entry.name} is named twice", where)
            picture = codec.decode(entry.image, most_pixels, f"image_prompt.{place}.image")
            read = self._encoder_of(entry.name).processor
            pixels = read(picture.convert("RGB"), return_tensors="pt").pixel_values
            found[entry.name] = float(entry.weight), pixels
        names = sorted(name for name, (weight, _) in found.items() if weight)
        if not names:
            return None
        most = self._attachment.most
        if most is not None and len(names) > most:
            raise InvalidRequest(
                f"image_prompt: {', '.join(names)} at once; {type(pipeline).__name__} takes {most}",
                "image_prompt",
            )
        self._check_pipeline(pipeline, request)
        return ChosenImagePrompts(
            tuple((name, found[name][0]) for name in names),
            tuple(found[name][1] for name in names),
            tuple(self._encoder_of(name) for name in names),
            tuple(self._adapters[name].file for name in names),
        )

    def use(self, selection: Selection) -> None:
        """Make exactly these adapters active."""
        if selection == self._active:
            return
        self._active = None
        self._clear()
        if selection:
            self._put_in(selection)
        self._active = selection

    def _clear(self) -> None:
        # The projection first: it has attention of its own, which is no layer of the denoiser.
        setattr(self._denoiser, self._attachment.slot, None)
        self._denoiser.set_attn_processor(dict(self._plain))

    def _put_in(self, selection: Selection) -> None:
        names = tuple(name for name, _ in selection)
        if names not in self._sets:
            self._sets[names] = self._attachment.together([self._adapters[name] for name in names])
        made, projection = self._sets[names]
        device = next(self._denoiser.parameters()).device  # offloaded weights come and go
        for processor in made.values():
            self._attachment.weigh(processor.to(device), [weight for _, weight in selection])
        self._denoiser.set_attn_processor({**self._plain, **made})
        setattr(self._denoiser, self._attachment.slot, projection.to(device))

    def _encoder_of(self, name: str) -> ImageEncoder:
        return self._encoders[self._adapters[name].file.encoder]

    def _loaded(self, pipeline: Any, file: ImagePromptFile) -> LoadedAdapter:
        """Through diffusers, which puts it into the denoiser; it is taken out again."""
        holder = copy.copy(pipeline)
        eyes = self._encoders[file.encoder]  # or it would look for some itself
        vars(holder).update(image_encoder=eyes.module, feature_extractor=eyes.processor)
        try:
            holder.load_ip_adapter(
                str(file.path.parent),
                subfolder="",
                weight_name=file.path.name,
                local_files_only=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"IP_ADAPTERS: {file.name}: {file.path} cannot be loaded:"
                f" {type(error).__name__}: {error}"
            ) from error
        projection = self._attachment.projection(self._denoiser)
        setattr(self._denoiser, self._attachment.slot, None)
        processors = dict(self._denoiser.attn_processors)
        self._clear()
        return LoadedAdapter(file, processors, projection.eval())

    def _check_pipeline(self, pipeline: Any, request: ImageRequest) -> None:
        if not hasattr(pipeline, "load_ip_adapter"):
            raise InvalidRequest(
                f"image_prompt: {type(pipeline).__name__} takes none: it does not go with what else"
                " is asked for",
                "image_prompt",
            )
        if request.extra.get("true_cfg_scale", 1) != 1:
            raise InvalidRequest(
                "true_cfg_scale: it does not go with image_prompt; leave one of them out",
                "true_cfg_scale",
            )


def _check_plan(plan: MemoryPlan) -> None:
    if plan.quantized:
        raise SettingsError(
            f"IP_ADAPTERS with QUANTIZATION={plan.quantization}: they need a denoiser that is not"
            " quantized; set QUANTIZATION=none"
        )
    if plan.sharded:
        raise SettingsError(
            "IP_ADAPTERS with sharded weights: they need a denoiser that is whole on one device;"
            " set SHARD_WEIGHTS=false, or SEQUENCE_PARALLEL_SIZE=1, which may offload"
        )
    if plan.placement == "group_offload":
        raise SettingsError(
            "IP_ADAPTERS: weights of this model have to be moved block by block here, which does"
            " not go with them; use a larger device"
        )


def _encoder(file: ImagePromptFile, plan: MemoryPlan) -> ImageEncoder:
    import transformers

    kind = getattr(transformers, file.encoder_class)
    module = kind.from_pretrained(
        file.encoder, dtype=getattr(torch, plan.dtype), use_safetensors=True, local_files_only=True
    )
    edge = module.config.image_size
    module.to(plan.device).eval()
    if file.timed:
        square = {"height": edge, "width": edge}
        return ImageEncoder(module, transformers.SiglipImageProcessor(size=square))
    return ImageEncoder(module, transformers.CLIPImageProcessor(size=edge, crop_size=edge))
