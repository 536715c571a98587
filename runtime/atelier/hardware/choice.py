"""The memory plan: where weights lie, in which form, and what is sliced, from header sizes against
free memory.

`plan` is a pure function of sizes, device and wishes; `OptimizationManager` collects these and logs
the result. Applying a plan to a pipeline is the loader's work. Order of preference: everything on
the device; whole components in RAM until they are needed (same pictures, a transfer per stage);
quantization, if QUANTIZATION allows; blocks in RAM (a transfer per block and step). In a group:
everything on every device; a share of it on each (same pictures, a transfer per block and step);
quantization.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

from atelier.errors import PlanError
from atelier.hardware.account import ModelSizes, Quantization, sizes_of
from atelier.hardware.conditioning import conditioning_bytes
from atelier.hardware.dtypes import DtypeSelector
from atelier.hardware.fit import Fit, may_shard, options
from atelier.hardware.followers import check_kin, with_followers
from atelier.hardware.machine import Device
from atelier.hardware.plan import MEMORY_FRACTION, MemoryPlan, Wishes
from atelier.hardware.switches import complete
from atelier.settings import Settings
from atelier.sources.checkpoint.classifier import classifiers
from atelier.sources.checkpoint.contents import Checkpoint
from atelier.sources.conditioning import Conditioning
from atelier.units import gib

__all__ = ["MemoryPlan", "OptimizationManager", "Wishes", "plan"]

log = logging.getLogger(__name__)

NEEDED: dict[Quantization, frozenset[str]] = {
    "fp8": frozenset(),
    "int8": frozenset({"torchao", "bitsandbytes"}),
    "nf4": frozenset({"bitsandbytes"}),
}
"""Packages of which one must be there, most exact quantization first; fp8 needs none."""


class OptimizationManager:
    """Makes the plan for a checkpoint on a device, with what draws beside it (`conditioning`);
    `others` are the devices of the same group."""

    def __init__(
        self,
        device: Device,
        settings: Settings,
        others: Sequence[Device] = (),
        conditioning: Conditioning | None = None,
    ) -> None:
        self.device = device
        self.settings = settings
        self.others = others
        self.conditioning = conditioning or Conditioning()

    def plan(self, checkpoint: Checkpoint) -> MemoryPlan:
        """Choose the type, weigh the checkpoint, plan and log the plan as a table.

        Raises:
            PlanError: nothing fits; the message says what is short and what would fit.
        """
        made = plan(sizes_of(checkpoint), self.device, self.wishes(checkpoint), self.others)
        log.info("%s", made.table())
        return made

    def wishes(self, checkpoint: Checkpoint) -> Wishes:
        """The settings as wishes, with the type chosen for this checkpoint."""
        settings, choice = (
            self.settings,
            DtypeSelector(self.device, self.settings).select(checkpoint),
        )
        return Wishes(
            dtype=choice.dtype,
            dtype_reason=choice.reason,
            component_dtypes=choice.components,
            component_reasons=choice.component_reasons,
            quantization=settings.quantization,
            low_cpu_mem=settings.enable_low_cpu_mem,
            attention_slicing=settings.enable_attention_slicing,
            vae_slicing=settings.enable_vae_slicing,
            vae_tiling=settings.enable_vae_tiling,
            cpu_offload=settings.enable_cpu_offload,
            shard_weights=settings.shard_weights,
            compile=settings.compile,
            attention_backend=settings.attention_backend,
            memory_fraction=settings.memory_fraction or MEMORY_FRACTION,
            pixels=settings.max_pixels,
            rows=settings.max_batch_size,
            ranks=settings.sequence_parallel_size,
            reserved={
                **{name: one.bytes for name, one in classifiers(settings).items()},
                **conditioning_bytes(self.conditioning, checkpoint, choice.dtype),
            },
            packages=frozenset(
                name for name in ("bitsandbytes", "torchao") if importlib.util.find_spec(name)
            ),
        )


def plan(
    sizes: ModelSizes, device: Device, wishes: Wishes, others: Sequence[Device] = ()
) -> MemoryPlan:
    """The first arrangement, in order of preference, that fits; see the module's first lines.
    `others` are the further devices of a group.

    Raises:
        PlanError: none fits, or QUANTIZATION cannot be had on this device or without a package that
            is missing.
    """
    check_kin(device, others)
    if wishes.shard_weights == "true" and not any(part.shardable for part in sizes.parts):
        raise PlanError(
            f"SHARD_WEIGHTS=true: the weights of {sizes.name} are packed already, and such weights"
            " cannot be cut; set it to auto"
        )
    fits = [Fit(sizes, device, wishes, *option) for option in options(device, wishes)]
    refused: PlanError | None = None
    for fit in fits:
        if fit.shortage <= 0:
            made = complete(fit, passed_over=fits[: fits.index(fit)])
            try:
                return with_followers(made, fit, others) if others else made
            except PlanError as error:  # another arrangement may leave the others more room
                refused = error
    raise refused or PlanError(_too_large(min(fits, key=lambda fit: fit.shortage)))


def _too_large(best: Fit) -> str:
    """What is short, by how much, and which settings would make it fit (each is tried, none is
    guessed)."""
    name, device, wishes = best.sizes.name, best.device, best.wishes
    worst, form = (
        best.worst(best.least),
        wishes.dtype if best.quantization == "none" else best.quantization,
    )
    where = (
        "RAM, where offloaded weights lie" if best.host_shortage == best.shortage else device.name
    )
    text = (
        f"{name} does not fit: in {form} with placement {best.placement}{_in_shares(best)} (the"
        f" best of those allowed) its {worst.name} stage needs {gib(worst.weights)} for weights and"
        f" {gib(worst.activations)} for activations; {gib(best.shortage)} short on {where}"
        f" ({gib(device.free_bytes)} free, of which MEMORY_FRACTION={wishes.memory_fraction:g} may"
        f" be used{_besides(wishes)})"
    )
    remedies = [
        remedy for remedy, changed in _remedies(wishes) if _would_fit(best.sizes, device, changed)
    ]
    if remedies:
        return f"{text}. Any one of these makes it fit: {'; '.join(remedies)}"
    enough = gib((worst.total + sum(wishes.reserved.values())) / wishes.memory_fraction)
    return (
        f"{text}. No setting makes it fit: it takes a device with {enough} free, or a smaller model"
    )


def _in_shares(best: Fit) -> str:
    return f" and a share of the weights on each of {best.wishes.ranks}" if best.is_sharded else ""


def _besides(wishes: Wishes) -> str:
    """What else is on the device, by setting."""
    return "".join(f", {gib(size)} of it by {name}" for name, size in wishes.reserved.items())


def _remedies(wishes: Wishes) -> Iterator[tuple[str, Wishes]]:
    """Settings that save memory, mildest first; packages are assumed to be installable."""
    if wishes.vae_tiling == "false":
        yield "ENABLE_VAE_TILING=auto", replace(wishes, vae_tiling="auto")
    if wishes.cpu_offload != "auto":
        yield "ENABLE_CPU_OFFLOAD=auto", replace(wishes, cpu_offload="auto")
    if wishes.ranks > 1:
        alone = replace(wishes, ranks=1, shard_weights="auto")
        yield "SEQUENCE_PARALLEL_SIZE=1, which may offload", alone
        yield from _shares(wishes)
    half = replace(wishes, dtype="bfloat16", component_dtypes={})
    if wishes.dtype == "float32":
        yield "DTYPE=bfloat16", half
    for quantization, needed in NEEDED.items():
        installed = (
            "" if not needed or needed & wishes.packages else " (pip install 'atelier[gpu]')"
        )
        changed = replace(wishes, quantization=quantization, packages=wishes.packages | needed)
        yield f"QUANTIZATION={quantization}{installed}", changed
        if wishes.dtype == "float32":
            both = replace(half, quantization=quantization, packages=wishes.packages | needed)
            yield f"DTYPE=bfloat16 with QUANTIZATION={quantization}{installed}", both


def _shares(wishes: Wishes) -> Iterator[tuple[str, Wishes]]:
    """Sharding, if something forbids it; else more devices."""
    if may_shard(wishes):
        more = 2 * wishes.ranks
        yield f"SEQUENCE_PARALLEL_SIZE={more}, on as many such devices", replace(wishes, ranks=more)
        return
    changes: dict[str, tuple[str, bool]] = {
        "shard_weights": ("SHARD_WEIGHTS=auto", wishes.shard_weights == "false"),
        "quantization": ("QUANTIZATION=none", wishes.quantization != "none"),
        "compile": ("COMPILE=off", wishes.compile not in ("auto", "off")),
    }
    told = " with ".join(words for words, needed in changes.values() if needed)
    open_ = replace(wishes, shard_weights="auto", quantization="none", compile="off")
    yield told, open_


def _would_fit(sizes: ModelSizes, device: Device, wishes: Wishes) -> bool:
    try:
        return any(
            Fit(sizes, device, wishes, *option).shortage <= 0 for option in options(device, wishes)
        )
    except PlanError:  # this quantization cannot be had on this device
        return False
