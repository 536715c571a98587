"""How IP-Adapters sit in a denoiser: several beside each other in UNets and FLUX, one that also
reads the step's time in Stable Diffusion 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from atelier.sources.checkpoint.image_prompts import ImagePromptFile


@dataclass(frozen=True)
class LoadedAdapter:
    """What one adapter puts into the denoiser: attention processors by layer, and a projection."""

    file: ImagePromptFile
    processors: Mapping[str, Any]
    projection: Any


class SummedAdapters:
    """Each layer adds up what all adapters see, as diffusers has it for UNets and FLUX."""

    slot = "encoder_hid_proj"
    """Where the denoiser keeps what projects image embeddings."""

    most: int | None = None
    """Adapters at once."""

    def projection(self, denoiser: Any) -> Any:
        """Of the one adapter that diffusers has just put in."""
        return getattr(denoiser, self.slot).image_projection_layers[0]

    def together(self, adapters: Sequence[LoadedAdapter]) -> tuple[dict[str, Any], Any]:
        """Processors and projection of several at once; their weights are not copied."""
        from diffusers.models.embeddings import MultiIPAdapterImageProjection

        processors = {
            layer: _summed([each.processors[layer] for each in adapters])
            for layer, first in adapters[0].processors.items()
            if hasattr(first, "to_k_ip")
        }
        return processors, MultiIPAdapterImageProjection([each.projection for each in adapters])

    def weigh(self, processor: Any, weights: Sequence[float]) -> None:
        """How much each adapter counts in a layer."""
        processor.scale = list(weights)


class TimedAdapter(SummedAdapters):
    """One adapter, whose projection and layers know the step's time: Stable Diffusion 3."""

    slot = "image_proj"
    most = 1

    def projection(self, denoiser: Any) -> Any:
        return getattr(denoiser, self.slot)

    def together(self, adapters: Sequence[LoadedAdapter]) -> tuple[dict[str, Any], Any]:
        (one,) = adapters
        return dict(one.processors), one.projection

    def weigh(self, processor: Any, weights: Sequence[float]) -> None:
        (processor.scale,) = weights


def _summed(parts: Sequence[Any]) -> Any:
    """A processor that adds up several adapters, with the weights that each of them holds."""
    first = parts[0]
    with torch.device("meta"):  # its own weights are not kept
        made = type(first)(
            first.hidden_size,
            first.cross_attention_dim,
            num_tokens=[4] * len(parts),  # of the first form of embeddings, which is not used here
        )
    for name in ("to_k_ip", "to_v_ip"):
        setattr(made, name, torch.nn.ModuleList(getattr(part, name)[0] for part in parts))
    return made.eval()
