"""Run parked calls of one gate as one call, once that is proven, and a call of too many rows in
parts.

Which calls are put together is the scheduler's business; whether that is right, the verifier's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atelier.images.interception import Call, Stage
from atelier.images.stacking import Layout, Stacker
from atelier.images.verifier import Verifier


class BatchRunner:
    """`rows` bounds a call; `buckets` are the row counts that denoiser calls are padded to, empty
    if nothing is compiled."""

    def __init__(self, rows: int, buckets: Sequence[int], verifier: Verifier) -> None:
        self._rows = rows
        self._buckets = buckets
        self._verifier = verifier

    def is_examination(self, pipeline: str, calls: Sequence[Call]) -> bool:
        """Whether `run` would compare stacked with lone results, which takes longer."""
        return len(calls) > 1 and self.is_unproven(pipeline, calls[0])

    def is_unproven(self, pipeline: str, call: Call) -> bool:
        """Whether a second call of this layout is wanted for a comparison."""
        return call.layout.key is not None and self._verifier.verdict(pipeline, call) is None

    def run(self, pipeline: str, calls: Sequence[Call]) -> Sequence[Any]:
        """One result for each call that was run: fewer than asked for if stacking has yet to be
        proven or is off. `pipeline` is the class that all of the calls come from."""
        first = calls[0]
        if self.is_examination(pipeline, calls):
            return self._verifier.examine(pipeline, first, calls[1])
        verdict = self._verifier.verdict(pipeline, first)
        rows = [call.layout.rows for call in calls]
        if not verdict:
            return [first.run()]
        if len(calls) == 1 and rows[0] > self._rows:
            return [self._in_parts(first)]
        padded = self._padded(first.gate.stage, sum(rows))
        if len(calls) == 1 and padded == rows[0]:
            return [first.run()]
        result = first.gate.real(**Stacker.stack([call.layout for call in calls], padded))
        return Stacker.split(result, rows, padded)

    def _in_parts(self, call: Call) -> Any:
        """A call whose own rows are too many for one."""
        parts = [
            self._part(call, Stacker.part(call.layout, start, start + self._rows))
            for start in range(0, call.layout.rows, self._rows)
        ]
        return Stacker.join(parts)

    def _part(self, call: Call, part: Layout) -> Any:
        padded = self._padded(call.gate.stage, part.rows)
        result = call.gate.real(**Stacker.stack([part], padded))
        return Stacker.split(result, [part.rows], padded)[0]

    def _padded(self, stage: Stage, rows: int) -> int:
        """The bucket for this many rows of a compiled denoiser; other modules take any number."""
        buckets = self._buckets if stage is Stage.DENOISE else ()
        return next((bucket for bucket in buckets if bucket >= rows), rows)
