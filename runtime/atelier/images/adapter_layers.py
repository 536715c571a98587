"""Which layers of a pipeline the tensors of an adapter belong to, for the adapters that PEFT reads:
LoHa and LoKr in kohya's or diffusers' names, and folders that PEFT saved."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from atelier.errors import CheckpointError, shown
from atelier.sources.checkpoint.adapter_kind import PEFT_PREFIX, look_at
from atelier.sources.checkpoint.headers import StoredTensor, read_header

CONFIG = "adapter_config.json"

DENOISERS = ("unet", "transformer")
PREFIXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("lora_unet_", DENOISERS),
    ("lora_transformer_", DENOISERS),
    ("lycoris_", DENOISERS),
    ("lora_te1_", ("text_encoder",)),
    ("lora_te2_", ("text_encoder_2",)),
    ("lora_te3_", ("text_encoder_3",)),
    ("lora_te_", ("text_encoder",)),
    ("unet.", DENOISERS),
    ("transformer.", DENOISERS),
    ("diffusion_model.", DENOISERS),
    ("text_encoder.", ("text_encoder",)),
    ("text_encoder_2.", ("text_encoder_2",)),
)
"""Beginnings of layers' names, and the components that they mean."""

STABILITY_NAMES = (
    ("input_blocks_", "down_blocks_"),
    ("middle_block_", "mid_block_"),
    ("output_blocks_", "up_blocks_"),
    ("in_layers_2", "conv1"),
    ("out_layers_3", "conv2"),
    ("emb_layers_1", "time_emb_proj"),
    ("skip_connection", "conv_shortcut"),
    ("samplers_0_op", "samplers_0_conv"),
)
"""Parts of a UNet's names in the original code, which kohya's SDXL keeps, and in diffusers."""

OWN_NAME = re.compile(r"\.((lora|hada|lokr)_\w+(\.weight)?|alpha|dora_scale)$")
"""The end of a tensor's name, behind its layer's."""

MOST_NAMES = 3
"""Names that a message shows at most."""


