"""Adapters in a group: what the first rank has put into a module that all ranks have is put into
the followers' as well, layer by layer, whatever kind of file it came from.

Files are read by the first rank alone, and its checks are everyone's. What comes over is PEFT's
configuration, and the tensors from device to device.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from atelier.images import orders
from atelier.images.adapters import Adaptation, Selection
from atelier.images.conditioners import Conditioners
from atelier.images.group import RankGroup
from atelier.images.parallel import hand_out
from atelier.images.peft_loading import follow, without_products

NUMBERS = ("r", "alpha", "lora_alpha", "scaling")
"""What a layer of PEFT's knows of an adapter besides its tensors, as far as it has them."""


class JointAdapters:
    """The first rank's side; for the denoising thread."""

    def __init__(self, group: RankGroup, beside: Conditioners) -> None:
        self._group = group
        self._beside = beside
        self._held: dict[str, set[str]] = defaultdict(set)
        self._used: dict[str, Selection] = {}

    def use(self, adaptation: Adaptation) -> None:
        """See `Conditioners.use`; the followers' modules come to be as this rank's are."""
        self._beside.use(adaptation)
        active = self._beside.adapters.active
        for name, joint in self._group.joint.items():
            here = set(getattr(joint.module, "peft_config", ()))
            gone, new = self._held[name] - here, here - self._held[name]
            for key in sorted(gone):
                self._group.tell(orders.DropAdapter(name, key))
            for key in sorted(new):
                self._give(name, joint.module, key)
            self._held[name] = here
            used = tuple(one for one in active if one[0] in here)
            if new or used != self._used.get(name, ()):
                self._group.tell(orders.UseAdapters(name, used))
            self._used[name] = used

    def _give(self, name: str, module: Any, key: str) -> None:
        layers: list[orders.AdapterLayer] = []
        tensors: list[torch.Tensor] = []
        for path, layer in _layers(module, key):
            found = _tensors(layer, key)
            forms = {place: orders.Blank(one.shape, one.dtype) for place, one in found.items()}
            layers.append(orders.AdapterLayer(path, _numbers(layer, key), forms))
            tensors += found.values()
        self._group.tell(orders.LoadAdapter(name, key, module.peft_config[key], layers))
        for tensor in tensors:
            hand_out(tensor)


def load(pipeline: Any, order: orders.LoadAdapter, device: torch.device) -> None:
    """A follower's side of `JointAdapters`."""
    from peft import LoraConfig, inject_adapter_in_model

    module, key = getattr(pipeline, order.module), order.key
    order.config.inference_mode = True
    inside = isinstance(order.config, LoraConfig)
    with without_products(pipeline) if inside else nullcontext():
        inject_adapter_in_model(order.config, module, key)
    for told in order.layers:
        layer = module.get_submodule(told.path)
        while key not in layer.scaling:  # an adapter of another kind is around it
            layer = layer.base_layer
        for name, number in told.numbers.items():
            getattr(layer, name)[key] = number
        for name in layer.adapter_layer_names:
            held = getattr(layer, name)
            if key in held and not any(place[0] == name for place in told.forms):
                del held[key]
        for place, form in told.forms.items():
            value = torch.empty(form.shape, dtype=form.dtype, device=device)
            hand_out(value)
            _put(getattr(layer, place[0]), key, place[1], nn.Parameter(value, requires_grad=False))
    follow(module)


def drop(pipeline: Any, order: orders.DropAdapter) -> None:
    """The same."""
    from diffusers.utils import delete_adapter_layers

    delete_adapter_layers(getattr(pipeline, order.module), order.key)


def use(pipeline: Any, order: orders.UseAdapters) -> None:
    """The same."""
    from diffusers.utils import set_adapter_layers, set_weights_and_activate_adapters

    module = getattr(pipeline, order.module)
    set_adapter_layers(module, enabled=bool(order.selection))
    if order.selection:
        keys, weights = zip(*order.selection, strict=True)
        set_weights_and_activate_adapters(module, list(keys), list(weights))


def _layers(module: nn.Module, key: str) -> Iterator[tuple[str, Any]]:
    """PEFT's layers that have the adapter, each with the path of what it wraps."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, layer in module.named_modules():
        if isinstance(layer, BaseTunerLayer) and key in getattr(layer, "scaling", ()):
            yield path.replace(".base_layer", ""), layer


def _numbers(layer: Any, key: str) -> dict[str, float]:
    known = {name: getattr(layer, name, {}) for name in NUMBERS}
    return {name: each[key] for name, each in known.items() if key in each}


def _tensors(layer: Any, key: str) -> dict[tuple[str, str], torch.Tensor]:
    """Of one adapter, by the layer's name for them and, where that is a module, the name in it."""
    found: dict[tuple[str, str], torch.Tensor] = {}
    for name in layer.adapter_layer_names:
        held = getattr(layer, name)
        if key not in held:
            continue
        if isinstance(held[key], nn.Module):
            found |= {(name, own): one.data for own, one in held[key].named_parameters()}
        else:
            found[name, ""] = held[key].data
    return found


def _put(held: Any, key: str, name: str, value: nn.Parameter) -> None:
    if name:
        held[key].register_parameter(name, value)
    else:
        held[key] = value
