"""Float32 master weights and the optimizer over them.

The module computes in its own dtype, mostly bfloat16; the optimizer sees float32 copies of the
trainable parameters only, so small steps are not lost to rounding and no autocast is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from atelier_training.dreambooth.options import TrainOptions
from atelier_training.dreambooth.sharding import local, part_like


class MasterWeights:
    """Masters of `parameters`, by name. A float32 parameter is its own master."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.names = list(parameters)
        self._working = list(parameters.values())
        self.masters = [
            p if p.dtype == torch.float32 else nn.Parameter(p.detach().float().clone())
            for p in self._working
        ]
        self._pairs = [
            (w, m) for w, m in zip(self._working, self.masters, strict=True) if w is not m
        ]

    def __len__(self) -> int:
        return sum(master.numel() for master in self.masters)

    def take_gradients(self) -> None:
        """Move gradients from the working parameters to the masters."""
        for working, master in self._pairs:
            master.grad = None if working.grad is None else working.grad.float()
            working.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the masters into the working parameters."""
        if self._pairs:
            working, masters = (
                [local(each) for each in side] for side in zip(*self._pairs, strict=True)
            )
            torch._foreach_copy_(working, masters)

    def state(self) -> dict[str, torch.Tensor]:
        return {
            name: master.detach() for name, master in zip(self.names, self.masters, strict=True)
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        for name, master in zip(self.names, self.masters, strict=True):
            master.copy_(part_like(state[name], master))
        self.write_back()

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Continue `optimizer`, made over the masters in their order, from its state."""
        for place, of_master in state["state"].items():
            master = self.masters[place]
            for name, value in of_master.items():
                if isinstance(value, torch.Tensor) and value.shape == master.shape:
                    of_master[name] = part_like(value, master)
        optimizer.load_state_dict(state)


def build_optimizer(options: TrainOptions, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer named by the options over `groups`, each with `params` and `lr`."""
    decay = options.weight_decay
    if options.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, weight_decay=decay)
    if options.optimizer == "prodigy":
        from prodigyopt import Prodigy

        return Prodigy(groups, weight_decay=decay, use_bias_correction=True, safeguard_warmup=True)
    return torch.optim.AdamW(groups, weight_decay=decay, fused=True)
