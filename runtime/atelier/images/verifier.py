"""Trust nothing: stacking is used for a module only after stacked rows were seen to equal lone
ones.

The first time two different calls of a pipeline class and module could be stacked, they run alone
and stacked, and the rows are compared. The lone results are what the requests get, so a module that
cannot be stacked harms nobody.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.utils import _pytree as pytree

from atelier.images.interception import Call
from atelier.images.stacking import Stacker

log = logging.getLogger(__name__)

# Largest difference between a stacked and a lone row, relative to the largest value of the row.
# Rounding grows with depth: the two matrix kernels chosen for 1 and for 8 rows sum in another
# order.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


class Verifier:
    """Remembers, for each pipeline class and module, whether stacking gives what lone calls
    give."""

    def __init__(self) -> None:
        self._verdicts: dict[tuple[str, str], bool] = {}

    def verdict(self, pipeline: str, module: str) -> bool | None:
        """True or False once known; None before two different calls were compared."""
        return self._verdicts.get((pipeline, module))

    def examine(self, pipeline: str, first: Call, second: Call) -> tuple[Any, Any]:
        """Run both calls alone and together, remember the verdict, and return the lone results."""
        alone = first.run(), second.run()
        if _same_inputs(first, second):
            return alone
        module = first.gate.name
        try:
            stacked = Stacker.stack([first.layout, second.layout])
            parts = Stacker.split(
                first.gate.real(**stacked), [first.layout.rows, second.layout.rows]
            )
            difference = max(
                _difference(lone, part) for lone, part in zip(alone, parts, strict=True)
            )
        except torch.OutOfMemoryError:
            return alone
        # whatever a module does with arguments it did not expect, it is not to be stacked
        except Exception as error:
            self._decide(pipeline, module, False, f"it failed: {type(error).__name__}: {error}")
            return alone
        self._decide(
            pipeline, module, difference <= 1, f"rows differ by {difference:.2g} of the tolerance"
        )
        return alone

    def _decide(self, pipeline: str, module: str, verdict: bool, reason: str) -> None:
        self._verdicts[pipeline, module] = verdict
        if verdict:
            log.info(
                "%s: calls of %s from different requests are stacked (%s)", pipeline, module, reason
            )
        else:
            log.warning(
                "%s: calls of %s run one request at a time, as stacking %s",
                pipeline,
                module,
                reason,
            )


def _same_inputs(first: Call, second: Call) -> bool:
    """Equal inputs prove nothing about rows being mixed up. Small tensors such as timesteps do not
    count."""
    ones, others = (
        [tensor for tensor in call.layout.tensors if tensor.dim() > 1] for call in (first, second)
    )
    return len(ones) == len(others) and all(map(torch.equal, ones, others))


def _difference(lone: Any, part: Any) -> float:
    """The largest difference between two results, in units of the tolerance for their dtype."""
    worst = 0.0
    for a, b in zip(pytree.tree_leaves(lone), pytree.tree_leaves(part), strict=True):
        if not torch.is_tensor(a):
            continue
        if a.shape != b.shape:
            return float("inf")
        if a.is_floating_point() and a.numel():
            scale = a.abs().nan_to_num().max().item() * TOLERANCE[a.dtype] + 1e-12
            apart = (
                (a.float() - b.float())
                .abs()
                .masked_fill(a.isnan() & b.isnan(), 0)
                .nan_to_num(nan=float("inf"))
                .max()
            )
            worst = max(worst, apart.item() / scale)
    return worst
