"""Group norm of pictures, with what stands before and behind it in one pass, as Triton kernels.

torch's kernel gives each group of a picture to one thread block: of a lone picture 32 of a GPU's
132 multiprocessors work, and at 1024 that was half of the time of a decoder. Here every block takes
a piece of the picture. Pieces depend on the size of the picture alone, so that a row of a batch
comes out as it would alone, to the bit.

Tensors are dense with channels last, (rows, places, channels), which tensor cores want of
convolutions too.
"""

# mypy: allow-untyped-defs
# Kernels are Triton's language, whose types are found when it compiles them.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_PLACES = 64
BLOCK_CHANNELS = 64
PIECES = 256
"""At most so many of one picture, for each block of channels."""

_LENGTHS = ("places", "tiles", "pieces")
"""Arguments that differ from picture to picture: none of their values is worth a compilation."""


@triton.jit(do_not_specialize=_LENGTHS)
def _moments(
    values, moments, places, tiles, pieces, channels, block_p: tl.constexpr, block_c: tl.constexpr
):
    """Mean and sum of squared deviations of each channel in one piece, in float32."""
    piece, row = tl.program_id(0), tl.program_id(2)
    channel = tl.program_id(1) * block_c + tl.arange(0, block_c)
    inside = channel < channels
    first = piece.to(tl.int64) * tiles * block_p
    offsets = first + tl.arange(0, block_p)
    base = values + row.to(tl.int64) * places * channels
    pivot = tl.load(base + first * channels + channel, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((block_c,), tl.float32)
    squares = tl.zeros((block_c,), tl.float32)
    for tile in range(tiles):
        place = offsets + tile * block_p
        here = (place < places)[:, None] & inside[None, :]
        at = base + place[:, None] * channels + channel[None, :]
        apart = tl.load(at, mask=here, other=0.0).to(tl.float32) - pivot[None, :]
        apart = tl.where(here, apart, 0.0)
        total += tl.sum(apart, axis=0)
        squares += tl.sum(apart * apart, axis=0)
    count = tl.minimum(places - first, tiles * block_p).to(tl.float32)
    out = moments + ((row * pieces + piece) * 2).to(tl.int64) * channels + channel
    tl.store(out, pivot + total / count, mask=inside)
    tl.store(out + channels, squares - total * total / count, mask=inside)


@triton.jit(do_not_specialize=_LENGTHS)
def _factors(
    moments,
    weight,
    bias,
    before,
    factors,
    places,
    tiles,
    pieces,
    channels,
    before_stride,
    epsilon,
    shifted: tl.constexpr,
    block_p: tl.constexpr,
    width: tl.constexpr,
    block_w: tl.constexpr,
    block_n: tl.constexpr,
):
    """What each channel of a group is multiplied by, and what is added then."""
    group, row = tl.program_id(0), tl.program_id(1)
    within = tl.arange(0, block_w)
    channel = group * width + within
    inside = within < width
    shift = tl.zeros((block_w,), tl.float32)
    if shifted:
        own = before + row * before_stride + channel
        shift += tl.load(own, mask=inside, other=0.0).to(tl.float32)
    step = tiles * block_p
    base = moments + (row * pieces * 2).to(tl.int64) * channels + channel[None, :]
    sums = tl.zeros((block_n, block_w), tl.float32)
    for start in range(0, pieces, block_n):
        piece = start + tl.arange(0, block_n)
        here = (piece < pieces)[:, None] & inside[None, :]
        mean = tl.load(base + piece[:, None] * 2 * channels, mask=here, other=0.0)
        count = tl.minimum(places - piece * step, step).to(tl.float32)
        sums += tl.where(here, (mean + shift[None, :]) * count[:, None], 0.0)
    middle = tl.sum(tl.sum(sums, axis=1), axis=0) / (places.to(tl.float32) * width)
    squares = tl.zeros((block_n, block_w), tl.float32)
    for start in range(0, pieces, block_n):
        piece = start + tl.arange(0, block_n)
        here = (piece < pieces)[:, None] & inside[None, :]
        at = base + piece[:, None] * 2 * channels
        mean = tl.load(at, mask=here, other=0.0)
        spread = tl.load(at + channels, mask=here, other=0.0)
        count = tl.minimum(places - piece * step, step).to(tl.float32)
        apart = mean + shift[None, :] - middle
        squares += tl.where(here, spread + apart * apart * count[:, None], 0.0)
    variance = tl.sum(tl.sum(squares, axis=1), axis=0) / (places.to(tl.float32) * width)
    scale = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    scale = scale / tl.sqrt(variance + epsilon)
    offset = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    out = factors + row * 2 * channels + channel
    tl.store(out, scale, mask=inside)
    tl.store(out + channels, offset + (shift - middle) * scale, mask=inside)


@triton.jit(do_not_specialize=("places",))
def _scaled(
    values,
    factors,
    out,
    places,
    channels,
    silu: tl.constexpr,
    block_p: tl.constexpr,
    block_c: tl.constexpr,
):
    row = tl.program_id(2)
    channel = tl.program_id(1) * block_c + tl.arange(0, block_c)
    place = tl.program_id(0).to(tl.int64) * block_p + tl.arange(0, block_p)
    here = (place < places)[:, None] & (channel < channels)[None, :]
    at = row.to(tl.int64) * places * channels + place[:, None] * channels + channel[None, :]
    own = factors + row * 2 * channels + channel
    scale = tl.load(own, mask=channel < channels, other=0.0)
    offset = tl.load(own + channels, mask=channel < channels, other=0.0)
    value = tl.load(values + at, mask=here, other=0.0).to(tl.float32)
    value = value * scale[None, :] + offset[None, :]
    if silu:
        value = value * tl.sigmoid(value)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=("places",))
