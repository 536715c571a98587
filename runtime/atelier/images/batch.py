"""Run parked calls of one gate as one call, once that is proven, and a call of too many rows in
parts; replay calls that are recorded; share them with the other ranks of a group.

Which calls are put together is the scheduler's business; whether that is right, the verifier's; how
a group makes them, `sharing.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from atelier.images.adapters import PLAIN, Adaptation
from atelier.images.graphs import GraphStore
from atelier.images.group import RankGroup
from atelier.images.interception import Call, Stage
from atelier.images.sharing import Share, Sharing
from atelier.images.stacking import Layout, Stacker
from atelier.images.verifier import Verifier
from atelier.sources.checkpoint.classifier import ROWS
from atelier.sources.checkpoint.upscaler import TILES

MOST_ROWS = {Stage.CHECK: ROWS, Stage.UPSCALE: TILES}
"""Of one call, where the memory plan counts so many."""


class BatchRunner:
    """`rows` bounds a call; `graphs` has the recorded calls of denoisers, where there are any;
    `group` shares them."""

    def __init__(
        self,
        rows: int,
        verifier: Verifier,
        graphs: GraphStore | None = None,
        group: RankGroup | None = None,
    ) -> None:
        self._rows = rows
        self._verifier = verifier
        self._graphs = graphs
        self._sharing = Sharing(group) if group else None
        self.typical = True
        """Whether the last run took as long as the next one like it: neither was it a comparison,
        nor did it run without the graph that is to be recorded."""

    def is_unproven(self, pipeline: str, call: Call) -> bool:
        """Whether a second call of this layout is wanted for a comparison."""
        return call.layout.key is not None and self._verifier.verdict(pipeline, call) is None

    def run(
        self,
        pipeline: str,
        calls: Sequence[Call],
        adapters: Adaptation = PLAIN,
        exclusive: bool = False,
    ) -> Sequence[Any]:
        """One result for each call that was run: fewer than asked for if stacking has yet to be
        proven or is off.

        Args:
            pipeline: the class that all of the calls come from.
            adapters: those that are active.
            exclusive: the pipeline may have changed the module for itself.
        """
        first = calls[0]
        self.typical = True
        if exclusive and self._sharing is not None:
            return [first.run()]
        if len(calls) > 1 and self.is_unproven(pipeline, first):
            self.typical = False
            run = partial(self._whole, first, adapters=adapters)
            return self._verifier.examine(pipeline, first, calls[1], run)
        if len(calls) == 1:
            return [self._lone(pipeline, first, adapters)]
        if not self._verifier.verdict(pipeline, first):
            return [first.run()]
        return self._stacked(first, [call.layout for call in calls], adapters)

    def _lone(self, pipeline: str, call: Call, adapters: Adaptation) -> Any:
        """One call: as its pipeline made it, unless it is recorded, shared or has too many rows."""
        if call.layout.rows > self._rows and self._verifier.verdict(pipeline, call):
            return self._in_parts(call, adapters)
        if self._is_understood(call) and (self._graphs is not None or self._sharing is not None):
            return self._stacked(call, [call.layout], adapters)[0]
        return call.run()

    @staticmethod
    def _is_understood(call: Call) -> bool:
        """Whether graphs and groups are for this call: a denoiser's, of arguments that can be taken
        apart."""
        return call.gate.stage is Stage.DENOISE and call.layout.key is not None

    def _in_parts(self, call: Call, adapters: Adaptation) -> Any:
        """A call whose own rows are too many for one."""
        parts = [
            Stacker.part(call.layout, start, start + self._rows)
            for start in range(0, call.layout.rows, self._rows)
        ]
        results = [self._stacked(call, [part], adapters)[0] for part in parts]
        return Stacker.join(results, call.layout.takes_lists)

    def _stacked(self, call: Call, layouts: Sequence[Layout], adapters: Adaptation) -> list[Any]:
        result = self._whole(call, Stacker.merged(layouts), adapters)
        return Stacker.split(result, [layout.rows for layout in layouts], call.layout.takes_lists)

    def _whole(self, call: Call, layout: Layout, adapters: Adaptation) -> Any:
        """The result of one call of the merged layout, by whatever is quickest."""
        if not self._is_understood(call):
            return call.gate.real(**Stacker.arguments(layout))
        share = self._sharing.share(call, layout, adapters) if self._sharing else None
        plain = partial(call.gate.real, **Stacker.arguments(layout))
        if share is not None and self._sharing and not self._sharing.is_proven(share):
            self.typical = False
            return self._sharing.prove(share, layout, plain)
        if self._graphs is None:
            return share(layout.leaves) if share else plain()
        key = (id(call.gate), call.layout.key, adapters, share.order.way if share else None)
        result = self._graphs.call(key, *self._recordable(call, layout, share))
        self.typical = self.typical and self._graphs.settled
        return result

    def forget_adapter(self, name: str) -> None:
        """A LoRA adapter was taken out of the modules. Loaded again, it lies elsewhere."""
        if self._graphs is not None:
            self._graphs.forget(lambda key: name in dict(key[2].loras))

    @staticmethod
    def _recordable(call: Call, layout: Layout, share: Share | None) -> tuple[Any, dict[str, Any]]:
        """A function and its arguments, all tensors among them."""
        if share is not None:
            return share, {"leaves": layout.leaves}
        return call.gate.real, Stacker.arguments(layout)
