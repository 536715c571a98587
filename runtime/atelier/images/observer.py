"""What the engine reports of itself while it works. Telemetry implements it; the engine knows no
metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from atelier.events import Event


class ImageObserver(Protocol):
    """Called from the denoising thread, so every method must be quick."""

    def request(self, protocol: str, prompt: str) -> Callable[[Event], None]:
        """A listener for the events of one admitted request. `prompt` is for the log, if prompts
        are logged at all."""

    def call(
        self,
        stage: str,
        seconds: float,
        shape: str,
        rows: int,
        requests: int,
        worker: str = "0",
    ) -> None:
        """One module call was run: stage, seconds, shape of one row, rows, how many requests shared
        it, and by which worker."""

    def loaded(self, stage: str, seconds: float) -> None:
        """A stage of the start is done: source, weights or warmup."""

    def refused(self, protocol: str, error: BaseException) -> None:
        """A request was not admitted."""

    def embedding(self, hit: bool) -> None:
        """The prompt-embedding cache was asked."""

    def out_of_memory(self) -> None:
        """A module call ran out of memory."""

    def memory_compared(self, error: float, worker: str) -> None:
        """The device's peak so far against the plan's promise; see `MemoryPlan.error_ratio`."""

    def stacking(self, pipeline: str, module: str, stacked: bool) -> None:
        """Calls of a module in one layout were compared: from now on they are stacked, or not."""

    def filtered(self, what: str, label: str, action: str) -> None:
        """A prompt or a picture was given a label, or a word of the list was found: block, blur or
        flag."""

    def worker_ended(self, worker: str) -> None:
        """A worker's process ended by itself."""


class SilentImageObserver:
    """Reports to nobody."""

    def request(self, protocol: str, prompt: str) -> Callable[[Event], None]:
        return lambda event: None

    def call(
        self,
        stage: str,
        seconds: float,
        shape: str,
        rows: int,
        requests: int,
        worker: str = "0",
    ) -> None:
        """Nothing."""

    def filtered(self, what: str, label: str, action: str) -> None:
        """Nothing."""

    def worker_ended(self, worker: str) -> None:
        """Nothing."""

    def loaded(self, stage: str, seconds: float) -> None:
        """Nothing."""

    def refused(self, protocol: str, error: BaseException) -> None:
        """Nothing."""

    def embedding(self, hit: bool) -> None:
        """Nothing."""

    def out_of_memory(self) -> None:
        """Nothing."""

    def memory_compared(self, error: float, worker: str) -> None:
        """Nothing."""

    def stacking(self, pipeline: str, module: str, stacked: bool) -> None:
        """Nothing."""
