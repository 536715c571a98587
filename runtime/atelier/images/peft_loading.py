"""LoHa, LoKr and what PEFT saved, put into a pipeline's modules by PEFT's own layers.

The layers wrap those of LoRA adapters and are wrapped by them, so that `set_adapters` of a pipeline
switches all kinds alike. Their product is computed at every call, not merged: requests with other
adapters take turns with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from atelier.errors import CheckpointError
from atelier.images.adapter_layers import AdapterLayers, layer_of


def load_by_peft(pipeline: Any, layers: AdapterLayers, key: str) -> None:
    """Put the adapter into the pipeline's modules, under the name `key`.

    Raises:
        CheckpointError, ValueError, TypeError: its weights do not fit.
    """
    tensors = _by_layer(layers)
    for component, paths in layers.by_component():
        module = getattr(pipeline, component)
        own = {inside: tensors[layer] for layer, inside in paths.items()}
        if layers.layout == "PEFT":
            inside = layers.kind == "LoRA"
            with without_products(pipeline) if inside else nullcontext():
                _inject_saved(module, layers.path, own, key)
        else:
            _inject_products(module, layers.kind, own, key)
        follow(module)


def in_diffusers_names(layers: AdapterLayers) -> dict[str, torch.Tensor]:
    """A LoRA in kohya's layout as diffusers names it, for families whose loader does not rename:
    the scale goes into the second factor."""
    found = {}
    for layer, own in _by_layer(layers).items():
        component, inside = layers.places[layer]
        down, up = own["lora_down.weight"], own["lora_up.weight"]
        scale = float(own["alpha"]) / down.shape[0] if "alpha" in own else 1.0
        found[f"{component}.{inside}.lora_A.weight"] = down
        found[f"{component}.{inside}.lora_B.weight"] = up * scale
    return found


@contextmanager
def without_products(pipeline: Any) -> Iterator[None]:
    """Take LoHa and LoKr out of the way while a LoRA is put in: loaders of LoRA look at what they
    wrap, and know weights and LoRA alone. So LoRA is always inside, the others around it."""
    from peft.tuners.lycoris_utils import LycorisLayer

    taken: list[tuple[torch.nn.Module, str, Any, Any]] = []
    for component in pipeline.components.values():
        if not isinstance(component, torch.nn.Module):
            continue
        for parent in list(component.modules()):
            if isinstance(parent, LycorisLayer):
                continue
            for name, outer in list(parent.named_children()):
                if isinstance(outer, LycorisLayer):
                    last = outer
                    while isinstance(last.base_layer, LycorisLayer):
                        last = last.base_layer
                    taken.append((parent, name, outer, last))
                    setattr(parent, name, last.base_layer)
    try:
        yield
    finally:
        for parent, name, outer, last in taken:
            last.base_layer = getattr(parent, name)
            setattr(parent, name, outer)


def _by_layer(layers: AdapterLayers) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    with safe_open(layers.path, "pt") as file:
        for name in file.keys():  # noqa: SIM118, it is no mapping
            layer, own = layer_of(name)
            found.setdefault(layer, {})[own] = file.get_tensor(name)
    return found


def _inject_saved(
    module: Any, path: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], key: str
) -> None:
    """What `save_pretrained` of PEFT wrote, with the configuration beside it."""
    from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(str(path.parent))
    config.inference_mode = True
    inject_adapter_in_model(config, module, key)
    flat = {f"{at}.{own}": one for at, each in tensors.items() for own, one in each.items()}
    result: Any = set_peft_model_state_dict(module, flat, key)
    if result.unexpected_keys:
        raise CheckpointError(
            f"{len(result.unexpected_keys)} tensors belong to no layer that adapter_config.json"
            f" names, such as {result.unexpected_keys[0]}"
        )


def _inject_products(
    module: Any, kind: str, tensors: Mapping[str, Mapping[str, torch.Tensor]], key: str
) -> None:
    """LoHa or LoKr without a configuration: ranks and scales are each layer's own, so the layers
    are made with the least rank and then given the file's tensors."""
    from peft import LoHaConfig, LoKrConfig, inject_adapter_in_model

    config = {"LoHa": LoHaConfig, "LoKr": LoKrConfig}[kind](
        r=1, alpha=1, target_modules=list(tensors), inference_mode=True
    )
    inject_adapter_in_model(config, module, key)
    for inside, own in tensors.items():
        layer = module.get_submodule(inside)
        while key not in layer.r:  # an adapter of another kind may have been put around it
            layer = layer.base_layer
        _give(layer, key, own)


def _give(layer: Any, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
    weight = layer.get_base_layer().weight
    for name in layer.adapter_layer_names:
        parameters = getattr(layer, name)
        if key in parameters:
            del parameters[key]
        if name in tensors:
            value = tensors[name].to(weight.device, weight.dtype)
            parameters[key] = torch.nn.Parameter(value, requires_grad=False)
    rank = _rank(tensors)
    alpha = float(tensors["alpha"]) if rank and "alpha" in tensors else float(rank or 1)
    layer.r[key], layer.alpha[key] = rank or 1, alpha
    layer.scaling[key] = alpha / (rank or 1)


def _rank(tensors: Mapping[str, torch.Tensor]) -> int | None:
    """Of a product; None of a LoKr whose factors are both whole, which has no scale."""
    for name in ("hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if name in tensors:
            return int(tensors[name].shape[0])
    return None


def follow(module: Any) -> None:
    """Tell the libraries that adapters are in the module, as their own loaders do."""
    from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading

    module._hf_peft_config_loaded = True
    _maybe_remove_and_reapply_group_offloading(module)
