"""The weights that a run trains: adapters or whole modules, put in place, and written out in
diffusers' formats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn

from atelier_training.dreambooth.errors import OptionError
from atelier_training.dreambooth.families import Family, Rows
from atelier_training.dreambooth.families.base import Tensors
from atelier_training.dreambooth.options import TrainOptions
from atelier_training.dreambooth.sharding import shard

LORA_FILE = "pytorch_lora_weights.safetensors"
ENCODER_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]


class Trainee(nn.Module):
    """The denoiser and, if they are trained, the text encoders; its forward gives the losses of a
    batch.

    One module, so that DDP wraps everything that has gradients at once.
    """

    def __init__(
        self, family: Family, options: TrainOptions, denoiser: nn.Module, text_pipeline: Any | None
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.encoders = nn.ModuleDict(
            {name: getattr(text_pipeline, name) for name in family.trainable_encoders}
            if text_pipeline
            else {}
        )
        self._family = family
        self._objective = family.objective(options.min_snr_gamma)
        self._text_pipeline = text_pipeline
        self._always_teach = options.shard

    def forward(
        self,
        latents: torch.Tensor,
        noise: torch.Tensor,
        levels: torch.Tensor,
        sizes: torch.Tensor,
        text: Tensors | None,
        captions: Sequence[str],
        taught: int = 0,
        base_text: Tensors | None = None,
    ) -> torch.Tensor:
        """(B,) losses. `text` None means that `captions` go through the text encoders now. The last
        `taught` rows learn what the model without its adapter makes of `base_text`, the embeddings
        of the encoders without theirs."""
        if text is None:
            dtype = next(self.denoiser.parameters()).dtype
            text = {
                k: v.to(dtype)
                for k, v in self._family.encode_prompts(self._text_pipeline, captions).items()
            }
        rows, target = Rows(latents, noise, levels, text, sizes), None
        # The calls of a sharded denoiser are common to all processes: where no row is to be taught,
        # one is for nothing.
        lessons = max(taught, 1) if self._always_teach else taught
        if lessons and base_text is not None:
            target = self._objective.add_noise(latents, noise, levels).target
            lesson = self._teach(Rows(latents, noise, levels, base_text, sizes), lessons)
            target = torch.cat([target[: len(target) - taught], lesson[lessons - taught :]])
        return self._family.losses(self.denoiser, self._objective, rows, target)

    @torch.no_grad()
    def _teach(self, rows: Rows, count: int) -> torch.Tensor:
        """What the denoiser without its adapter predicts for the last `count` rows."""
        denoiser: Any = self.denoiser
        text = {name: value[-count:] for name, value in rows.text.items()}
        last = Rows(
            rows.latents[-count:],
            rows.noise[-count:],
            rows.levels[-count:],
            text,
            rows.sizes[-count:],
        )
        denoiser.disable_adapters()
        try:
            noised = self._objective.add_noise(last.latents, last.noise, last.levels)
            return self._family.predict(denoiser, noised, last).to(rows.latents.dtype)
        finally:
            denoiser.enable_adapters()

    def draw_levels(self, rows: int, generator: torch.Generator) -> torch.Tensor:
        return self._objective.levels(rows, generator)

    def groups(self) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """Trainable parameters by name: the denoiser's, and the text encoders'."""
        named = {name: p for name, p in self.named_parameters() if p.requires_grad}
        denoiser = {name: p for name, p in named.items() if name.startswith("denoiser.")}
        return denoiser, {name: p for name, p in named.items() if name not in denoiser}


def build_trainee(
    family: Family, options: TrainOptions, device: torch.device, dtype: torch.dtype
) -> Trainee:
    """Load what is trained onto `device`, frozen weights in `dtype`, adapters initialised from the
    seed."""
    denoiser = getattr(
        family.load([family.denoiser], dtype, **_quantization(family, options, dtype)),
        family.denoiser,
    )
    text_pipeline = family.load(family.text_parts, dtype) if options.train_text_encoder else None
    return prepare_trainee(family, options, device, denoiser, text_pipeline)


def prepare_trainee(
    family: Family,
    options: TrainOptions,
    device: torch.device,
    denoiser: Any,
    text_pipeline: Any | None = None,
) -> Trainee:
    """Make loaded modules trainable as the options say, and bring them to `device`, or to the
    devices of all processes."""
    torch.manual_seed(options.seed)
    if not family.trains_with_cudnn_attention:
        torch.backends.cuda.enable_cudnn_sdp(False)
    make_trainable(denoiser, family.targets(options), options)
    for name in family.trainable_encoders if text_pipeline else ():
        make_trainable(getattr(text_pipeline, name), ENCODER_TARGETS, options)
    if options.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    if text_pipeline:
        text_pipeline.to(device)
    if not options.shard:
        denoiser.to(device)
    denoiser.train()
    if options.compile:
        _compile_blocks(denoiser, options.activation_budget)
    if options.shard:
        shard(denoiser, list(repeated_blocks(denoiser)), device)
        for name in family.trainable_encoders if text_pipeline else ():
            shard(getattr(text_pipeline, name), (), device)
    return Trainee(family, options, denoiser, text_pipeline)


def make_trainable(module: Any, targets: list[str], options: TrainOptions) -> None:
    """Mark all weights, or put adapters on the layers whose names end in one of `targets`."""
    if options.method == "full":
        module.requires_grad_(True)
        return
    module.add_adapter(
        LoraConfig(
            r=options.rank,
            lora_alpha=options.adapter_alpha,
            lora_dropout=options.adapter_dropout,
            init_lora_weights="gaussian",
            target_modules=targets,
            use_dora=options.method == "dora",
        )
    )


def _quantization(family: Family, options: TrainOptions, dtype: torch.dtype) -> dict[str, Any]:
    if options.quantize == "none":
        return {}
    from diffusers import PipelineQuantizationConfig

    settings: dict[str, Any] = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": dtype,
    }
    config = PipelineQuantizationConfig(
        quant_backend="bitsandbytes_4bit",
        quant_kwargs=settings,
        components_to_quantize=[family.denoiser],
    )
    return {"quantization_config": config}


def _compile_blocks(denoiser: Any, activation_budget: float) -> None:
    """Compile the repeated blocks one by one: they share one compilation, and the first step waits
    seconds, not minutes."""
    if activation_budget < 1:
        import torch._functorch.config as functorch

        functorch.activation_memory_budget = activation_budget
    for block in repeated_blocks(denoiser):
        # Not `block.compile()`, which takes hooks along: those of a sharded block differ, and each
        # would be compiled anew.
        block.forward = torch.compile(block.forward)


def repeated_blocks(denoiser: Any) -> Iterator[nn.Module]:
    """The denoiser's transformer blocks, wherever they sit."""
    for module in denoiser.modules():
        if type(module).__name__ in (
            "BasicTransformerBlock",
            "JointTransformerBlock",
            *(denoiser._repeated_blocks or ()),
        ):
            yield module


