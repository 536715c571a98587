"""From a fitting arrangement to a finished plan: every remaining switch, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from atelier.hardware.dtypes import BYTES
from atelier.hardware.fit import GUIDED_ROWS, Fit, Load, may_shard
from atelier.hardware.plan import MemoryPlan
from atelier.settings import Switch
from atelier.units import gib

COMPILE_CAPABILITY = (7, 0)
"""The least compute capability Triton generates code for."""

Decision = tuple[bool, str]


def complete(fit: Fit, passed_over: Sequence[Fit]) -> MemoryPlan:
    """The plan for the arrangement `fit`; `passed_over` are the preferred ones that do not fit."""
    wishes, device = fit.wishes, fit.device
    tiling = _switch("ENABLE_VAE_TILING", wishes.vae_tiling, _tiling(fit))
    rows, rows_reason = _rows(fit, tiling[0])
    slicing = _switch("ENABLE_VAE_SLICING", wishes.vae_slicing, _slicing(fit, tiling[0], rows))
    attention = _switch(
        "ENABLE_ATTENTION_SLICING", wishes.attention_slicing, _attention_slicing(fit)
    )
    low_cpu_mem = _switch(
        "ENABLE_LOW_CPU_MEM", wishes.low_cpu_mem, (True, "no second copy of the weights in RAM")
    )
    compiled, compile_reason = _compile(fit)
    attention_backend, attention_reason = _attention_backend(fit)
    worst = fit.worst(Load(fit.native_pixels, rows, 1 if slicing[0] else rows, tiling[0]))
    largest = fit.largest_picture(tiling[0])
    reasons = {
        "dtype": wishes.dtype_reason,
        **{f"dtype of {name}": why for name, why in wishes.component_reasons.items()},
        "device": _device(fit),
        "placement": _placement(fit, passed_over),
        "quantization": _quantization(fit, passed_over),
        **({"sharding": _sharding(fit, passed_over)} if wishes.ranks > 1 else {}),
        "low_cpu_mem": low_cpu_mem[1],
        "vae_slicing": slicing[1],
        "vae_tiling": tiling[1],
        "attention_slicing": attention[1],
        "attention_backend": attention_reason,
        "compile": compile_reason,
        "max_rows": rows_reason,
        "max_pixels": _max_pixels(fit, largest),
    }
    return MemoryPlan(
        model=fit.sizes.name,
        device=device.torch_device,
        dtype=wishes.dtype,
        placement=fit.placement,
        quantization=fit.quantization,
        quantization_backend=fit.backend,
        low_cpu_mem=low_cpu_mem[0],
        vae_slicing=slicing[0],
        vae_tiling=tiling[0],
        attention_slicing=attention[0],
        attention_backend=attention_backend,
        compile=compiled,
        max_rows=rows,
        max_pixels=largest,
        weights_bytes=worst.weights,
        activation_bytes=worst.activations,
        headroom_bytes=fit.budget - worst.total,
        budget_bytes=fit.budget,
        component_dtypes=dict(wishes.component_dtypes),
        component_bytes=dict(fit.held.parts),
        quantized=_quantized(fit),
        sharded=fit.sharded,
        reserved_bytes=dict(wishes.reserved),
        reasons=reasons,
    )


def _switch(variable: str, wish: Switch, automatic: Decision) -> Decision:
    """An explicit wish always wins."""
    return automatic if wish == "auto" else (wish == "true", f"asked by {variable}={wish}")


def _device(fit: Fit) -> str:
    device = fit.device
    slice_of = "MIG slice, " if device.mig else ""
    return f"{device.name}: {slice_of}{gib(device.free_bytes)} free of {gib(device.total_bytes)}"


def _placement(fit: Fit, passed_over: Sequence[Fit]) -> str:
    if fit.device.kind in ("cpu", "mps"):
        asked = (
            "; ENABLE_CPU_OFFLOAD=true has no effect here"
            if fit.wishes.cpu_offload == "true"
            else ""
        )
        return f"weights and arithmetic share one memory{asked}"
    if fit.wishes.cpu_offload != "auto":
        asked = f"asked by ENABLE_CPU_OFFLOAD={fit.wishes.cpu_offload}"
        if fit.placement != "group_offload":
            return asked
        return f"{asked}; the largest component does not fit whole"
    if fit.placement == "resident":
        held = "its share of the weights" if fit.is_sharded else "all weights"
        return f"{held} ({gib(fit.held.total)}) {'fits' if fit.is_sharded else 'fit'}"
    resident = next(one for one in passed_over if one.placement == "resident")
    short = (
        f"{gib(resident.shortage)} short with all weights ({gib(resident.footprint.total)}) on the"
        " device"
    )
    if fit.placement == "model_offload":
        return f"{short}; the largest component fits alone"
    return (
        f"{short}, and the largest component does not fit whole; slow: set QUANTIZATION=auto to"
        " avoid it"
    )


def _quantization(fit: Fit, passed_over: Sequence[Fit]) -> str:
    if fit.wishes.quantization != "auto":
        return (
            "default" if fit.quantization == "none" else f"asked by QUANTIZATION={fit.quantization}"
        )
    if fit.quantization == "none":
        return (
            "QUANTIZATION=auto: not needed"
            if fit.placement != "group_offload"
            else "QUANTIZATION=auto: none helps"
        )
    plain = min(one.shortage for one in passed_over if one.quantization == "none")
    return f"QUANTIZATION=auto: {gib(plain)} short without"


def _sharding(fit: Fit, passed_over: Sequence[Fit]) -> str:
    if (wish := fit.wishes.shard_weights) != "auto":
        return f"asked by SHARD_WEIGHTS={wish}"
    if not fit.is_sharded:
        if not may_shard(fit.wishes):
            return "not for weights that are quantized or blocks that are compiled"
        return "not needed" if fit.quantization == "none" else "does not suffice"
    whole = passed_over[0]
    lacking = (
        f"{gib(whole.shortage)} short with all weights ({gib(whole.footprint.total)}) on one device"
        if whole.shortage > 0
        else "the other devices lack room for all weights"
    )
    return (
        f"{lacking}; each of {fit.wishes.ranks} holds a share of {' and '.join(fit.sharded)}, whose"
        " blocks are gathered while they compute"
    )


def _quantized(fit: Fit) -> tuple[str, ...]:
    return (
        tuple(part.name for part in fit.sizes.parts if part.quantizable)
        if fit.quantization != "none"
        else ()
    )


def _tiling(fit: Fit) -> Decision:
    return _decoding(
        fit, Load(fit.wishes.pixels, 1, 1, False), f"decoding {fit.wishes.pixels:,} pixels whole"
    )


def _slicing(fit: Fit, tiled: bool, rows: int) -> Decision:
    return _decoding(
        fit, Load(fit.native_pixels, 1, rows, tiled), f"decoding {rows} pictures at once"
    )


def _decoding(fit: Fit, load: Load, doing: str) -> Decision:
    """Whether a decode must be cut up, and the figures that say so."""
    decode = fit.stages(load)[-1]
    lacking = decode.total - fit.budget
    if lacking <= 0:
        return False, f"{doing} needs {gib(decode.activations)}, which is free"
    return True, f"{doing} needs {gib(decode.activations)}, {gib(lacking)} more than is free"


def _attention_slicing(fit: Fit) -> Decision:
    shapes = fit.sizes.shapes
    if fit.device.kind != "mps" or shapes is None:
        return False, "fused attention keeps no score matrix"
    need = shapes.attention_scores(fit.native_pixels, GUIDED_ROWS, BYTES[fit.wishes.dtype])
    room = fit.budget - fit.footprint.total
    return (
        need > room // 2,
        f"score matrices need {gib(need)} without slicing, {gib(room)} are free",
    )


def _attention_backend(fit: Fit) -> tuple[str, str]:
    if (wish := fit.wishes.attention_backend) != "auto":
        return wish, "ATTENTION_BACKEND"
    return (
        "native",
        "torch's own fused attention, as fast as FlashAttention-3 on an H200 when measured",
    )


def _rows(fit: Fit, tiled: bool) -> tuple[int, str]:
    """The largest batch that fits at the native size."""
    most = fit.wishes.rows
    for rows in range(most, 0, -1):
        if fit.short_of(Load(fit.native_pixels, rows, 1, tiled)) <= 0:
            return (
                rows,
                (
                    "MAX_BATCH_SIZE"
                    if rows == most
                    else f"memory allows no more of MAX_BATCH_SIZE={most}"
                ),
            )
    raise AssertionError("an arrangement without room for one row is never completed")


def _max_pixels(fit: Fit, largest: int) -> str:
    if fit.sizes.shapes is None:
        return "a language model draws no pictures"
    return (
        "MAX_PIXELS"
        if largest == fit.wishes.pixels
        else f"MAX_PIXELS={fit.wishes.pixels} would not fit"
    )


def _compile(fit: Fit) -> tuple[Literal["off", "regional", "full"], str]:
    wish, device = fit.wishes.compile, fit.device
    if wish != "auto":
        return wish, f"asked by COMPILE={wish}"
    if device.kind != "cuda":
        return "off", f"no gain that pays for compiling on {device.kind}"
    if device.capability is not None and device.capability < COMPILE_CAPABILITY:
        return "off", "Triton needs compute capability 7.0"
    if fit.placement != "resident":
        return "off", "offload hooks break the graph at every block"
    if fit.is_sharded:
        return "off", "gathering weights breaks the graph at every block"
    if fit.backend == "bitsandbytes":
        return "off", "bitsandbytes breaks the graph at every matrix"
    if fit.sizes.shapes is None:
        return "off", "the text engine compiles by itself"
    return "regional", "repeated blocks, compiled once"
