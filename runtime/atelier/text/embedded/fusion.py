"""Fewer kernels a token: at one stream the GPU waits for launches of tiny kernels as long as for
weights.

Root mean square norms written out in six operations become torch's one, where both agree on random
input; rotary embeddings are compiled into one kernel. Nothing here depends on a model's family:
what is not recognised stays.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 2e-2
"""Largest relative difference between a module's own norm and torch's, in 16-bit types, that counts
as rounding."""


def fuse_norms(model: Any) -> int:
    """Replace the forward of every norm that computes what `rms_norm` does; returns how many were
    replaced."""
    done = 0
    for module in model.modules():
        weight, epsilon = getattr(module, "weight", None), _epsilon(module)
        if "RMSNorm" in type(module).__name__ and weight is not None and epsilon is not None:
            sample = torch.randn(4, weight.shape[-1], device=weight.device, dtype=weight.dtype)
            with torch.no_grad():
                own, fused = module(sample), F.rms_norm(sample, weight.shape, weight, epsilon)
            if own.dtype == fused.dtype and torch.allclose(
                own, fused, rtol=TOLERANCE, atol=TOLERANCE
            ):
                module.forward = _norm(weight, epsilon)
                done += 1
    return done


def compile_rotary(model: Any) -> bool:
    """Compile the rotary embedding of the model's own module, if it has one under the usual
    name."""
    home = sys.modules[type(model).__module__]
    rotary = getattr(home, "apply_rotary_pos_emb", None)
    if rotary is None or hasattr(rotary, "_torchdynamo_orig_callable"):
        return False
    home.apply_rotary_pos_emb = torch.compile(rotary, dynamic=True)  # type: ignore[attr-defined]
    return True


def _epsilon(module: Any) -> float | None:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _norm(weight: Tensor, epsilon: float) -> Any:
    def forward(hidden_states: Tensor) -> Tensor:
        return F.rms_norm(hidden_states, weight.shape, weight, epsilon)

    return forward
