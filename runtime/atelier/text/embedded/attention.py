"""Attention over the slot cache: query heads that share a key head become query rows, so keys are
never repeated.

Registered with transformers under the name `atelier`. Models pass their mask through; masks are
additive, in the model's dtype, shape rows x 1 x queries x keys, and made once per step by the
runner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "atelier"


@dataclass
class SlotView:
    """Which part of the cache one forward reads and writes.

    `slots` are the rows (None: the first `rows` of the cache), `columns` the positions written,
    rows x queries; `ring_columns` the same for layers that keep their window only. `length` is how
    many columns are read back; 0 means that the rows begin here and attend to themselves alone.
    `lengths`, if given, counts the columns that the last query of each row may read, and lets the
    flash kernel skip the rest. `causal` are the masks of this forward that hide nothing but the
    future: kernels compute those by themselves. `span` are the slots where they
    lie one behind the other.
    """

    rows: int
    slots: Tensor | None
    columns: Tensor
    length: int
    lengths: Tensor | None = None
    ring_columns: Tensor | None = None
    causal: tuple[Tensor, ...] = ()
    span: slice | None = None

    def read(self, part: Tensor, end: int) -> Tensor:
        """The first `end` columns of its slots, of keys or values; of a span without a copy."""
        return part[self.slots if self.span is None else self.span, :, :end]


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    slot_view: SlotView | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Scaled dot product attention; `query` is rows x heads x queries x size, `key` and `value`
    have fewer heads."""
    rows, heads, queries, size = query.shape
    groups = heads // key.shape[1]
    if slot_view is not None and slot_view.lengths is not None:
        out = _flash_decode(query, key, value, slot_view.lengths, scaling)
    elif slot_view is not None and any(attention_mask is mask for mask in slot_view.causal):
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=groups > 1
        )
    elif groups > 1 and slot_view is not None and slot_view.slots is None:
        grouped = query.reshape(rows, heads // groups, groups * queries, size)
        mask = attention_mask
        if mask is not None:  # one for each query head; a single query's needs no copy
            mask = mask[:, :, None].expand(-1, -1, groups, -1, -1).flatten(2, 3)
        out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
        out = out.reshape(rows, heads, queries, value.shape[-1])
    else:
        shared = groups > 1 and query.device.type == "cpu"  # on a GPU not with every mask
        if groups > 1 and not shared:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        causal = attention_mask is None and queries > 1
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attention_mask,
            is_causal=causal,
            scale=scaling,
            enable_gqa=shared,
        )
    return out.transpose(1, 2).contiguous(), None


def _flash_decode(
    query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, scaling: float | None
) -> Tensor:
    """The newest queries of each row, as many in all, against a cache whose rows are laid out
    position by position; `lengths` is int32, one a row. The kernel's causal mask lets the last
    query see them all, the one before one less, and so on."""
    rows, heads, queries, size = query.shape
    columns = key.shape[2]
    key, value = (
        part.transpose(1, 2).reshape(rows * columns, part.shape[1], part.shape[3])
        for part in (key, value)
    )
    starts = torch.arange(rows + 1, dtype=torch.int32, device=query.device)
    out = torch.ops.aten._flash_attention_forward(
        query.transpose(1, 2).reshape(rows * queries, heads, size),
        key,
        value,
        starts * queries,
        starts * columns,
        queries,
        columns,
        0.0,
        queries > 1,
        False,
        scale=scaling,
        seqused_k=lengths,
    )[0]
    return out.view(rows, queries, heads, size).transpose(1, 2)


def register() -> None:
    """Make the implementation known to transformers; safe to call again."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
