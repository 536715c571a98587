"""How long an engine takes to start, learned from its last start, and when one that is starting is
expected to serve."""

from __future__ import annotations

import time

LEAST_S = 1.0
OVERDUE = 0.25
"""Of a start that takes longer than the last: this share of what has passed is still to come."""


class StartClock:
    """For one engine; `begin` when it is started or found dead, `done` when it serves."""

    def __init__(self) -> None:
        self._took: float | None = None
        self._begun: float | None = None

    def begin(self) -> None:
        """The engine is on its way."""
        self._begun = time.monotonic()

    def done(self) -> None:
        """The engine serves."""
        if self._begun is not None:
            self._took = time.monotonic() - self._begun
        self._begun = None

    @property
    def remaining_s(self) -> float | None:
        """Seconds until it serves, or would if it were to start now; None before it ever has."""
        if self._took is None:
            return None
        passed = time.monotonic() - self._begun if self._begun is not None else 0.0
        return max(LEAST_S, self._took - passed, OVERDUE * passed)
