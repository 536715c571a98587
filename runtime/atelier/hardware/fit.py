"""Arrangements of a model on a device, and the account of memory of each. Choosing among them is
`memory.py`'s work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from atelier.errors import PlanError
from atelier.hardware.account import (
    ENCODE_BYTES,
    GROUP_SHARE,
    Footprint,
    ModelSizes,
    Placement,
    Quantization,
)
from atelier.hardware.dtypes import BYTES
from atelier.hardware.machine import Device
from atelier.hardware.plan import Wishes
from atelier.sources.checkpoint.roles import Role

GUIDED_ROWS = 2
"""Rows of one guided picture: the least a denoiser call must have room for."""

Backend = Literal["", "bitsandbytes", "torchao", "own"]


@dataclass(frozen=True)
class Load:
    """What is asked of the model at once: rows of the denoiser, pictures decoded together, each of
    `pixels`."""

    pixels: int
    rows: int
    pictures: int
    tiled: bool


@dataclass(frozen=True)
class StageAccount:
    """What lies on the device while one stage of a picture is at work, in bytes."""

    name: Literal["encode", "denoise", "decode"]
    weights: int
    activations: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.weights + self.activations


@dataclass(frozen=True)
class Fit:
    """One arrangement, and the account of its memory."""

    sizes: ModelSizes
    device: Device
    wishes: Wishes
    placement: Placement
    quantization: Quantization
    is_sharded: bool = False

    @property
    def footprint(self) -> Footprint:
        """Bytes of each part's weights in this form."""
        return self.sizes.weights(self.wishes.dtype_of, self.quantization)

    @property
    def sharded(self) -> tuple[str, ...]:
        """The parts that every device of the group holds a share of."""
        shardable = (part.name for part in self.sizes.parts if part.shardable)
        return tuple(shardable) if self.is_sharded else ()

    @property
    def held(self) -> Footprint:
        """Bytes of each part that one device holds."""
        return self.footprint.cut(self.sharded, self.wishes.ranks)

    @property
    def budget(self) -> int:
        """Bytes of the device that the model may use at all."""
        usable = int(self.device.free_bytes * self.wishes.memory_fraction)
        return usable - sum(self.wishes.reserved.values())

    @property
    def native_pixels(self) -> int:
        """The size that the plan reckons with: the model's native one, or the largest allowed if
        that is smaller."""
        return min(self.sizes.shapes.native_pixels, self.wishes.pixels) if self.sizes.shapes else 0

    @property
    def least(self) -> Load:
        """One guided picture at the native size."""
        return Load(self.native_pixels, GUIDED_ROWS, 1, self.wishes.vae_tiling != "false")

    @property
    def host_shortage(self) -> int:
        """Bytes lacking in RAM for offloaded weights."""
        return (
            self.footprint.total - self.device.host_free_bytes
            if self.placement != "resident"
            else 0
        )

    @property
    def shortage(self) -> int:
        """Bytes lacking for the least load, on the device or in RAM; 0 or less: this arrangement
        fits."""
        return max(self.short_of(self.least), self.host_shortage)

    @property
    def backend(self) -> Backend:
        """The package that quantizes."""
        return backend_of(self.quantization, self.device, self.wishes)

    def short_of(self, load: Load) -> int:
        """Bytes lacking on the device for a load; 0 or less: it fits."""
        return self.worst(load).total - self.budget

    def worst(self, load: Load) -> StageAccount:
        """The stage that needs most."""
        return max(self.stages(load), key=lambda stage: stage.total)

    def stages(self, load: Load) -> tuple[StageAccount, StageAccount, StageAccount]:
        """The account: weights by placement, activations by the formulas of `activations.py`."""
        return (
            StageAccount(
                "encode", self._weights({"text_encoder", "image_encoder", "other"}), ENCODE_BYTES
            ),
            StageAccount("denoise", self._weights({"denoiser"}), self._denoise(load)),
            StageAccount("decode", self._weights({"vae"}), self._decode(load)),
        )

    def gathered(self, roles: set[Role]) -> int:
        """Bytes of the blocks that are whole on every device while sharded parts of these roles
        compute."""
        whole = self.footprint
        sizes = [whole.parts[name] for name in self.sharded if whole.roles[name] in roles]
        return int(max(sizes, default=0) * GROUP_SHARE)

    def _weights(self, roles: set[Role]) -> int:
        return self.held.on_device(self.placement, roles) + self.gathered(roles)

    def largest_picture(self, tiled: bool) -> int:
        """Pixels of the largest picture that fits alone: 0: it draws none.

        Every stage grows with the pixels, so the interval is halved.
        """
        if self.sizes.shapes is None:
            return 0
        low, high = 0, self.wishes.pixels
        if self.short_of(Load(high, GUIDED_ROWS, 1, tiled)) <= 0:
            return high
        while high - low > 64 * 64:
            middle = (low + high) // 2
            fits = self.short_of(Load(middle, GUIDED_ROWS, 1, tiled)) <= 0
            low, high = (middle, high) if fits else (low, middle)
        return low

    def _denoise(self, load: Load) -> int:
        shapes, itemsize = self.sizes.shapes, BYTES[self.wishes.dtype]
        if shapes is None:
            return ENCODE_BYTES
        unfused = self.device.kind == "mps" and self.wishes.attention_slicing != "true"
        scores = shapes.attention_scores(load.pixels, load.rows, itemsize) if unfused else 0
        return shapes.denoise_bytes(load.pixels, load.rows, itemsize) + scores

    def _decode(self, load: Load) -> int:
        """The VAE works in its own type. This is also the account of its encoder, which has the
        decoder's widths in reverse and fewer layers, so reading an input picture takes no more."""
        shapes = self.sizes.shapes
        if shapes is None:
            return 0
        vae = next((part.name for part in self.sizes.parts if part.role == "vae"), "vae")
        pixels = min(load.pixels, shapes.tile_pixels) if load.tiled else load.pixels
        return shapes.decode_bytes(pixels, load.pictures, BYTES[self.wishes.dtype_of(vae)])


