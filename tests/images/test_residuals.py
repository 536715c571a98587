"""Lists with a tensor for each block of a denoiser are told from lists with one for each sample,
however many there are of either."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from atelier.images.stacking import Layout, Stacker


def control(sample: torch.Tensor, controlnet_cond: torch.Tensor) -> Any:
    """Four residuals, as lists of blocks come: for four rows too."""
    made = [sample * (block + 1) + controlnet_cond for block in range(4)]
    return made, made[0].sum(dim=1)


def denoise(sample: torch.Tensor, down_block_additional_residuals: list[torch.Tensor]) -> Any:
    return sample + sum(down_block_additional_residuals)


def by_sample(x: list[torch.Tensor]) -> list[torch.Tensor]:
    return [each * 2 for each in x]


def laid_out(function: Any, *args: Any) -> Layout:
    stacker = Stacker(inspect.signature(function))
    return stacker.layout(args, {}, lambda tensor: tensor.numpy().tobytes())


def split(result: Any, layouts: list[Layout]) -> list[Any]:
    return Stacker.split(result, [one.rows for one in layouts], layouts[0].takes_lists)


def same(one: Any, other: Any) -> bool:
    if torch.is_tensor(one):
        return torch.equal(one, other)
    return len(one) == len(other) and all(map(same, one, other))


@pytest.mark.parametrize("rows", [(1, 3), (2, 2), (4, 4), (1, 1)])
def test_calls_with_lists_of_blocks_are_stacked_and_split(rows: tuple[int, int]) -> None:
    for function, second in ((control, lambda x: x + 1), (denoise, lambda x: [x, x * 2, x, x])):
        calls = [(x := torch.randn(count, 3, 2), second(x)) for count in rows]
        layouts = [laid_out(function, *call) for call in calls]
        assert layouts[0].key == layouts[1].key
        together = function(**Stacker.arguments(Stacker.merged(layouts)))
        for part, call in zip(split(together, layouts), calls, strict=True):
            assert same(part, function(*call))


def test_a_call_of_too_many_rows_is_joined_from_its_parts() -> None:
    call = (torch.randn(4, 3), torch.randn(4, 3))
    whole = laid_out(control, *call)
    parts = [Stacker.part(whole, start, start + 2) for start in (0, 2)]
    results = [control(**Stacker.arguments(part)) for part in parts]
    assert same(Stacker.join(results, whole.takes_lists), control(*call))


def test_a_list_with_an_entry_a_sample_stays_one() -> None:
    calls = [[torch.randn(2, 4) for _ in range(count)] for count in (2, 2)]
    layouts = [laid_out(by_sample, call) for call in calls]
    assert layouts[0].takes_lists and layouts[0].rows == 2
    together = by_sample(**Stacker.arguments(Stacker.merged(layouts)))
    for part, call in zip(split(together, layouts), calls, strict=True):
        assert same(part, by_sample(call))
    assert same(Stacker.join([by_sample(call) for call in calls], lists=True), together)
