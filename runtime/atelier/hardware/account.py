"""How much memory a model needs: weights in a given type and quantization, and the arithmetic
beside them.

Weights are counts from the headers; pictures and language models share them. The arithmetic of a
picture has one stated formula for each stage: elements x bytes of the compute type, with one factor
that counts how many such arrays are alive at the peak. The factors were counted, not guessed: a
forward pass of each architecture in its published size on torch's meta device, adding up live
storages at every operation (`benchmarks/activations.py` repeats it). Counted, in arrays of the
width named in the formula: UNet of SD 1.5 26.0, of SDXL 15.8; transformers of SD 3.5 medium 13.4,
FLUX.1 17.3, Qwen-Image 14.3; decoders of the SD family 6.0, of Qwen-Image 18.0. The larger of a
kind is used.

Attention is counted as fused (flash or memory-efficient kernels), which keep no score matrix; where
a device has no such kernel, `attention_scores` is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from atelier.hardware.dtypes import BYTES
from atelier.sources.checkpoint.contents import Checkpoint, Component
from atelier.sources.checkpoint.roles import Role, role_of

UNET_ARRAYS = 26
TRANSFORMER_ARRAYS = 18
DECODER_ARRAYS = 6
VIDEO_DECODER_ARRAYS = 18

MARGIN = 1.25
"""Convolution workspaces and what the caching allocator cannot use for fragments."""

ENCODE_BYTES = 384 * 2**20
"""Text encoders: T5-XXL at 512 tokens counted 0.09 GiB, Qwen2.5-VL 7B at 1,024 tokens 0.35 GiB."""

HEAD_WIDTH = 64
"""Width of one attention head where the configuration does not say."""


@dataclass(frozen=True)
class Shapes:
    """What of a model decides its activations.

    `width`: channels of the UNet's first level, or of a transformer's tokens. `cell`: pixels along
    one edge that become one latent or one token. `text_tokens` join the sequence. `decoder_width`:
    channels of the VAE decoder at full resolution. `native_pixels`: what the model draws if not
    told otherwise. `tile_pixels`: one tile of a tiled decode.
    """

    denoiser: Literal["unet", "transformer"]
    width: int
    cell: int
    text_tokens: int
    decoder_width: int
    decoder_arrays: int
    native_pixels: int
    tile_pixels: int = 1024 * 1024

    def denoise_bytes(self, pixels: int, rows: int, itemsize: int) -> int:
        """One call of the denoiser on `rows` pictures of `pixels`; guidance doubles the rows of a
        request."""
        arrays = UNET_ARRAYS if self.denoiser == "unet" else TRANSFORMER_ARRAYS
        return int(MARGIN * rows * self.tokens(pixels) * self.width * itemsize * arrays)

    def decode_bytes(self, pixels: int, pictures: int, itemsize: int) -> int:
        """The VAE decoder at its last level, where a picture is `pixels` cells of `decoder_width`
        channels and more."""
        return int(MARGIN * pictures * pixels * self.decoder_width * itemsize * self.decoder_arrays)

    def attention_scores(self, pixels: int, rows: int, itemsize: int) -> int:
        """The score matrices of one attention layer without a fused kernel: heads x tokens x
        tokens."""
        heads = max(1, self.width // HEAD_WIDTH)
        return rows * heads * self.tokens(pixels) ** 2 * itemsize

    def tokens(self, pixels: int) -> int:
        """Latent cells of a UNet, or sequence length of a transformer."""
        return pixels // self.cell**2 + self.text_tokens


def shapes_of(checkpoint: Checkpoint) -> Shapes:
    """Read the shapes from the configurations of denoiser and VAE.

    A single file has no configuration: it is taken for the largest of its kind that is distributed
    so, SDXL for a UNet and FLUX.1 for a transformer.
    """
    denoiser = denoiser_of(checkpoint)
    vae = next((one for one in checkpoint.components if role_of(one.name) == "vae"), None)
    factor, decoder_width, arrays, tile = _vae(vae.config if vae else {}, vae is not None)
    config = denoiser.config if denoiser else {}
    unet = "UNet" in (denoiser.class_name if denoiser else "") or _is_single_unet(checkpoint)
    if unet:
        width, patch, text = int(_first(config, ("block_out_channels",), [320])[0]), 1, 0
    else:
        heads, head_width = config.get("num_attention_heads"), config.get("attention_head_dim")
        known = heads * head_width if isinstance(heads, int) and isinstance(head_width, int) else 0
        width = known or int(_first(config, ("hidden_size", "inner_dim", "dim"), 3072))
        patch, text = _patch(config), int(_first(config, ("text_len", "max_text_seq_length"), 512))
    sample = _first(config, ("sample_size",), 0)
    edge = (sample if isinstance(sample, int) else min(sample)) * factor or 1024
    kind: Literal["unet", "transformer"] = "unet" if unet else "transformer"
    return Shapes(
        kind, width, factor * patch, text, decoder_width, arrays, edge * edge, tile * tile
    )


def denoiser_of(checkpoint: Checkpoint) -> Component | None:
    """The largest component that denoises."""
    found = [one for one in checkpoint.weighted if role_of(one.name) == "denoiser"]
    return max(found, key=lambda one: one.parameters, default=None)


def _patch(config: Mapping[str, Any]) -> int:
    """Latents along one edge of a token. FLUX and its kin pack 2 x 2 latents in the pipeline and
    state patch_size 1."""
    stated = _first(config, ("patch_size", "all_patch_size"), 2)
    stated = stated[-1] if isinstance(stated, (list, tuple)) else stated
    packed = stated == 1 and int(_first(config, ("in_channels",), 0)) >= 64
    return 2 if packed else max(1, int(stated))


def _vae(config: Mapping[str, Any], there: bool) -> tuple[int, int, int, int]:
    """Pixels per latent along one edge, decoder channels at full resolution, its factor, and a
    tile's edge."""
    if not there:
        return 1, 3, 1, 1024
    if "temperal_downsample" in config:
        return (
            2 ** len(config["temperal_downsample"]),
            int(config.get("base_dim", 96)),
            VIDEO_DECODER_ARRAYS,
            256,
        )
    channels = _first(
        config, ("block_out_channels", "decoder_block_out_channels"), [128, 256, 512, 512]
    )
    tile = _first(config, ("sample_size",), 1024)
    return (
        2 ** (len(channels) - 1),
        int(channels[0]),
        DECODER_ARRAYS,
        tile if isinstance(tile, int) else max(tile),
    )


