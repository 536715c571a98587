"""Large weight matrices of a language model on a CPU, laid out once as its kernels read them.

A plain product of a few rows with such a matrix reads it against its grain. oneDNN's layout is for
the dtype that the model computes in. In float32 a matrix whose numbers float16 has too, as those of
a checkpoint that was stored in 16 bits, is held in float16 and multiplied in float32 (FBGEMM): half
the memory, or two thirds where FBGEMM fills up to 512 columns, and nothing is rounded.

For eight rows of Gemma 3 270M a layer of 2,048 x 640 takes 0.20 ms in float16, 0.31 in oneDNN's
layout and 0.56 plain, for 512 rows 9.5, 8.6 and 8.5 ms; in bfloat16 (AMX) 0.15 and 0.26 ms for
eight, its output layer 42 and 56 ms. The check at the start compares the packed model with the
plain one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

LEAST = 2**19
"""Elements of a matrix that is packed; smaller ones stay in the processor's cache."""

ROWS = 8
"""For which number of rows oneDNN chooses the layout. It was the best for 1 to 64."""


def pack_linears(model: Any) -> int:
    """Pack the large linear layers of a model that is on the CPU; returns how many. A matrix that
    something else shares, such as the embedding of tokens, is kept beside its packed form; in
    float32 it is not packed, since the second copy would take too much memory."""
    done = 0
    for module, shared in _large(model):
        vars(module)["forward"] = _packed(module.weight.detach(), module.bias)
        if not shared:
            module.weight = torch.nn.Parameter(module.weight.new_empty(0), requires_grad=False)
        done += 1
    return done


def doubled_bytes(model: Any) -> int:
    """Bytes that `pack_linears` will take beside the model's own."""
    return sum(one.weight.nbytes for one, shared in _large(model) if shared)


def _large(model: Any) -> Iterator[tuple[torch.nn.Linear, bool]]:
    """The layers to pack, and whether something else shares their matrix."""
    users = Counter(id(one) for _, one in model.named_parameters(remove_duplicate=False))
    for module in model.modules():
        if type(module) is torch.nn.Linear and _can_be_packed(module.weight):
            shared = users[id(module.weight)] > 1
            if not (shared and module.weight.dtype is torch.float32):
                yield module, shared


def _can_be_packed(weight: Tensor) -> bool:
    if weight.numel() < LEAST or not torch.backends.mkldnn.is_available():
        return False
    short = weight.dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return short or weight.dtype is torch.float32


def _packed(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    if weight.dtype is torch.float32 and (shift := _shift(weight)) is not None:
        return _in_float16(weight, bias, shift)
    matrix = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)

    def forward(rows: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, matrix, bias, "none", [], "")
        return found

    return forward


def _shift(weight: Tensor) -> float | None:
    """The power of two that brings a float32 matrix into float16's range, if nothing is lost in
    float16 then."""
    largest = float(weight.abs().max())
    if "fbgemm" not in torch.backends.quantized.supported_engines or not 0 < largest < math.inf:
        return None
    shift = 2.0 ** (15 - math.frexp(largest)[1])
    shifted = weight * shift
    return shift if torch.equal(shifted.half().float(), shifted) else None


def _in_float16(weight: Tensor, bias: Tensor | None, shift: float) -> Callable[[Tensor], Tensor]:
    matrix = torch.ops.quantized.linear_prepack_fp16(weight * shift, None)
    multiply = torch.ops.quantized.linear_dynamic_fp16
    widens = weight.shape[0] > weight.shape[1]

    def forward(rows: Tensor) -> Tensor:
        found: Tensor  # divided where there is less to divide
        found = multiply(rows / shift, matrix) if widens else multiply(rows, matrix).div_(shift)
        return found if bias is None else found.add_(bias)

    return forward
