"""How large a model's weights are in a given type and quantization: arithmetic on counts from the headers.

Pictures and language models share it: a `Part` is any component with weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from atelier.hardware.activations import Role, Shapes, role, shapes_of
from atelier.hardware.dtypes import BYTES
from atelier.sources.contents import Checkpoint

Quantization = Literal["none", "int8", "nf4", "fp8"]
Placement = Literal["resident", "model_offload", "group_offload"]

QUANTIZED_BYTES: Mapping[Quantization, float] = {"int8": 1 + 1 / 256, "fp8": 1 + 1 / 256, "nf4": 0.5 + 4 / 64}
"""Bytes of one quantized weight: int8 and fp8 add a float scale per output row (rows of at least 1,024 weights), nf4 a
float32 scale per 64 weights (QLoRA, arXiv:2305.14314, section 3; without double quantization)."""

LARGE_ENCODER = 1_000_000_000
"""Parameters from which a text encoder is worth quantizing; CLIP's are not, T5-XXL is."""

GROUP_SHARE = 0.1
"""Of a component that group offload keeps on the device: the block at work and the one on its way. FLUX.1's two
largest blocks are 6 % of it, T5-XXL's 8 %."""


@dataclass(frozen=True)
class Part:
    """A component's weights: elements in all, elements of weight matrices, bytes as stored. `packed` weights come
    quantized from the checkpoint and keep their stored size."""

    name: str
    role: Role
    parameters: int
    linear: int
    stored_bytes: int
    packed: bool = False

    @property
    def quantizable(self) -> bool:
        """Whether QUANTIZATION applies: the denoiser and large text encoders, unless they are packed already."""
        large = self.role == "text_encoder" and self.parameters >= LARGE_ENCODER
        return not self.packed and (self.role == "denoiser" or large)

    def bytes(self, dtype: str, quantization: Quantization) -> int:
        """Bytes on a device, with matrices quantized and everything else in `dtype`."""
        if self.packed:
            return self.stored_bytes
        if quantization == "none" or not self.quantizable:
            return self.parameters * BYTES[dtype]
        packed = math.ceil(self.linear * QUANTIZED_BYTES[quantization])
        return packed + (self.parameters - self.linear) * BYTES[dtype]


@dataclass(frozen=True)
class ModelSizes:
    """All parts of a model. `shapes` says what its arithmetic needs; a language model has none, its engine keeps
    the account of its cache."""

    name: str
    parts: tuple[Part, ...]
    shapes: Shapes | None = None

    def weights(self, dtype_of: Callable[[str], str], quantization: Quantization) -> Footprint:
        """Bytes of each part in a decided form."""
        return Footprint(
            {part.name: part.bytes(dtype_of(part.name), quantization) for part in self.parts},
            {part.name: part.role for part in self.parts},
        )


@dataclass(frozen=True)
class Footprint:
    """Bytes of each part in a decided form."""

    parts: Mapping[str, int]
    roles: Mapping[str, Role]

    @property
    def total(self) -> int:
        """Bytes of all parts: on the device when resident, in RAM when offloaded."""
        return sum(self.parts.values())

    def on_device(self, placement: Placement, roles: set[Role]) -> int:
        """Bytes on the device while parts of these roles are at work: all parts; the largest of these; or two blocks of
        that one (a VAE has no blocks worth moving and stays whole)."""
        if placement == "resident":
            return self.total
        largest = max((size for name, size in self.parts.items() if self.roles[name] in roles), default=0)
        return int(largest * GROUP_SHARE) if placement == "group_offload" and roles != {"vae"} else largest


def sizes_of(checkpoint: Checkpoint) -> ModelSizes:
    """The sizes of a checkpoint that was inspected."""
    parts = tuple(
        Part(one.name, role(one), one.parameters, one.linear, one.bytes, bool(one.quantization))
        for one in checkpoint.weighted
    )
    shapes = None if checkpoint.kind == "language_model" else shapes_of(checkpoint)
    return ModelSizes(checkpoint.path.name, parts, shapes)
