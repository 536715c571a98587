"""One ControlNet or T2I-Adapter, loaded, and what makes its calls stackable and repeatable."""

from __future__ import annotations

import logging
from functools import wraps
from typing import Any

import torch
from torch.utils import _pytree as pytree

from atelier.errors import CheckpointError
from atelier.sources.checkpoint.controls import ControlFolder

log = logging.getLogger(__name__)

UNSCALED = "unscaled"
"""The method of a ControlNet that a gate stands before."""


class MeanEncoder:
    """A VAE whose encodings are their mean: the pipelines of Stable Diffusion 3 draw those of a
    control's picture from torch's global generator, and no seed would give a picture again."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """As the VAE does it, without noise."""
        encoded = self._vae.encode(*args, **kwargs)
        encoded.latent_dist.sample = encoded.latent_dist.mode
        return encoded


def load_control(folder: ControlFolder, device: str, dtype: str) -> Any:
    """The module, on its device.

    Raises:
        CheckpointError: it cannot be loaded; the message says what diffusers found wrong.
    """
    import diffusers

    try:
        module = getattr(diffusers, folder.component.class_name).from_pretrained(
            folder.path,
            dtype=getattr(torch, dtype),
            variant=folder.variant or None,
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"CONTROLNETS: {folder.name}: {folder.path} cannot be loaded:"
            f" {type(error).__name__}: {error}"
        ) from error
    module.to(device).eval()
    if folder.kind == "ControlNet":
        _weigh_last(module)
    log.info("control %s: %s from %s", folder.name, folder.component.class_name, folder.path)
    return module


def _weigh_last(net: Any) -> None:
    """Multiply by a request's weight behind the gate, so that calls of different weights, and of
    steps at which a control rests, can be stacked. Pictures come in the VAE's dtype."""
    real = net.forward
    net.unscaled = real

    @wraps(real)
    def forward(
        *args: Any, controlnet_cond: Any, conditioning_scale: float = 1.0, **kwargs: Any
    ) -> Any:
        picture = controlnet_cond.to(net.dtype)
        made = net.unscaled(*args, controlnet_cond=picture, conditioning_scale=1.0, **kwargs)
        return pytree.tree_map(
            lambda leaf: leaf * conditioning_scale if torch.is_tensor(leaf) else leaf, made
        )

    net.forward = forward