def _is_single_unet(checkpoint: Checkpoint) -> bool:
    return checkpoint.kind == "single_file" and checkpoint.pipeline_class.startswith(
        ("StableDiffusionPipeline", "StableDiffusionXL", "StableDiffusionInpaint")
    )


def _first(config: Mapping[str, Any], names: tuple[str, ...], default: Any) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), default)


Quantization = Literal["none", "int8", "nf4", "fp8"]
Placement = Literal["resident", "model_offload", "group_offload"]

QUANTIZED_BYTES: Mapping[Quantization, float] = {
    "int8": 1 + 1 / 256,
    "fp8": 1 + 1 / 256,
    "nf4": 0.5 + 4 / 64,
}
"""Bytes of one quantized weight: int8 and fp8 add a float scale per output row (rows of at least
1,024 weights), nf4 a float32 scale per 64 weights (QLoRA, arXiv:2305.14314, section 3; without
double quantization)."""

LARGE_ENCODER = 1_000_000_000
"""Parameters from which a text encoder is worth quantizing; CLIP's are not, T5-XXL is."""

GROUP_SHARE = 0.1
"""Of a component that is whole on the device where group offload or sharding brings its blocks: the
one at work and the one on its way. FLUX.1's two largest blocks are 6 % of it, T5-XXL's 8 %."""


@dataclass(frozen=True)
class WeightedPart:
    """A component's weights: elements in all, elements of weight matrices, bytes as stored.
    `packed` weights come quantized from the checkpoint and keep their stored size."""

    name: str
    role: Role
    parameters: int
    linear: int
    stored_bytes: int
    packed: bool = False

    @property
    def quantizable(self) -> bool:
        """Whether QUANTIZATION applies: the denoiser and large text encoders, unless they are
        packed already."""
        large = self.role == "text_encoder" and self.parameters >= LARGE_ENCODER
        return not self.packed and (self.role == "denoiser" or large)

    @property
    def shardable(self) -> bool:
        """Whether the devices of a group may hold a share of it each: what is worth quantizing is
        worth cutting, but for a language model that writes (GLM-Image's): its cache stays on one
        device."""
        return self.quantizable and (self.role == "denoiser" or "text_encoder" in self.name)

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
    """All parts of a model. `shapes` says what its arithmetic needs; a language model has none, its
    engine keeps the account of its cache."""

    name: str
    parts: tuple[WeightedPart, ...]
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

    def cut(self, names: Iterable[str], ranks: int) -> Footprint:
        """What one of `ranks` devices holds where each has a share of the named parts."""
        shares = {name: -(-self.parts[name] // ranks) for name in names}
        return Footprint({**self.parts, **shares}, self.roles)

    @property
    def total(self) -> int:
        """Bytes of all parts: on the device when resident, in RAM when offloaded."""
        return sum(self.parts.values())

    def on_device(self, placement: Placement, roles: set[Role]) -> int:
        """Bytes on the device while parts of these roles are at work: all parts; the largest of
        these; or two blocks of that one (a VAE has no blocks worth moving and stays whole)."""
        if placement == "resident":
            return self.total
        largest = max(
            (size for name, size in self.parts.items() if self.roles[name] in roles), default=0
        )
        return (
            int(largest * GROUP_SHARE)
            if placement == "group_offload" and roles != {"vae"}
            else largest
        )


def sizes_of(checkpoint: Checkpoint) -> ModelSizes:
    """The sizes of a checkpoint that was inspected."""
    parts = tuple(
        WeightedPart(
            one.name,
            role_of(one.name),
            one.parameters,
            one.linear,
            one.bytes,
            bool(one.quantization),
        )
        for one in checkpoint.weighted
    )
    shapes = None if checkpoint.kind == "language_model" else shapes_of(checkpoint)
    return ModelSizes(checkpoint.path.name, parts, shapes)