def _summed(one, other, bias, out, places, channels, block_p: tl.constexpr, block_c: tl.constexpr):
    channel = tl.program_id(1) * block_c + tl.arange(0, block_c)
    place = tl.program_id(0).to(tl.int64) * block_p + tl.arange(0, block_p)
    here = (place < places)[:, None] & (channel < channels)[None, :]
    at = place[:, None] * channels + channel[None, :]
    added = tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    value = tl.load(one + at, mask=here, other=0.0).to(tl.float32)
    value += tl.load(other + at, mask=here, other=0.0).to(tl.float32) + added[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), mask=here)


@torch.library.custom_op("atelier::group_norm", mutates_args=(), device_types="cuda")
def group_norm(
    values: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    before: Tensor | None,
    silu: bool,
) -> Tensor:
    """Group norm of `values + before`, then SiLU if `silu`.

    Args:
        values: (rows, places, channels), dense.
        weight: (channels), as `bias`.
        before: (rows, channels); the stride of a row may be 0, that of a channel is 1.

    Returns:
        The same shape and type; all arithmetic is in float32.
    """
    rows, places, channels = values.shape
    out = torch.empty_like(values)
    tiles = triton.cdiv(places, BLOCK_PLACES * PIECES)
    pieces = triton.cdiv(places, BLOCK_PLACES * tiles)
    blocks = triton.cdiv(channels, BLOCK_CHANNELS)
    width = channels // groups
    new = values.new_empty
    moments = new((rows, pieces, 2, channels), dtype=torch.float32)
    factors = new((rows, 2, channels), dtype=torch.float32)
    _moments[(pieces, blocks, rows)](
        values,
        moments,
        places,
        tiles,
        pieces,
        channels,
        block_p=BLOCK_PLACES,
        block_c=BLOCK_CHANNELS,
    )
    block_w = triton.next_power_of_2(width)
    _factors[(groups, rows)](
        moments,
        weight,
        bias,
        bias if before is None else before,
        factors,
        places,
        tiles,
        pieces,
        channels,
        0 if before is None else before.stride(0),
        epsilon,
        shifted=before is not None,
        block_p=BLOCK_PLACES,
        width=width,
        block_w=block_w,
        block_n=max(1, 2048 // block_w),
    )
    _scaled[(triton.cdiv(places, BLOCK_PLACES), blocks, rows)](
        values,
        factors,
        out,
        places,
        channels,
        silu=silu,
        block_p=BLOCK_PLACES,
        block_c=BLOCK_CHANNELS,
    )
    return out


@torch.library.custom_op("atelier::summed", mutates_args=(), device_types="cuda")
def summed(one: Tensor, other: Tensor, bias: Tensor) -> Tensor:
    """`one + other + bias`, the first two (rows, places, channels) and dense, the last
    (channels)."""
    channels = one.shape[-1]
    places = one.numel() // channels
    out = torch.empty_like(one)
    grid = triton.cdiv(places, BLOCK_PLACES), triton.cdiv(channels, BLOCK_CHANNELS)
    _summed[grid](
        one,
        other,
        bias,
        out,
        places,
        channels,
        block_p=BLOCK_PLACES,
        block_c=BLOCK_CHANNELS,
    )
    return out


@group_norm.register_fake
@summed.register_fake
def _like_the_first(first: Tensor, *others: object) -> Tensor:
    """What torch.compile has to know of both: shape and type of the result."""
    return torch.empty_like(first)
