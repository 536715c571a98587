"""ControlNets and T2I-Adapters: a folder of diffusers with a configuration and weights, and whether
it was made for the model at hand. Told from configurations and headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from atelier.errors import CheckpointError
from atelier.sources.checkpoint.contents import Checkpoint, Component
from atelier.sources.checkpoint.folder import read_json, weigh
from atelier.sources.checkpoint.roles import role_of
from atelier.sources.checkpoint.weight_files import weight_sets

VARIABLE = "CONTROLNETS"

Kind = Literal["ControlNet", "T2I-Adapter"]

KINDS: Mapping[str, Kind] = {
    "ControlNetModel": "ControlNet",
    "SD3ControlNetModel": "ControlNet",
    "FluxControlNetModel": "ControlNet",
    "T2IAdapter": "T2I-Adapter",
}
"""Classes that are served."""

CLASSES: Mapping[str, tuple[str, ...]] = {
    "StableDiffusionPipeline": ("ControlNetModel", "T2IAdapter"),
    "StableDiffusionXLPipeline": ("ControlNetModel", "T2IAdapter"),
    "StableDiffusion3Pipeline": ("SD3ControlNetModel",),
    "FluxPipeline": ("FluxControlNetModel",),
}
"""Those that each pipeline takes."""

EQUAL: Mapping[str, tuple[str, ...]] = {
    "ControlNetModel": (
        "cross_attention_dim",
        "block_out_channels",
        "in_channels",
        "addition_embed_type",
    ),
    "SD3ControlNetModel": (
        "num_attention_heads",
        "attention_head_dim",
        "in_channels",
        "patch_size",
        "joint_attention_dim",
        "pooled_projection_dim",
    ),
    "FluxControlNetModel": (
        "num_attention_heads",
        "attention_head_dim",
        "in_channels",
        "joint_attention_dim",
        "pooled_projection_dim",
    ),
    "T2IAdapter": ("channels",),
}
"""What a control's configuration and its model's denoiser have in common."""

UNET_RESIDUALS = 6
"""What a control hands to a UNet at a step, in arrays of its first level: Stable Diffusion's
thirteen count 5.1, XL's ten 5.3."""


@dataclass(frozen=True)
class ControlFolder:
    """A ControlNet or T2I-Adapter as it lies on this machine."""

    name: str
    path: Path
    component: Component

    @property
    def kind(self) -> Kind:
        return KINDS[self.component.class_name]

    @property
    def residuals(self) -> int:
        """Arrays of the denoiser's width that it hands over at a step; a transformer gets one for
        each block."""
        config = self.component.config
        blocks = (config.get("num_layers"), config.get("num_single_layers"))
        return sum(one for one in blocks if isinstance(one, int)) or UNET_RESIDUALS

    @property
    def variant(self) -> str:
        """That of its files, empty if they are plain."""
        return self.component.variants[0] if self.component.variants else ""


def inspect_control(name: str, path: Path, checkpoint: Checkpoint, pipeline: str) -> ControlFolder:
    """The control in a folder, for a checkpoint served by a pipeline class.

    Raises:
        CheckpointError: it is none, it is damaged, or it was made for another model; the message
            says which.
    """
    where = f"{VARIABLE}: {name} ({path})"
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{where} is not a ControlNet's folder: there is no config.json in it; convert a"
            " single file with diffusers"
        )
    config = read_json(path / "config.json")
    class_name = str(config.get("_class_name"))
    _check_class(where, class_name, config, pipeline)
    variants = sorted({one.variant for one in weight_sets(path) if not one.pickle})
    variant = "" if "" in variants or len(variants) != 1 else variants[0]
    weights, faults = weigh(name, path, weight_sets(path), variant, allow_pickle=False)
    if faults:
        raise CheckpointError(f"{VARIABLE}: {'; '.join(faults)}")
    _check_fit(where, class_name, config, checkpoint)
    component = Component(
        name, class_name, "diffusers", config, weights.files, weights.bytes, weights.dtypes,
        weights.linear, variants=(variant,) if variant else (),
    )  # fmt: skip
    return ControlFolder(name, path, component)


def _check_class(where: str, class_name: str, config: Mapping[str, Any], pipeline: str) -> None:
    taken = CLASSES.get(pipeline, ())
    if not taken:
        raise CheckpointError(
            f"{where}: {pipeline} takes no controls here; those that do: {', '.join(CLASSES)}"
        )
    if class_name not in taken:
        raise CheckpointError(f"{where} is a {class_name}; {pipeline} takes {' or '.join(taken)}")
    large = config.get("adapter_type", "").endswith("_xl")
    if class_name == "T2IAdapter" and large != ("XL" in pipeline):
        raise CheckpointError(f"{where} is a {config.get('adapter_type')}, not for {pipeline}")
    if config.get("num_mode") is not None or config.get("extra_conditioning_channels"):
        raise CheckpointError(
            f"{where} wants more than a picture (it is a union of several, or for inpainting),"
            " which is not served here; take one for a single kind of picture"
        )


def _check_fit(
    where: str, class_name: str, config: Mapping[str, Any], checkpoint: Checkpoint
) -> None:
    denoisers = [one for one in checkpoint.components if role_of(one.name) == "denoiser"]
    model = dict(denoisers[0].config) if denoisers else {}  # a single file has none
    if class_name == "T2IAdapter" and "block_out_channels" in model:
        # XL's has one level more than its UNet, for the middle
        levels = len(model["block_out_channels"])
        model["channels"] = model["block_out_channels"]
        config = {**config, "channels": list(config.get("channels", ()))[:levels]}
    for name in EQUAL[class_name]:
        # one without a text embedder says so by null
        lacks = config.get(name) is None and name != "addition_embed_type"
        if name in config and name in model and not lacks and config[name] != model[name]:
            raise CheckpointError(
                f"{where} was made for another model: its {name} is {config[name]}, and that of"
                f" {checkpoint.path.name} is {model[name]}"
            )
