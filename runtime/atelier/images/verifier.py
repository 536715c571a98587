"""Trust nothing: stacking is used for a module only after stacked rows were seen to equal lone
ones.

The first time two different calls of a pipeline class, module and layout could be stacked, they run
alone and stacked, and the rows are compared. The lone results are what the requests get, so a
module that cannot be stacked harms nobody. One layout proves nothing about another. Rows that
differ are looked at again: a layout is given up only when that keeps happening.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from atelier.images.interception import Call
from atelier.images.stacking import Layout, Stacker

log = logging.getLogger(__name__)

# Largest difference between a stacked and a lone row, relative to the largest value of the row.
# Rounding grows with depth: the two matrix kernels chosen for 1 and for 8 rows sum in another
# order.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


LAYOUTS = 1024  # remembered at most; the oldest is proven again
FAILURES = 3  # pairs whose rows differed, until a layout is given up
PROOFS = 2  # equal pairs that make up for one that differed


@dataclass
class _Finding:
    """What was seen of one layout."""

    equal: int = 0
    unequal: int = 0

    @property
    def verdict(self) -> bool | None:
        if self.unequal >= FAILURES:
            return False
        return True if self.equal > PROOFS * self.unequal else None


class Verifier:
    """Remembers, for each pipeline class, module and layout, whether stacking gives what lone calls
    give. `told` hears of every verdict: pipeline class, module, and whether it is stacked."""

    def __init__(self, told: Callable[[str, str, bool], None] = lambda *_: None) -> None:
        self._told = told
        self._findings: OrderedDict[Hashable, _Finding] = OrderedDict()
        self._counts: dict[tuple[str, str], list[int]] = {}

    def verdict(self, pipeline: str, call: Call) -> bool | None:
        """True or False once known for calls of this layout; None before two different ones were
        compared."""
        finding = self._findings.get(_key(pipeline, call))
        return finding.verdict if finding else None

    def summary(self) -> list[dict[str, Any]]:
        """How many layouts of each module are stacked and how many run alone, for the metadata."""
        return [
            {"pipeline": pipeline, "module": module, "stacked": stacked, "alone": alone}
            for (pipeline, module), (alone, stacked) in list(self._counts.items())
        ]

    def examine(
        self, pipeline: str, first: Call, second: Call, run: Callable[[Layout], Any]
    ) -> tuple[Any, Any]:
        """Run both calls alone and together, remember the verdict, and return the lone results.
        `run` runs them together."""
        alone = first.run(), second.run()
        if _same_inputs(first, second):
            return alone
        try:
            layouts = [first.layout, second.layout]
            result = run(Stacker.merged(layouts))
            parts = Stacker.split(
                result, [layout.rows for layout in layouts], first.layout.takes_lists
            )
            difference = max(apart(lone, part) for lone, part in zip(alone, parts, strict=True))
        except torch.OutOfMemoryError:
            return alone
        # whatever a module does with arguments it did not expect, it is not to be stacked
        except Exception as error:
            self._found(pipeline, first, False, f"failed: {type(error).__name__}: {error}")
            return alone
        reason = f"rows differ by {difference:.2g} of the tolerance"
        self._found(pipeline, first, difference <= 1, reason)
        return alone

    def _found(self, pipeline: str, call: Call, equal: bool, reason: str) -> None:
        finding = self._findings.setdefault(_key(pipeline, call), _Finding())
        if equal:
            finding.equal += 1
        else:
            finding.unequal += 1
        if len(self._findings) > LAYOUTS:
            self._findings.popitem(last=False)
        verdict, module = finding.verdict, call.gate.name
        if verdict is None:
            log.info("%s: stacking %s is looked at again: %s", pipeline, module, reason)
            return
        self._counts.setdefault((pipeline, module), [0, 0])[verdict] += 1
        self._told(pipeline, module, verdict)
        if verdict:
            log.info(
                "%s: calls of %s of shape %s from different requests are stacked (%s)",
                pipeline,
                module,
                call.layout.shape,
                reason,
            )
        else:
            log.warning(
                "%s: calls of %s of shape %s run one request at a time: stacked, %s",
                pipeline,
                module,
                call.layout.shape,
                reason,
            )


def _key(pipeline: str, call: Call) -> Hashable:
    return pipeline, id(call.gate), call.layout.key


def _same_inputs(first: Call, second: Call) -> bool:
    """Equal inputs prove nothing about rows being mixed up. Small tensors such as timesteps do not
    count."""
    ones, others = (
        [tensor for tensor in call.layout.tensors if tensor.dim() > 1] for call in (first, second)
    )
    return len(ones) == len(others) and all(map(torch.equal, ones, others))


def apart(lone: Any, part: Any) -> float:
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
