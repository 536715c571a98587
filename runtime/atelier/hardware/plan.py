"""The memory plan's form: what was wished, what was decided, and why, ready to be logged, printed
or sent as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from atelier.hardware.account import Placement, Quantization
from atelier.settings import Switch
from atelier.units import gib

MEMORY_FRACTION = 0.92
"""Share of the device's free memory that a plan uses unless the setting says otherwise."""


@dataclass(frozen=True)
class Wishes:
    """What the settings and the environment bring into a plan. `packages` are the importable ones
    of `bitsandbytes` and `torchao`. `rows` is the largest batch of the denoiser, `pixels` the
    largest picture that may be asked for, `reserved` the bytes by name that others than the model
    take of the device, all the time; `ranks` are the devices that share each denoiser call."""

    dtype: str = "bfloat16"
    dtype_reason: str = "default"
    component_dtypes: Mapping[str, str] = field(default_factory=dict)
    component_reasons: Mapping[str, str] = field(default_factory=dict)
    quantization: Literal["none", "auto", "int8", "nf4", "fp8"] = "none"
    shard_weights: Switch = "auto"
    low_cpu_mem: Switch = "auto"
    attention_slicing: Switch = "auto"
    vae_slicing: Switch = "auto"
    vae_tiling: Switch = "auto"
    cpu_offload: Switch = "auto"
    compile: Literal["auto", "off", "regional", "full"] = "auto"
    attention_backend: str = "auto"
    memory_fraction: float = MEMORY_FRACTION
    pixels: int = 2048 * 2048
    rows: int = 8
    packages: frozenset[str] = frozenset()
    reserved: Mapping[str, int] = field(default_factory=dict)
    ranks: int = 1

    def dtype_of(self, component: str) -> str:
        """The type of one component's weights."""
        return self.component_dtypes.get(component, self.dtype)


@dataclass(frozen=True)
class FollowerAccount:
    """What a device of a group holds that is not the first one: the denoiser, or a share of it and
    of large encoders, and its activations, in bytes, and what is left of what may be used."""

    device: str
    weights_bytes: int
    activation_bytes: int
    headroom_bytes: int


@dataclass(frozen=True)
class MemoryPlan:
    """How a model is put on a device. Each decision has its reason in `reasons` under the field's
    name.

    `max_rows` is the largest denoiser batch at the model's native size, `max_pixels` the largest
    picture that fits alone. `weights_bytes` are what lies on the device at the worst moment,
    `activation_bytes` the working memory of a full batch, `headroom_bytes` what is left of
    `budget_bytes` then; `reserved_bytes` are no part of that budget. `followers` are the other
    devices of a group; of the components in `sharded` each device of it holds a share, and
    `component_bytes` counts the first one's.
    """

    model: str
    device: str
    dtype: str
    placement: Placement
    quantization: Quantization
    quantization_backend: Literal["", "bitsandbytes", "torchao", "own"]
    low_cpu_mem: bool
    vae_slicing: bool
    vae_tiling: bool
    attention_slicing: bool
    attention_backend: str
    compile: Literal["off", "regional", "full"]
    max_rows: int
    max_pixels: int
    weights_bytes: int
    activation_bytes: int
    headroom_bytes: int
    budget_bytes: int
    component_dtypes: Mapping[str, str] = field(default_factory=dict)
    component_bytes: Mapping[str, int] = field(default_factory=dict)
    quantized: tuple[str, ...] = ()
    sharded: tuple[str, ...] = ()
    reserved_bytes: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    followers: tuple[FollowerAccount, ...] = ()

    @property
    def promised_bytes(self) -> int:
        """What the model takes of the device at the worst moment."""
        return self.weights_bytes + self.activation_bytes

    def error_ratio(self, taken_bytes: int) -> float:
        """How far the peak of a run is from the promise, as a share of it: 0.1 is a tenth more. A
        run of smaller pictures or batches than planned for takes less."""
        return taken_bytes / max(1, self.promised_bytes) - 1

    def on(self, device: str) -> MemoryPlan:
        """The same plan on another device of the group."""
        return replace(self, device=device)

    def dtype_of(self, component: str) -> str:
        """The type of one component's weights, quantized matrices aside."""
        return self.component_dtypes.get(component, self.dtype)

    def asdict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        listed = {"quantized": list(self.quantized), "sharded": list(self.sharded)}
        return {**asdict(self), **listed}

    def table(self) -> str:
        """The plan as text: a line for each decision with its reason, then the account of
        memory."""
        decided = [
            ("device", self.device),
            ("dtype", self.dtype),
            *((f"dtype of {name}", dtype) for name, dtype in self.component_dtypes.items()),
            ("placement", self.placement),
            (
                "quantization",
                " ".join(filter(None, (self.quantization, self.quantization_backend))),
            ),
            *([("sharding", _on(bool(self.sharded)))] if "sharding" in self.reasons else []),
            ("low_cpu_mem", _on(self.low_cpu_mem)),
            ("vae_slicing", _on(self.vae_slicing)),
            ("vae_tiling", _on(self.vae_tiling)),
            ("attention_slicing", _on(self.attention_slicing)),
            ("attention_backend", self.attention_backend),
            ("compile", self.compile),
            ("max_rows", str(self.max_rows)),
            ("max_pixels", f"{self.max_pixels:,}"),
        ]
        left, middle = (
            max(len(name) for name, _ in decided),
            max(len(value) for _, value in decided),
        )
        lines = [f"Memory plan for {self.model}"]
        lines += [
            f"  {name:<{left}}  {value:<{middle}}  {self.reasons.get(name, '')}".rstrip()
            for name, value in decided
        ]
        parts = ", ".join(f"{name} {gib(size)}" for name, size in self.component_bytes.items())
        lines.append(f"  weights {gib(self.weights_bytes)} on the device at most ({parts})")
        lines += [f"  {name} {gib(size)}" for name, size in self.reserved_bytes.items()]
        account = f"headroom {gib(self.headroom_bytes)} of {gib(self.budget_bytes)}"
        lines.append(f"  activations {gib(self.activation_bytes)}, {account}")
        held = "shares" if self.sharded else "denoiser"
        lines += [
            f"  rank {rank} on {one.device}: {held} {gib(one.weights_bytes)}, activations"
            f" {gib(one.activation_bytes)}, headroom {gib(one.headroom_bytes)}"
            for rank, one in enumerate(self.followers, start=1)
        ]
        return "\n".join(lines)


def _on(value: bool) -> str:
    return "on" if value else "off"
