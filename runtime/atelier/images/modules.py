"""The modules that all requests share, and the one who changes them.

Adapters, places in memory, attention processors and the gates themselves are state of the modules,
so only this object touches them, on the device thread, while it lends them to a request; whatever
happens to the request, the next one finds them as they were. A request's own copy of the pipeline
has lost the methods that would do such things behind its back (`drawing.own_copy`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from atelier.images import compilation
from atelier.images.adapters import PLAIN, Adaptation
from atelier.images.interception import Gate, install, put_up


class SharedModules:
    """The modules of `pipeline` behind gates, and further ones behind gates of their own.
    `use_adapters` makes exactly the given ones active."""

    def __init__(
        self,
        pipeline: Any,
        use_adapters: Callable[[Adaptation], None] = lambda adaptation: None,
        further: Sequence[Gate] = (),
    ) -> None:
        self._pipeline = pipeline
        self._use_adapters = use_adapters
        self._active: Adaptation | None = PLAIN
        self.switch_s = 0.0
        self.gates = [*install(pipeline), *further]
        put_up(self.gates)

    def speed_up(self, mode: str) -> None:
        """Fuse and compile behind the gates; `mode` is `regional` or `full`."""
        compilation.speed_up(self.gates, mode)

    @property
    def adapters(self) -> Adaptation | None:
        """Those that are active; None after a change that failed."""
        return self._active

    @contextmanager
    def lent_to(
        self, adapters: Adaptation, module: torch.nn.Module | None = None, alone: bool = False
    ) -> Iterator[None]:
        """Have the modules serve one request, or several with the same adapters, until the block
        is left.

        Args:
            module: the one that is about to run; where components are kept in RAM, all others go
                there. None: what runs is always on the device, and nothing moves.
            alone: the request may exchange attention processors; they are put back.

        Raises:
            GenerationFailed: an adapter does not fit the model.
        """
        processors = self._processors() if alone else []
        try:
            self._switch(adapters)
            put_up(self.gates)
            if module is not None:
                self._make_room_for(module)
            yield
        finally:
            for denoiser, before in processors:
                denoiser.set_attn_processor(dict(before))
            put_up(self.gates)

    def _switch(self, adapters: Adaptation) -> None:
        if adapters == self._active:
            return
        self._active, began = None, time.monotonic()
        self._use_adapters(adapters)
        self._active, self.switch_s = adapters, time.monotonic() - began

    def _make_room_for(self, module: torch.nn.Module) -> None:
        """Take every other component off the device, where components are offloaded. The hooks do
        so only in the order of one request's pipeline, and not after the last."""
        for hook in getattr(self._pipeline, "_all_hooks", ()):
            if hook.model is not module and next(hook.model.parameters()).device.type != "cpu":
                hook.offload()

    def _processors(self) -> list[tuple[Any, dict[str, Any]]]:
        return [
            (component, dict(component.attn_processors))
            for component in self._pipeline.components.values()
            if hasattr(component, "set_attn_processor")
        ]
