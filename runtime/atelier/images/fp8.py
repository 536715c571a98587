"""Linear layers in fp8: weights e4m3 with a scale per output row, activations quantized per token.

The products run on the tensor cores of compute capability 8.9 and up (`torch._scaled_mm`, row-wise
scales); the quantization of activations is a few operations that the compiler fuses into the block.
On a CPU the same arithmetic is emulated, so that tests need no GPU. Weights take half the memory
of bf16: a layer is quantized on its way to the device, alone, and never lies there whole.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGEST = 448.0
"""The largest finite value of e4m3: https://arxiv.org/abs/2209.05433, table 1."""

TINY = 1e-12
"""A row of zeros is divided by this instead of nothing."""

SMALLEST_SIDE = 1024
"""Layers with a shorter side gain nothing: their products are no longer than their launch."""

ALIGNMENT = 16
"""Sides must be divisible by this for the tensor cores' fp8 instructions."""


def quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in e4m3 and their float32 scales, shapes (rows, columns) and (rows, 1)."""
    scale = values.abs().amax(dim=1, keepdim=True).float().clamp_min(TINY) / LARGEST
    quantized = (values.float() / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return quantized, scale


class Fp8Linear(nn.Module):
    """A linear layer whose weight is kept and multiplied in fp8; bias and result in `dtype`."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, device: torch.device | str) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = linear.weight.dtype
        weight, scale = quantize_rows(linear.weight.detach().to(device))
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.t().contiguous())
        bias = None if linear.bias is None else linear.bias.detach().to(device)
        self.register_buffer("bias", bias)

    def forward(self, values: Tensor) -> Tensor:
        """Shapes (..., in_features) to (..., out_features)."""
        rows = values.reshape(-1, self.in_features)
        quantized, scale = quantize_rows(rows)
        if values.is_cuda:
            product = torch._scaled_mm(
                quantized,
                self.weight.t(),
                scale_a=scale,
                scale_b=self.scale,
                bias=self.bias,
                out_dtype=self.dtype,
                use_fast_accum=True,
            )
        else:
            product = quantized.float() @ self.weight.float().t() * scale * self.scale
            product = (product if self.bias is None else product + self.bias.float()).to(self.dtype)
        return product.reshape(*values.shape[:-1], self.out_features)


def quantize_linears(
    model: nn.Module, device: torch.device | str, smallest_side: int = SMALLEST_SIDE
) -> int:
    """Replace the large linear layers of a model's repeated blocks; the number replaced.

    Layers that make shifts and scales for norms stay as they are: a small error there reaches every
    token. The rest of the model is not moved.
    """
    chosen = [
        (parent, name, child)
        for path, parent in model.named_modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
        and _in_a_block(f"{path}.{name}")
        and min(child.weight.shape) >= smallest_side
        and not any(side % ALIGNMENT for side in child.weight.shape)
    ]
    for parent, name, child in chosen:
        setattr(parent, name, Fp8Linear(child, device))
    return len(chosen)


def _in_a_block(path: str) -> bool:
    """Members of lists of blocks have a number in their path."""
    parts = path.split(".")
    return any(part.isdigit() for part in parts) and not any("norm" in part for part in parts)
