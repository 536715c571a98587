"""The universal loader: a checkpoint of any diffusers family to a pipeline on its device, as the
memory plan says.

Nothing is guessed. What the checkpoint lacks was named by `sources.checkpoint.inspect` before
anything is read; what diffusers then still refuses is passed on with the checkpoint's path.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from atelier.errors import CheckpointError, InvalidRequest, SettingsError
from atelier.hardware.choice import MemoryPlan
from atelier.images.family import scheduler_for
from atelier.images.shards import ShardedModule, shard
from atelier.images.textual_inversions import add_inversions
from atelier.settings import Settings
from atelier.sources.checkpoint.contents import Checkpoint
from atelier.sources.checkpoint.roles import role_of

_ATTENTION_BACKENDS = {  # ours to diffusers' names
    "torch-flash": "_native_flash",
    "torch-cudnn": "_native_cudnn",
    "torch-efficient": "_native_efficient",
    "torch-math": "_native_math",
    "flash-attn": "flash",
    "flash-attn-3": "_flash_3",
    "sage": "sage",
    "xformers": "xformers",
}

log = logging.getLogger(__name__)


class PipelineLoader:
    """Loads the checkpoint described by `checkpoint` the way `plan` says; `following` leaves all
    models out that a follower of a group does not run; `words` are the textual inversions. What the
    plan shards is in `sharded`, by name, once it is loaded."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: MemoryPlan,
        settings: Settings,
        following: bool = False,
        words: Mapping[str, Path] | None = None,
    ) -> None:
        self._words = words or {}
        self._checkpoint = checkpoint
        self._plan = plan
        self._settings = settings
        self._following = following
        self.sharded: dict[str, ShardedModule] = {}

    def load(self) -> Any:
        """Read the weights and place them.

        Raises:
            CheckpointError: the checkpoint cannot be loaded; the message says what diffusers found
                wrong. Or an embedding that does not go with it.
            SettingsError: SCHEDULER is none that fits.
        """
        try:
            pipeline = self._read()
        except (
            OSError,
            ValueError,
            KeyError,
            AttributeError,
            TypeError,
            RuntimeError,
            ImportError,
        ) as error:
            message = f"{self._checkpoint.path} cannot be loaded: {type(error).__name__}: {error}"
            raise CheckpointError(message) from error
        if self._settings.scheduler:
            try:
                pipeline.scheduler = scheduler_for(pipeline, self._settings.scheduler, "SCHEDULER")
            except InvalidRequest as error:
                raise SettingsError(error.message) from None
        pipeline.set_progress_bar_config(disable=True)
        if self._following:
            self._leave_joint(pipeline)
        for module in pipeline.components.values():
            if hasattr(module, "eval"):
                module.eval()  # a T5 left in training mode has dropout, and no picture repeats
            config: Any = getattr(module, "config", None)
            if hasattr(config, "get_text_config"):
                config.get_text_config().use_cache = (
                    False  # `generate` asks for its own keys and values
                )
            if type(module).__name__ == "CLIPTextModel" and not hasattr(module, "text_model"):
                vars(module)["text_model"] = (
                    module  # where diffusers' clip_skip finds the last norm; transformers moved it
                )
        add_inversions(pipeline, self._words)
        if self._plan.quantization_backend == "own":
            self._quantize(pipeline)
        self._place(pipeline)
        return pipeline

    def _read(self) -> Any:
        """The pipeline in RAM, or, where components are quantized, already on the device."""
        import diffusers
        from diffusers.utils import logging as diffusers_logging

        diffusers_logging.disable_progress_bar()
        settings, checkpoint = self._settings, self._checkpoint
        name = settings.pipeline_class or checkpoint.pipeline_class or "DiffusionPipeline"
        pipeline_class = getattr(diffusers, name, None)
        if pipeline_class is None:
            if not checkpoint.remote_code:
                raise CheckpointError(
                    f"{checkpoint.path}: diffusers {diffusers.__version__} has no pipeline class"
                    f" {name}"
                )
            pipeline_class = diffusers.DiffusionPipeline
        if checkpoint.kind == "single_file":
            config = str(settings.single_file_config) or None
            return pipeline_class.from_single_file(
                str(checkpoint.path), config=config, dtype=self._dtypes()["default"]
            )
        return pipeline_class.from_pretrained(
            checkpoint.path,
            dtype=self._dtypes(),
            variant=checkpoint.variant or None,
            use_safetensors=None if settings.allow_pickle else True,
            trust_remote_code=settings.trust_remote_code,
            local_files_only=True,
            quantization_config=self._quantization(),
            **dict.fromkeys(self._left_out()),
        )

    def _left_out(self) -> list[str]:
        """Components that are not loaded. Absent ones are named too, else diffusers takes a Stable
        Diffusion 3 without T5 for broken."""
        left = [
            part.name
            for part in self._checkpoint.weighted
            if self._following and not self._is_joint(part.name)
        ]
        return [*self._checkpoint.absent, *left]

    def _is_joint(self, name: str) -> bool:
        """Whether every rank of a group has this model: denoisers, and what is sharded."""
        return role_of(name) == "denoiser" or name in self._plan.sharded

    def _leave_joint(self, pipeline: Any) -> None:
        """A single file is always read whole; the rest of it is dropped before it is placed."""
        others = [name for name in models_of(pipeline) if not self._is_joint(name)]
        pipeline.register_modules(**dict.fromkeys(others))

    def _dtypes(self) -> dict[str, Any]:
        import torch

        named = {"default": self._plan.dtype, **self._plan.component_dtypes}
        return {name: getattr(torch, dtype) for name, dtype in named.items()}

    def _quantization(self) -> Any:
        """diffusers' configuration for the components that the plan quantizes; None if it quantizes
        none."""
        plan = self._plan
        if plan.quantization_backend in ("", "own") or not plan.quantized:
            return None
        import torch
        from diffusers.quantizers import PipelineQuantizationConfig

        compute = getattr(torch, plan.dtype)
        backends: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
            ("bitsandbytes", "nf4"): (
                "bitsandbytes_4bit",
                {
                    "load_in_4bit": True,
                    "bnb_4bit_quant_type": "nf4",
                    "bnb_4bit_compute_dtype": compute,
                },
            ),
            ("bitsandbytes", "int8"): ("bitsandbytes_8bit", {"load_in_8bit": True}),
            ("torchao", "int8"): ("torchao", {"quant_type": "int8wo"}),
        }
        backend, arguments = backends[plan.quantization_backend, plan.quantization]
        return PipelineQuantizationConfig(
            quant_backend=backend,
            quant_kwargs=arguments,
            components_to_quantize=list(plan.quantized),
        )

    def _quantize(self, pipeline: Any) -> None:
        """fp8 by our own layers: those that stay on the device go there now, one by one."""
        from atelier.images.fp8 import quantize_linears

        target = self._plan.device if self._plan.placement == "resident" else "cpu"
        parts = ((name, getattr(pipeline, name)) for name in self._plan.quantized)
        for name, part in ((name, part) for name, part in parts if part is not None):
            count = quantize_linears(part, target)
            log.info("%s: %d linear layers are in fp8", name, count)

    def _place(self, pipeline: Any) -> None:
        """Move the pipeline where the plan wants it and switch on what saves memory."""
        plan = self._plan
        if plan.sharded:
            self.sharded = shard(pipeline, plan.sharded, plan.device)
            for name in models_of(pipeline):
                if name not in self.sharded:
                    getattr(pipeline, name).to(plan.device)
        elif plan.placement == "resident":
            pipeline.to(plan.device)
        elif plan.placement == "model_offload":
            pipeline.enable_model_cpu_offload(device=plan.device)
        else:
            pipeline.enable_group_offload(
                onload_device=plan.device,
                offload_type="leaf_level",
                use_stream=plan.device.startswith("cuda"),
            )
        vae: Any = getattr(pipeline, "vae", None)
        if plan.vae_slicing and hasattr(vae, "enable_slicing"):
            vae.enable_slicing()
        if plan.vae_tiling and hasattr(vae, "enable_tiling"):
            vae.enable_tiling()
        if plan.attention_slicing:
            pipeline.enable_attention_slicing()
        if plan.attention_backend != "native":
            self._choose_attention(pipeline)
        if vae is not None and plan.dtype_of("vae") != plan.dtype:
            _take_any_dtype(vae)

    def _choose_attention(self, pipeline: Any) -> None:
        """Another attention kernel for the denoisers, by diffusers' dispatcher, which not every
        architecture goes through."""
        setting = f"ATTENTION_BACKEND={self._plan.attention_backend}"
        backend = _ATTENTION_BACKENDS[self._plan.attention_backend]
        denoisers = [
            part
            for name, part in pipeline.components.items()
            if name.startswith(("transformer", "unet"))
        ]
        chosen = [part for part in denoisers if _dispatches_attention(part)]
        if not chosen:
            kinds = ", ".join(type(part).__name__ for part in denoisers) or type(pipeline).__name__
            raise SettingsError(
                f"{setting}: {kinds} of this diffusers has torch's attention built in; set it to"
                " auto"
            )
        try:
            for denoiser in chosen:
                denoiser.set_attention_backend(backend)
            self._try_attention(backend)
        except (RuntimeError, ImportError, ValueError) as error:
            raise SettingsError(f"{setting} cannot be used here: {error}") from None

    def _try_attention(self, backend: str) -> None:
        """One small call, since diffusers checks packages alone: kernels refuse devices and dtypes
        only when called."""
        import torch
        from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

        tokens = torch.zeros(
            1, 128, 2, 64, device=self._plan.device, dtype=getattr(torch, self._plan.dtype)
        )
        dispatch_attention_fn(tokens, tokens, tokens, backend=AttentionBackendName(backend))


def models_of(pipeline: Any) -> list[str]:
    """The names of the models of a pipeline."""
    return [name for name, part in pipeline.components.items() if hasattr(part, "parameters")]


def _dispatches_attention(denoiser: Any) -> bool:
    processors = (
        getattr(module, "processor", None) for module in getattr(denoiser, "modules", list)()
    )
    return any(hasattr(processor, "_attention_backend") for processor in processors)


def _take_any_dtype(vae: Any) -> None:
    """Let a VAE in float32 take the latents of a float16 denoiser, which pipelines hand over as
    they are."""
    for method in ("encode", "decode"):
        setattr(vae, method, _casting(getattr(vae, method), vae))


def _casting(real: Callable[..., Any], vae: Any) -> Callable[..., Any]:
    @wraps(real)
    def cast(values: Any, *args: Any, **kwargs: Any) -> Any:
        return real(values.to(vae.dtype), *args, **kwargs)

    return cast