Arrangement = tuple[Placement, Quantization, bool]
"""Where weights lie, in which form, and whether the devices of a group hold shares of them."""


def options(device: Device, wishes: Wishes) -> Iterator[Arrangement]:
    """Arrangements in order of preference, as far as the wishes allow them.

    Raises:
        PlanError: the wishes contradict each other, or the device.
    """
    if wishes.ranks > 1:
        yield from _group_options(device, wishes)
        return
    if wishes.shard_weights == "true":
        raise PlanError(
            "SHARD_WEIGHTS=true is for a group of devices: set SEQUENCE_PARALLEL_SIZE to their"
            " number, or SHARD_WEIGHTS to auto"
        )
    placements: tuple[Placement, ...] = ("resident", "model_offload", "group_offload")
    if device.kind in ("cpu", "mps") or wishes.cpu_offload == "false":
        placements = ("resident",)
    elif wishes.cpu_offload == "true":
        placements = placements[1:]
    if wishes.quantization != "auto":
        backend_of(wishes.quantization, device, wishes)
        yield from ((placement, wishes.quantization, False) for placement in placements)
        return
    whole = [placement for placement in placements if placement != "group_offload"]
    for quantization in ("none", *_automatic(device, wishes)):
        yield from ((placement, quantization, False) for placement in whole)
    if "group_offload" in placements:
        yield "group_offload", "none", False


def _group_options(device: Device, wishes: Wishes) -> Iterator[Arrangement]:
    """Those of a group, where nothing is offloaded. Shares lose nothing but time, so they come
    before quantization."""
    if wishes.shard_weights == "true" and not may_shard(wishes):
        raise PlanError(
            f"SHARD_WEIGHTS=true with QUANTIZATION={wishes.quantization} and"
            f" COMPILE={wishes.compile}: sharded weights are neither quantized nor compiled; set"
            " QUANTIZATION to none and COMPILE to auto, or SHARD_WEIGHTS to auto"
        )
    asked: Quantization = "none" if wishes.quantization == "auto" else wishes.quantization
    backend_of(asked, device, wishes)
    if wishes.shard_weights != "true":
        yield "resident", asked, False
    if may_shard(wishes):
        yield "resident", "none", True
    if wishes.quantization == "auto" and wishes.shard_weights != "true":
        yield from (("resident", one, False) for one in _automatic(device, wishes))


def may_shard(wishes: Wishes) -> bool:
    """Whether the settings leave it open that devices hold shares of the weights."""
    plain = wishes.quantization in ("none", "auto") and wishes.compile in ("auto", "off")
    return wishes.ranks > 1 and plain and wishes.shard_weights != "false"


def _automatic(device: Device, wishes: Wishes) -> list[Quantization]:
    """Quantizations that QUANTIZATION=auto may take here, most exact first."""
    if device.kind not in ("cuda", "xpu"):
        return []
    usable: list[Quantization] = []
    for one in ("fp8", "int8", "nf4"):
        try:
            backend_of(one, device, wishes)
        except PlanError:
            continue
        usable.append(one)
    return usable


def backend_of(quantization: Quantization, device: Device, wishes: Wishes) -> Backend:
    """What does it here: `images/fp8.py` for fp8; torchao, from compute capability 8.0 on, for
    int8; else bitsandbytes."""
    if quantization == "none":
        return ""
    if quantization == "fp8" and not device.fp8:
        raise PlanError(
            f"QUANTIZATION=fp8 needs compute capability 8.9 or more; {device.name} lacks it: set"
            " int8 or nf4"
        )
    if quantization == "fp8":
        return "own"
    if device.kind == "mps" or (device.kind == "cpu" and quantization != "int8"):
        raise PlanError(
            f"QUANTIZATION={quantization} has no backend on {device.name}: set QUANTIZATION=none"
        )
    torchao_first = device.kind == "cpu" or device.bfloat16
    order: list[Backend] = ["torchao", "bitsandbytes"] if torchao_first else ["bitsandbytes"]
    choices: dict[Quantization, list[Backend]] = {
        "nf4": ["bitsandbytes"],
        "int8": order,
    }
    allowed = choices[quantization]
    for backend in allowed:
        if backend in wishes.packages:
            return backend
    raise PlanError(
        f"QUANTIZATION={quantization} needs {' or '.join(allowed)}, which is not installed: pip"
        " install 'atelier[gpu]'"
    )
