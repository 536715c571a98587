"""Draws on their way from the device to the host, and what they tell of each row there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atelier.events import Likelihood
from atelier.text.embedded.sampling import Draw
from atelier.text.embedded.sequence import Sequence


@dataclass
class Pending:
    """A draw that is on its way to the host, and whose rows were which sequence when it was
    made."""

    sequences: dict[int, Sequence]
    draw: Draw
    ready: torch.cuda.Event | None

    @classmethod
    def of(cls, sequences: dict[int, Sequence], draw: Draw, on_cuda: bool) -> Pending:
        """With `on_cuda` the copies are started here, and nobody waits for them yet."""
        if not on_cuda:
            return cls(sequences, draw, None)
        copied, ready = _on_host(draw), torch.cuda.Event()
        ready.record()
        return cls(sequences, copied, ready)

    def wait(self) -> None:
        """Until the draw is on the host."""
        if self.ready is not None:
            self.ready.synchronize()

    def likelihood(self, index: int, token: int, count: int | None) -> Likelihood | None:
        """Of the token of a row, with the `count` likeliest in its place; None: not wanted."""
        drawn = self.draw
        if count is None or drawn.chosen is None or drawn.best is None or drawn.best_ids is None:
            return None
        best = zip(
            drawn.best_ids[index, :count].tolist(), drawn.best[index, :count].tolist(), strict=True
        )
        return Likelihood(token, float(drawn.chosen[index]), tuple(best))


def _on_host(drawn: Draw) -> Draw:
    """Start copies into pinned memory; an event tells when they are there."""

    def start(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else _pinned(tensor)

    return Draw(
        _pinned(drawn.tokens),
        _pinned(drawn.finite),
        start(drawn.chosen),
        start(drawn.best),
        start(drawn.best_ids),
    )


def _pinned(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
        tensor, non_blocking=True
    )
