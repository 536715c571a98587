"""Linear layers in fp8, emulated where no GPU multiplies them: error, memory, and which layers."""

from __future__ import annotations

import torch
from torch import nn

from atelier.images.fp8 import LARGEST, Fp8Linear, quantize_linears, quantize_rows


def test_a_layer_is_close_to_the_one_it_replaces_and_half_its_size() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 96).to(torch.bfloat16)
    layer = Fp8Linear(linear, "cpu")
    values = torch.randn(2, 5, 64, dtype=torch.bfloat16)
    expected, result = linear(values).float(), layer(values).float()
    assert result.shape == (2, 5, 96)
    assert layer(values).dtype is torch.bfloat16
    assert float((result - expected).norm() / expected.norm()) < 0.05
    assert layer.weight.nbytes * 2 == linear.weight.nbytes


def test_every_row_uses_the_whole_range() -> None:
    rows = torch.tensor([[1.0, -2.0], [1000.0, 10.0], [0.0, 0.0]])
    quantized, scale = quantize_rows(rows)
    assert quantized.float().abs().amax(1).tolist() == [LARGEST, LARGEST, 0]
    restored = quantized.float() * scale
    assert torch.allclose(restored, rows, rtol=0.07)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.ModuleDict({"linear": nn.Linear(64, 64)})
        self.up, self.odd, self.small = nn.Linear(64, 64), nn.Linear(64, 72), nn.Linear(64, 16)


def test_only_large_layers_of_blocks_are_replaced_and_none_of_norms() -> None:
    model = nn.ModuleDict({"embed": nn.Linear(64, 64), "blocks": nn.ModuleList([Block(), Block()])})
    assert quantize_linears(model, "cpu", smallest_side=64) == 2
    kinds = {name: type(module) for name, module in model.named_modules()}
    assert kinds["blocks.0.up"] is kinds["blocks.1.up"] is Fp8Linear
    for kept in ("embed", "blocks.0.norm1.linear", "blocks.0.odd", "blocks.0.small"):
        assert kinds[kept] is nn.Linear
