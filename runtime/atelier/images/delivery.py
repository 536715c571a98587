"""The way of finished pictures to the CPU. On a GPU it is a thread's of its own, on a stream of its
own: the device loop goes on with other requests instead of waiting for a copy."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import torch


class Delivery:
    """Used by the device thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "delivery")

    def hand_over(self, device: torch.device, work: Callable[[], None]) -> None:
        """Have `work` done, which copies tensors that the device has yet to compute: at once on a
        CPU, else in the other thread when the device is that far. `work` raises nothing."""
        if device.type != "cuda":
            work()
            return
        computed = torch.cuda.Event()
        computed.record()
        self._thread.submit(self._after, computed, work)

    def close(self) -> None:
        """Wait until everything is delivered."""
        self._thread.shutdown()

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream()

    def _after(self, computed: torch.cuda.Event, work: Callable[[], None]) -> None:
        with torch.no_grad(), torch.cuda.stream(self._stream):
            self._stream.wait_event(computed)
            work()
