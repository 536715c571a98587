"""In which type the weights are kept and the arithmetic is done, and why.

Types are named as torch names them ("bfloat16"), so that a plan can be printed, tested and sent as
JSON without torch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from atelier.hardware.machine import Device
from atelier.settings import Settings
from atelier.sources.checkpoint.contents import Checkpoint

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

COMPUTE = ("bfloat16", "float16", "float32")
"""Types a whole model can be computed in, widest exponent of the short ones first."""

LARGE = 2**27
"""Bytes of a language model's weights from which reading them takes most of a token's time on a
CPU, so that half as many are nearly twice as fast; a smaller one is not faster in bfloat16."""

BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of one element of a compute type."""


@dataclass(frozen=True)
class DtypeChoice:
    """The compute type, why, and the components that must be kept in another type, each with its
    reason."""

    dtype: str
    reason: str
    components: Mapping[str, str] = field(default_factory=dict)
    component_reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def torch_dtype(self) -> torch.dtype:
        """torch's type object."""
        import torch

        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    def of(self, component: str) -> str:
        """The type of one component."""
        return self.components.get(component, self.dtype)


class DtypeSelector:
    """Chooses by DTYPE, the device and what the checkpoint's headers say."""

    def __init__(self, device: Device, settings: Settings) -> None:
        self.device = device
        self.settings = settings

    def select(self, checkpoint: Checkpoint) -> DtypeChoice:
        """The type for this checkpoint on this device. A departure from what was asked is logged
        with its reason."""
        asked = self.settings.dtype
        if asked == "auto":
            dtype, reason = self._auto(checkpoint)
        else:
            wanted, source = _native(checkpoint) if asked == "native" else (asked, f"DTYPE={asked}")
            dtype, reason = self._possible(wanted, source, checkpoint)
            if dtype != wanted:
                log.warning("dtype %s instead of %s: %s", dtype, wanted, reason)
        kept = _kept_in_float32(checkpoint) if dtype == "float16" else {}
        for name, why in kept.items():
            log.info("dtype of %s: float32 instead of float16: %s", name, why)
        return DtypeChoice(dtype, reason, dict.fromkeys(kept, "float32"), kept)

    def _auto(self, checkpoint: Checkpoint) -> tuple[str, str]:
        device = self.device
        if device.kind == "cpu":
            short = _native(checkpoint)[0] in ("bfloat16", "float16")
            large = checkpoint.kind == "language_model" and checkpoint.bytes >= LARGE
            if large and short and device.bfloat16:
                return "bfloat16", "this CPU computes in it, and the weights are stored as short"
            has = "has" if device.bfloat16 else "lacks"
            return (
                "float32",
                (
                    f"right on every CPU; DTYPE=bfloat16 halves the memory, and this CPU {has} it"
                    " in hardware"
                ),
            )
        if device.kind == "mps":
            return "float16", "Metal's kernels are complete in float16"
        if device.bfloat16:
            return "bfloat16", f"{device.name} computes in bfloat16"
        return "float16", f"{device.name} has no bfloat16{_capability(device)}"

    def _possible(self, wanted: str, source: str, checkpoint: Checkpoint) -> tuple[str, str]:
        """`wanted` if the device computes in it, else the nearest that it does."""
        device = self.device
        if wanted not in COMPUTE:
            dtype, _ = self._auto(checkpoint)
            return dtype, f"{source}, which is a storage type only"
        if device.kind == "cpu" and wanted == "float16":
            instead = "bfloat16" if device.bfloat16 else "float32"
            return (
                instead,
                f"{source}, but CPUs emulate float16: a convolution takes a hundred times as long",
            )
        if device.kind == "cpu" and wanted == "bfloat16" and not device.bfloat16:
            return wanted, f"{source}; slow here: {device.name} has neither AMX nor AVX512-BF16"
        if wanted == "bfloat16" and not device.bfloat16:
            return "float16", f"{source}, but {device.name} has no bfloat16{_capability(device)}"
        return wanted, source


def _native(checkpoint: Checkpoint) -> tuple[str, str]:
    """The type that most elements of the denoiser, or else of the whole checkpoint, are stored
    in."""
    main = next(
        (
            one
            for one in checkpoint.weighted
            if one.name in ("transformer", "unet", "denoiser", "model")
        ),
        None,
    )
    counts = {
        name: n
        for name, n in (main.dtypes if main else checkpoint.dtypes).items()
        if name.startswith(("f", "b"))
    }
    if not counts:
        return "float32", "DTYPE=native, but the headers name no floating-point type"
    dtype = max(counts, key=lambda name: counts[name])
    where = f"{main.name}'s headers" if main else "the headers"
    others = sorted(set(checkpoint.dtypes) - {dtype})
    mixed = f" (also {', '.join(others)} in the checkpoint)" if others else ""
    return dtype, f"DTYPE=native: {where} say {dtype}{mixed}"


def _kept_in_float32(checkpoint: Checkpoint) -> dict[str, str]:
    """VAEs that overflow in float16 and say so in their configuration, as SDXL's does."""
    return {
        one.name: f"{one.name}/config.json says force_upcast: this VAE overflows in float16"
        for one in checkpoint.components
        if one.config.get("force_upcast") is True
    }


def _capability(device: Device) -> str:
    return (
        f" (compute capability {device.capability[0]}.{device.capability[1]}, from 8.0 on)"
        if device.capability
        else ""
    )