@dataclass(frozen=True)
class AdapterLayers:
    """`places` has the component and the path in it of every layer, by the file's name for it."""

    path: Path
    kind: str
    layout: str
    places: Mapping[str, tuple[str, str]]

    @classmethod
    def of(cls, path: Path, pipeline: Any) -> AdapterLayers:
        """Find them from the header.

        Raises:
            CheckpointError: layers that the pipeline does not have, or of another size.
        """
        tensors = read_header(path).tensors
        look = look_at(tensors)
        by_layer = _by_layer(tensors)
        find = _peft_places if look.layout == "PEFT" else _named_places
        places = find(path, sorted(by_layer), pipeline)
        for layer, (component, inside) in places.items():
            module = getattr(pipeline, component).get_submodule(inside)
            if fault := _size_fault(look.kind, by_layer[layer], module):
                raise CheckpointError(f"{layer}: {fault}")
        return cls(path, look.kind, look.layout, places)

    def by_component(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Each component with its layers: the file's name to the path in it."""
        for name in dict.fromkeys(component for component, _ in self.places.values()):
            yield name, {layer: at for layer, (one, at) in self.places.items() if one == name}


def layer_of(tensor: str) -> tuple[str, str]:
    """A tensor's name as its layer's, without PEFT's prefix, and its own."""
    tensor = tensor.removeprefix(PEFT_PREFIX)
    mark = OWN_NAME.search(tensor)
    return (tensor[: mark.start()], tensor[mark.start() + 1 :]) if mark else (tensor, "")


def _by_layer(tensors: Mapping[str, StoredTensor]) -> dict[str, dict[str, tuple[int, ...]]]:
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, one in tensors.items():
        layer, own = layer_of(name)
        found.setdefault(layer, {})[own] = one.shape
    return found


def _peft_places(path: Path, layers: list[str], pipeline: Any) -> dict[str, tuple[str, str]]:
    """PEFT's names lack the component: the one whose class the configuration names, or that has
    all the layers."""
    config = path.parent / CONFIG
    if not config.is_file():
        raise CheckpointError(f"{CONFIG} of PEFT is not beside it: put it there, it has the scale")
    try:
        told = json.loads(config.read_bytes()).get("auto_mapping") or {}
    except (ValueError, AttributeError):
        raise CheckpointError(f"{config} is not a JSON object") from None
    able = {
        name: one
        for name, one in pipeline.components.items()
        if isinstance(one, torch.nn.Module) and not _missing(layers, one)
    }
    named = [
        name for name, one in able.items() if type(one).__name__ == told.get("base_model_class")
    ]
    for component in (*named, *able):
        return {layer: (component, layer) for layer in layers}
    raise CheckpointError(_lacking(layers[:MOST_NAMES], len(layers), len(layers), pipeline))


def _missing(layers: list[str], module: torch.nn.Module) -> list[str]:
    paths = dict(module.named_modules())
    return [layer for layer in layers if layer not in paths]


def _named_places(path: Path, layers: list[str], pipeline: Any) -> dict[str, tuple[str, str]]:
    known = {
        name: {inside.replace(".", "_"): inside for inside, _ in one.named_modules()}
        for name, one in pipeline.components.items()
        if isinstance(one, torch.nn.Module)
    }
    renamed = _in_our_names(layers, pipeline)
    places, lacking = {}, []
    for layer in layers:
        place = _place(renamed[layer], known)
        if place is None:
            lacking.append(layer)
        else:
            places[layer] = place
    if lacking:
        raise CheckpointError(_lacking(lacking, len(lacking), len(layers), pipeline))
    return places


def _place(layer: str, known: Mapping[str, Mapping[str, str]]) -> tuple[str, str] | None:
    for prefix, components in PREFIXES:
        if layer.startswith(prefix):
            flat = layer.removeprefix(prefix).replace(".", "_")
            for component in components:
                # transformers 5 took a level of CLIP's names away.
                for own in (flat, flat.removeprefix("text_model_")):
                    if inside := known.get(component, {}).get(own):
                        return component, inside
            return None
    return None


def _in_our_names(layers: list[str], pipeline: Any) -> dict[str, str]:
    """Layers of a UNet in Stability's names, as kohya keeps them for SDXL, in diffusers'."""
    unet = getattr(pipeline, "unet", None)
    if unet is None:
        return {layer: layer for layer in layers}
    from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers

    given = {f"{layer}.": layer for layer in layers}
    try:
        mapped = _maybe_map_sgm_blocks_to_diffusers(given, unet.config)
    except (ValueError, IndexError, KeyError):  # names of no UNet
        return {layer: layer for layer in layers}
    found = {layer: name.rpartition(".")[0] for name, layer in mapped.items()}
    for old, new in STABILITY_NAMES:
        found = {layer: name.replace(old, new) for layer, name in found.items()}
    return {layer: found.get(layer, layer) for layer in layers}


def _lacking(some: list[str], count: int, total: int, pipeline: Any) -> str:
    names = ", ".join(shown(one) for one in some[:MOST_NAMES])
    return (
        f"{count} of its {total} layers are not in {type(pipeline).__name__}, such as {names}: it"
        " was made for another family"
    )


def _size_fault(kind: str, shapes: Mapping[str, tuple[int, ...]], module: Any) -> str:
    """Why the product of a layer's tensors is no change of the module's weight; empty if it is."""
    weight = getattr(module, "weight", None)
    if not isinstance(module, torch.nn.Linear | torch.nn.Conv2d) or weight is None:
        return f"{kind} is for linear layers and convolutions, this is {type(module).__name__}"
    wide = isinstance(module, torch.nn.Linear)
    if wide and tuple(weight.shape) != (module.out_features, module.in_features):
        return f"{kind} needs layers that are not quantized: set QUANTIZATION=none"
    made = {"LoHa": _loha_elements, "LoKr": _lokr_elements, "LoRA": _lora_elements}[kind](shapes)
    if made is None:
        return f"its tensors {', '.join(sorted(shapes))} are not those of a {kind}"
    if made != weight.numel():
        return f"a change of {made:,} numbers does not fit a weight of {weight.numel():,}"
    return ""


def _loha_elements(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    first, second = shapes.get("hada_w1_a"), shapes.get("hada_w1_b")
    if not first or not second or len(first) != 2 or len(second) != 2:
        return None
    core = shapes.get("hada_t1")
    return math.prod((first[1], second[1], *core[2:])) if core else first[0] * second[1]


def _lokr_elements(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    left = _factor(shapes, "lokr_w1", None)
    right = _factor(shapes, "lokr_w2", shapes.get("lokr_t2"))
    return left * right if left and right else None


def _factor(
    shapes: Mapping[str, tuple[int, ...]], name: str, core: tuple[int, ...] | None
) -> int | None:
    if whole := shapes.get(name):
        return math.prod(whole)
    first, second = shapes.get(f"{name}_a"), shapes.get(f"{name}_b")
    if not first or not second or len(first) != 2 or len(second) != 2:
        return None
    return math.prod((first[1], second[1], *core[2:])) if core else first[0] * second[1]


def _lora_elements(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    down = shapes.get("lora_A.weight") or shapes.get("lora_down.weight")
    up = shapes.get("lora_B.weight") or shapes.get("lora_up.weight")
    return math.prod((up[0], *down[1:])) if down and up else None
