"""The residual blocks of U-Nets, control nets and VAEs with fewer passes over the picture.

As diffusers writes them, torch reads and writes the whole picture for each of: the bias of a
convolution, the time embedding, the norm, SiLU, the sum of both branches. Here a norm does what
comes before and behind it (`images/group_norm.py`), and pictures lie with channels last, as tensor
cores read them, so that no convolution turns them around.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def fuse(module: nn.Module) -> int:
    """Change the residual blocks of `module`, and the norms and layouts around them; the number of
    blocks changed. Results differ by rounding alone. Adapters may be loaded before or after."""
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    children = list(_layers(module))
    blocks = residual_blocks(module)
    if not blocks:
        return 0
    for block in blocks:
        block.forward = MethodType(_residual_block, block)
    for child in children:
        if isinstance(child, nn.Conv2d):
            weight = child.weight
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        elif type(child) is nn.GroupNorm and child.affine:
            child.forward = MethodType(_norm_alone, child)  # type: ignore[method-assign]
        elif isinstance(child, Transformer2DModel):
            child._get_output_for_continuous_inputs = MethodType(_picture_of_tokens, child)
    return len(blocks)


def residual_blocks(module: nn.Module) -> list[Any]:
    """Those inside `module` that can be fused."""
    from diffusers.models.resnet import ResnetBlock2D

    return [one for one in _layers(module) if isinstance(one, ResnetBlock2D) and _is_plain(one)]


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The module and all inside it but the layers of adapters, which PEFT keeps by name: DoRA needs
    them as they lie."""
    yield module
    if not isinstance(module, nn.ModuleDict):
        for child in module.children():
            yield from _layers(child)


def _is_plain(block: Any) -> bool:
    """Whether the block is what `_residual_block` computes: nearly all are."""
    return (
        block.time_embedding_norm != "scale_shift"
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.norm1.affine
        and block.norm2.affine
        and block.upsample is None
        and block.downsample is None
        and block.output_scale_factor == 1
    )


def _residual_block(
    block: Any, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """What `ResnetBlock2D.forward` computes; it ignores further arguments too."""
    values = _norm(block.norm1, input_tensor, silu=True)
    values, before = _convolved(block.conv1, values)
    if temb is not None and block.time_emb_proj is not None:
        temb = temb if block.skip_time_act else functional.silu(temb)
        temb = block.time_emb_proj(temb)
    if temb is not None and block.time_embedding_norm == "default":
        before = _both(temb, before)
    values = _norm(block.norm2, values, before, silu=True)
    values, bias = _convolved(block.conv2, block.dropout(values))
    if block.conv_shortcut is not None:
        input_tensor, further = _convolved(block.conv_shortcut, input_tensor)
        bias = _both(bias, further)
    return _sum(input_tensor, values, bias)


def _both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum of those that there are."""
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _norm_alone(norm: nn.GroupNorm, values: Tensor) -> Tensor:
    return _norm(norm, values, silu=False)


def _picture_of_tokens(
    transformer: Any,
    hidden_states: Tensor,
    residual: Tensor,
    batch_size: int,
    height: int,
    width: int,
    inner_dim: int,
) -> Tensor:
    """What `Transformer2DModel` does behind its blocks; tokens become a picture where they lie."""
    linear = transformer.use_linear_projection
    if linear:
        hidden_states = transformer.proj_out(hidden_states)
    picture = hidden_states.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)
    return (picture if linear else transformer.proj_out(picture)) + residual


def _convolved(conv: Any, values: Tensor) -> tuple[Tensor, Tensor | None]:
    """The convolution, and the bias that the next operation has to add. What an adapter or a hook
    put in the place of a plain one runs whole."""
    plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and "forward" not in vars(conv)
    if not plain:
        return conv(values), None
    how = (conv.stride, conv.padding, conv.dilation, conv.groups)
    return functional.conv2d(values, conv.weight, None, *how), conv.bias


def _norm(
    norm: nn.GroupNorm, values: Tensor, before: Tensor | None = None, *, silu: bool
) -> Tensor:
    """Group norm of `values + before`, the latter of shape (rows, channels) or (channels)."""
    before = None if before is None else before.expand(len(values), -1)
    how = (norm.num_groups, norm.weight, norm.bias, norm.eps)
    if not values.is_cuda:
        added = values if before is None else values + before[:, :, None, None]
        normed = functional.group_norm(added, *how)
        return functional.silu(normed) if silu else normed
    from atelier.images.group_norm import group_norm

    normed = group_norm(_channels_last(values), *how, before, silu)
    return normed.transpose(1, 2).unflatten(2, values.shape[2:])


def _sum(one: Tensor, other: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return one + other
    if not one.is_cuda:
        return one + other + bias[:, None, None]
    from atelier.images.group_norm import summed

    total = summed(_channels_last(one), _channels_last(other), bias)
    return total.transpose(1, 2).unflatten(2, one.shape[2:])


def _channels_last(values: Tensor) -> Tensor:
    """(rows, channels, ...) as (rows, places, channels): a view of a picture that lies so."""
    return values.flatten(2).transpose(1, 2).contiguous()
