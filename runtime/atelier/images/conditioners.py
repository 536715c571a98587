"""Everything that a request can have a model draw by besides its prompt: LoRA adapters, controls,
image prompts; and the one who puts the shared modules in the state that a request wants."""

from __future__ import annotations

from typing import Any

from atelier.hardware.plan import MemoryPlan
from atelier.images.adapters import Adaptation, Adapters
from atelier.images.controls import Controls
from atelier.images.image_prompts import ImagePrompts
from atelier.images.interception import Gate
from atelier.images.upscalers import Upscalers
from atelier.settings import Settings
from atelier.sources.checkpoint.inversions import word_of
from atelier.sources.conditioning import Conditioning


class Conditioners:
    """Those of one model. `use` is for the denoising thread."""

    def __init__(
        self,
        base: Any,
        adapters: Adapters,
        found: Conditioning,
        plan: MemoryPlan,
        settings: Settings,
    ) -> None:
        """
        Raises:
            SettingsError: the plan does not go with one of them.
            CheckpointError: one cannot be loaded.
        """
        self.adapters = adapters
        self._words = sorted(map(word_of, found.embeddings))
        self.controls = Controls(base, found.controls, plan.device, plan.dtype)
        self.image_prompts = ImagePrompts(base, found.image_prompts, plan)
        self.upscalers = Upscalers(found.upscalers, plan.device, settings.max_upscaled_pixels)

    @property
    def gates(self) -> list[Gate]:
        """Before the modules that they bring."""
        return [*self.controls.gates, *self.image_prompts.gates, *self.upscalers.gates]

    @property
    def names(self) -> dict[str, Any]:
        """What requests can name, for the metadata: lists, and of upscalers how many times larger
        each makes a picture."""
        return {
            "adapters": self.adapters.names,
            "controls": self.controls.names,
            "image_prompts": self.image_prompts.names,
            "embeddings": self._words,
            "upscalers": self.upscalers.scales,
        }

    def use(self, adaptation: Adaptation) -> None:
        """Put the shared modules in this state.

        Raises:
            InvalidRequest: an adapter's file does not fit the model.
        """
        self.adapters.use(adaptation.loras)
        self.image_prompts.use(adaptation.image_prompts)
