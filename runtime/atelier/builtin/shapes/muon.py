"""Muon for many small matrices: momentum, then orthogonalised updates, one batched product per
matrix shape.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the update's scale
follows arXiv:2502.16982, so that the learning rate means what it means to AdamW.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch


class Muon(torch.optim.Optimizer):
    """For matrices and convolution kernels (taken as matrices of one row per output); AdamW has the
    rest.

    `lr` is a scalar tensor on the parameters' device, so that a recorded step can be given another
    rate.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: torch.Tensor,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                gradients = [
                    parameter.grad for parameter in parameters if parameter.grad is not None
                ]
                states = [self.state[parameter] for parameter in parameters]
                for state, parameter in zip(states, parameters, strict=True):
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(parameter)
                buffers = [state["momentum"] for state in states]
                torch._foreach_lerp_(buffers, gradients, 1.0 - group["momentum"])
                nesterov = torch.stack(torch._foreach_lerp(gradients, buffers, group["momentum"]))
                update = orthogonalise(nesterov.flatten(2))
                scale = group["lr"] * (-0.2 * max(update.shape[1:]) ** 0.5)
                torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list((update * scale).view_as(nesterov).unbind()))


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices (K, M, N) with their singular values brought near 1, by five Newton-Schulz steps in
    bfloat16."""
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)
