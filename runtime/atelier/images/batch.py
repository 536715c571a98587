"""Run parked calls of one gate as one call, once that is proven, and a call of too many rows in
parts; replay calls that are recorded.

Which calls are put together is the scheduler's business; whether that is right, the verifier's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atelier.images.adapters import Selection
from atelier.images.graphs import GraphStore
from atelier.images.interception import Call, Stage
from atelier.images.stacking import Layout, Stacker
from atelier.images.verifier import Verifier


class BatchRunner:
    """`rows` bounds a call; `graphs` has the recorded calls of denoisers, where there are any."""

    def __init__(self, rows: int, verifier: Verifier, graphs: GraphStore | None = None) -> None:
        self._rows = rows
        self._verifier = verifier
        self._graphs = graphs
        self.typical = True
        """Whether the last run took as long as the next one like it: neither was it a comparison,
        nor did it run without the graph that is to be recorded."""

    def is_unproven(self, pipeline: str, call: Call) -> bool:
        """Whether a second call of this layout is wanted for a comparison."""
        return call.layout.key is not None and self._verifier.verdict(pipeline, call) is None

    def run(self, pipeline: str, calls: Sequence[Call], adapters: Selection = ()) -> Sequence[Any]:
        """One result for each call that was run: fewer than asked for if stacking has yet to be
        proven or is off. `pipeline` is the class that all of the calls come from, `adapters` are
        those that are active."""
        first = calls[0]
        self.typical = True
        if len(calls) > 1 and self.is_unproven(pipeline, first):
            self.typical = False
            return self._verifier.examine(pipeline, first, calls[1])
        if len(calls) == 1:
            return [self._lone(pipeline, first, adapters)]
        if not self._verifier.verdict(pipeline, first):
            return [first.run()]
        return self._stacked(first, [call.layout for call in calls], adapters)

    def _lone(self, pipeline: str, call: Call, adapters: Selection) -> Any:
        """One call: as its pipeline made it, unless it is recorded or has too many rows."""
        if call.layout.rows > self._rows and self._verifier.verdict(pipeline, call):
            return self._in_parts(call, adapters)
        if self._is_recorded(call):
            return self._stacked(call, [call.layout], adapters)[0]
        return call.run()

    def _is_recorded(self, call: Call) -> bool:
        """Whether graphs are for this call: a denoiser's, of arguments that are understood."""
        denoises = call.gate.stage is Stage.DENOISE
        return self._graphs is not None and denoises and call.layout.key is not None

    def _in_parts(self, call: Call, adapters: Selection) -> Any:
        """A call whose own rows are too many for one."""
        parts = [
            Stacker.part(call.layout, start, start + self._rows)
            for start in range(0, call.layout.rows, self._rows)
        ]
        return Stacker.join([self._stacked(call, [part], adapters)[0] for part in parts])

    def _stacked(self, call: Call, layouts: Sequence[Layout], adapters: Selection) -> list[Any]:
        arguments = Stacker.stack(layouts)
        if self._graphs is not None and self._is_recorded(call):
            key = (id(call.gate), call.layout.key, adapters)
            result = self._graphs.call(key, call.gate.real, arguments)
            self.typical = self.typical and self._graphs.settled
        else:
            result = call.gate.real(**arguments)
        return Stacker.split(result, [layout.rows for layout in layouts])
