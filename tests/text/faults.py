"""What the worker of a faulty server imports: faults that tests switch on, a logits processor that
raises or poisons, a batch loop that dies.

A request whose logit_bias holds 66.0 makes its own processing raise, 77.0 fills its logits with
NaN; SIGUSR1 to the worker kills the batch loop at its next step.
"""

from __future__ import annotations

import signal
from typing import Any

import atelier.workers.preloaded  # noqa: F401
from atelier.text.embedded import batch, sampling
from atelier.workers.text_work import TextWork

_adjust, _step = sampling._adjust, batch.Batch.step
armed = []


def adjust(logits: Any, row: Any) -> None:
    if 66.0 in row.bias.values():
        raise RuntimeError("poisoned processor")
    if 77.0 in row.bias.values():
        logits.fill_(float("nan"))
    _adjust(logits, row)


def step(self: batch.Batch) -> None:
    if armed:
        armed.clear()
        raise SystemExit("the loop is killed")
    _step(self)


def listen(self: TextWork, *arguments: Any) -> None:
    signal.signal(signal.SIGUSR1, lambda *_: armed.append(True))
    _init(self, *arguments)


_init = TextWork.__init__
sampling._adjust = adjust
batch.Batch.step = step  # type: ignore[method-assign]
TextWork.__init__ = listen  # type: ignore[method-assign]
