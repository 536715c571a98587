"""Large matrices on a CPU are packed: same results, no second copy, small and shared ones as they
were."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from atelier.text.embedded.packed_linear import LEAST, doubled_bytes, pack_linears

SIDE = 1024


class Head(nn.Module):
    """A large layer, a small one, and an output layer that is the embedding too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(SIDE, SIDE)
        self.large = nn.Linear(SIDE, SIDE)
        self.small = nn.Linear(SIDE, 64)
        self.out = nn.Linear(SIDE, SIDE, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.large(self.embed(ids))
        return self.out(rows), self.small(rows)


def stored_short(model: nn.Module) -> nn.Module:
    """The model with numbers that 16 bits hold, as checkpoints have them."""
    return model.bfloat16().float()


@pytest.mark.parametrize(
    ("make", "apart"),
    [
        (lambda model: model, 1e-4),
        (stored_short, 1e-4),
        (lambda model: model.bfloat16(), 2e-2),
    ],
    ids=["float32", "float32 stored in 16 bits", "bfloat16"],
)
def test_packed_layers_compute_what_plain_ones_do(
    make: Callable[[nn.Module], nn.Module], apart: float
) -> None:
    torch.manual_seed(0)
    model = make(Head()).eval()
    batches = [torch.randint(0, SIDE, shape) for shape in ((1, 1), (8, 1), (2, 40))]
    with torch.no_grad():
        before = [model(ids) for ids in batches]
        pack_linears(model)
        after = [model(ids) for ids in batches]
    for own, packed in zip(before, after, strict=True):
        for plain, found in zip(own, packed, strict=True):
            assert found.dtype is plain.dtype and found.shape == plain.shape
            scale = float(plain.float().std())
            torch.testing.assert_close(found, plain, rtol=apart, atol=apart * scale)


def test_float32_that_16_bits_hold_is_multiplied_without_a_loss() -> None:
    """What float16 rounds, oneDNN multiplies; ranges beyond float16's are brought into it."""
    torch.manual_seed(0)
    rows = torch.randn(3, SIDE)
    for scale in (1e-30, 1.0, 1e30):
        model = stored_short(Head())
        model.large.weight.data.mul_(2.0 ** round(math.log2(scale)))
        expected = rows.double() @ model.large.weight.double().T + model.large.bias.double()
        pack_linears(model)
        assert (model.large(rows) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_packed_weights_are_not_kept_twice_unless_something_shares_them() -> None:
    assert doubled_bytes(Head()) == doubled_bytes(stored_short(Head())) == 0
    assert doubled_bytes(Head().bfloat16()) == 2 * SIDE * SIDE
    model = Head()
    pack_linears(model)
    assert model.large.weight.numel() == 0
    assert model.small.weight.numel() < LEAST
