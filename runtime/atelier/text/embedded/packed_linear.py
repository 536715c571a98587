"""Large weight matrices of a language model on a CPU, laid out once as oneDNN reads them.

A plain product of a few rows with such a matrix reads it against its grain. For eight rows of
Gemma 3 270M a layer of 2,048 x 640 takes 0.34 ms packed and 0.54 plain in float32, 0.15 and 0.26
in bfloat16 (AMX); its output layer 42 and 56 ms. The check at the start compares the packed model
with the plain one.
"""

from __future__ import annotations

import ctypes
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
    _give_back_freed_memory()
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


def _give_back_freed_memory() -> None:
    """To the system: glibc keeps what the unpacked matrices took, a third of a gigabyte of Gemma 3
    270M, and nothing asks for as much again. Other C libraries have no such call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _can_be_packed(weight: Tensor) -> bool:
    if weight.numel() < LEAST or not torch.backends.mkldnn.is_available():
        return False
    short = weight.dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return short or weight.dtype is torch.float32


def _packed(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    matrix = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)

    def forward(rows: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, matrix, bias, "none", [], "")
        return found

    return forward
