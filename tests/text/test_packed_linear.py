"""Large matrices on a CPU are packed: same results, no second copy, small and shared ones as they
were."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    ("dtype", "apart", "count"), [(torch.float32, 1e-4, 1), (torch.bfloat16, 2e-2, 2)]
)
def test_packed_layers_compute_what_plain_ones_do(
    dtype: torch.dtype, apart: float, count: int
) -> None:
    torch.manual_seed(0)
    model = Head().to(dtype).eval()
    batches = [torch.randint(0, SIDE, shape) for shape in ((1, 1), (8, 1), (2, 40))]
    with torch.no_grad():
        before = [model(ids) for ids in batches]
        assert pack_linears(model) == count
        after = [model(ids) for ids in batches]
    for own, packed in zip(before, after, strict=True):
        for plain, found in zip(own, packed, strict=True):
            assert found.dtype is dtype and found.shape == plain.shape
            scale = float(plain.float().std())
            torch.testing.assert_close(found, plain, rtol=apart, atol=apart * scale)


def test_packed_weights_are_not_kept_twice_unless_something_shares_them() -> None:
    model = Head()
    assert doubled_bytes(model) == 0
    assert doubled_bytes(Head().to(torch.bfloat16)) == 2 * SIDE * SIDE
    pack_linears(model)
    assert model.large.weight.numel() == 0
    assert model.small.weight.numel() < LEAST
    assert model.embed.weight is model.out.weight and model.embed.weight.numel() == SIDE * SIDE