def save_adapter(
    family: Family, trainee: Trainee, weights: dict[str, torch.Tensor], folder: Path
) -> Path:
    """Write `weights` (by parameter name) as `pytorch_lora_weights.safetensors`, which
    `load_lora_weights` reads."""
    pipeline_class = type(family.load([], torch.float32))
    layers: dict[str, Any] = {}
    modules = {family.denoiser: ("denoiser", trainee.denoiser)}
    modules |= {name: (f"encoders.{name}", module) for name, module in trainee.encoders.items()}
    for component, (prefix, module) in modules.items():
        own = {
            n.removeprefix(prefix + "."): w
            for n, w in weights.items()
            if n.startswith(prefix + ".")
        }
        state = get_peft_model_state_dict(module, state_dict=own, adapter_name="default")
        # SD3's and FLUX's own transformers keep peft's names; U-Nets and text encoders have
        # diffusers' older ones.
        layers[f"{component}_lora_layers"] = (
            state if component == "transformer" else convert_state_dict_to_diffusers(state)
        )
        layers[f"{component}_lora_adapter_metadata"] = _metadata(module)
    folder.mkdir(parents=True, exist_ok=True)
    pipeline_class.save_lora_weights(folder, weight_name=LORA_FILE, **layers)
    return folder / LORA_FILE


def _metadata(module: Any) -> dict[str, Any]:
    """The adapter's rank, scale and targets as they go into the file's header."""
    config = module.peft_config["default"].to_dict()
    return {
        key: sorted(value) if isinstance(value, set) else value for key, value in config.items()
    }


def save_pipeline(
    family: Family, trainee: Trainee, weights: dict[str, torch.Tensor], folder: Path
) -> Path:
    """Write the whole checkpoint with `weights` in place of the trained ones, in the trained
    modules' dtype."""
    pipeline = family.load(family.components, next(trainee.denoiser.parameters()).dtype)
    modules = {"denoiser.": getattr(pipeline, family.denoiser)}
    modules |= {f"encoders.{name}.": getattr(pipeline, name) for name in trainee.encoders}
    for prefix, module in modules.items():
        parameters = dict(module.named_parameters())
        with torch.no_grad():
            for name, weight in weights.items():
                if name.startswith(prefix):
                    parameters[name.removeprefix(prefix)].copy_(weight)
    pipeline.save_pretrained(folder)
    return folder


def check_support(family: Family, options: TrainOptions, device: torch.device) -> None:
    """Raises OptionError if the family, the device or this installation cannot do what the options
    ask."""
    if options.min_snr_gamma is not None and not family.supports_min_snr:
        raise OptionError(
            f"min_snr_gamma={options.min_snr_gamma}: {type(family).__name__} has no discrete"
            " timesteps"
        )
    needed = {
        "quantize=nf4": ("bitsandbytes", options.quantize == "nf4"),
        "optimizer=adamw8bit": ("bitsandbytes", options.optimizer == "adamw8bit"),
        "optimizer=prodigy": ("prodigyopt", options.optimizer == "prodigy"),
    }
    for choice, (package, chosen) in needed.items():
        if chosen and find_spec(package) is None:
            raise OptionError(
                f"{choice} needs {package}, which is not installed: pip install {package}"
            )
    if options.quantize == "nf4" and device.type == "cpu":
        raise OptionError(
            "quantize=nf4 needs a GPU, since diffusers quantizes nowhere else; on device=cpu use"
            " quantize=none"
        )
