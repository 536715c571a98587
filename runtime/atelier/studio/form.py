"""The fields that the draw tab and the edit tab share: built, set from a model's card, filled with
the parameters of a picture, and read."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import gradio as gr

from atelier.errors import InvalidRequest
from atelier.studio.card import ModelCard
from atelier.studio.parameters import PictureParameters

OWN = "the model's own"
AS_DRAWN = "as it is drawn"
NATIVE = "the model's own size"
CACHES = ["the server's default", "off", "low", "medium", "high"]
SEEDS = [("Random", "random"), ("Keep", "keep"), ("Next", "next")]
SLOTS = 3
"""Adapters that one picture may combine here."""

LARGEST_SEED = 2**32

Values = Mapping[Any, Any]


class PictureForm:
    """The components, made inside the Blocks that are open."""

    def __init__(self, verb: str, sizes: bool, example: str) -> None:
        """`verb` is on the button; `sizes`: whether the size is chosen here, and not a picture's
        own; `example` stands in the empty prompt."""
        self.prompt = gr.Textbox(label="Prompt", lines=2, max_lines=6, placeholder=example)
        self.negative = gr.Textbox(label="Negative prompt", lines=1, max_lines=4)
        with gr.Row():
            self.go = gr.Button(verb, variant="primary", min_width=100, elem_classes="reveals")
            self.cancel = gr.Button("Cancel", min_width=100)
        self.model = gr.Dropdown([], label="Model", visible=False)
        with gr.Row():
            self.steps = gr.Slider(1, 150, 28, step=1, label="Steps", min_width=140, buttons=[])
            self.guidance = gr.Slider(
                0, 20, 4, step=0.1, label="Guidance", min_width=140, buttons=[]
            )
        with gr.Row():
            self.size = gr.Dropdown(
                [NATIVE], value=NATIVE, label="Size", visible=sizes, min_width=140
            )
            self.larger = gr.Dropdown(
                [AS_DRAWN], value=AS_DRAWN, label="Enlarge", visible=False, min_width=140
            )
        with gr.Row(elem_classes="seeds"):
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=100, scale=1)
            self.seed_mode = gr.Radio(
                SEEDS, value="random", label="With each click", min_width=240, scale=2
            )

    def more(self) -> None:
        """The fields that few need, below those that a tab adds."""
        with gr.Accordion("More", open=False):
            self.scheduler = gr.Dropdown([OWN], value=OWN, label="Scheduler")
            self.step_cache = gr.Dropdown(CACHES, value=CACHES[0], label="Step cache")
            self.slots = [self._slot(number) for number in range(1, SLOTS + 1)]

    @staticmethod
    def _slot(number: int) -> tuple[gr.Dropdown, gr.Slider]:
        with gr.Row():
            name = gr.Dropdown(
                ["none"], value="none", label=f"Adapter {number}", visible=False, min_width=140
            )
            weight = gr.Slider(
                -1, 2, 1, step=0.05, label=f"Weight {number}", visible=False, min_width=140,
                buttons=[],
            )  # fmt: skip
        return name, weight

    @property
    def components(self) -> list[Any]:
        """All fields."""
        slots = [component for slot in self.slots for component in slot]
        own = [self.prompt, self.negative, self.model, self.steps, self.guidance, self.size]
        own += [self.larger, self.seed, self.seed_mode, self.scheduler, self.step_cache]
        return [*own, *slots]

    def offered(self, card: ModelCard, models: list[ModelCard]) -> dict[Any, Any]:
        """The fields as this model takes them, with its own values."""
        choices = [(one.label, one.url) for one in models]
        steps, guidance = card.default_steps, card.default_guidance
        updates = {
            self.model: gr.update(choices=choices, value=card.url, visible=len(choices) > 1),
            self.steps: gr.update(
                maximum=card.limit("max_steps", 150),
                value=steps or 28,
                visible=card.takes("num_inference_steps"),
            ),
            self.guidance: gr.update(
                value=guidance if guidance is not None else 4,
                visible=card.takes("guidance_scale"),
            ),
            self.negative: gr.update(visible=card.takes("negative_prompt")),
            self.scheduler: gr.update(choices=[OWN, *card.schedulers], value=OWN),
        }
        sizes = [NATIVE, *card.sizes()]
        updates[self.size] = gr.update(choices=sizes, value=sizes[1] if sizes[1:] else NATIVE)
        larger = card.enlargements()
        updates[self.larger] = gr.update(
            choices=[AS_DRAWN, *larger], value=AS_DRAWN, visible=bool(larger)
        )
        for index, (name, weight) in enumerate(self.slots):
            shown = index < len(card.adapters)
            updates[name] = gr.update(choices=["none", *card.adapters], value="none", visible=shown)
            updates[weight] = gr.update(visible=shown)
        return updates

    def filled(self, parameters: PictureParameters) -> dict[Any, Any]:
        """The fields set to what drew a picture."""
        size = f"{parameters.width}x{parameters.height}" if parameters.width else NATIVE
        updates: dict[Any, Any] = {
            self.prompt: parameters.prompt,
            self.negative: parameters.negative_prompt or "",
            self.size: gr.update(value=size),
            self.larger: gr.update(
                value=f"{parameters.upscale} {parameters.upscaler}"
                if parameters.upscale
                else AS_DRAWN
            ),
            self.seed: parameters.seed,
            self.seed_mode: "keep",
            self.scheduler: gr.update(value=parameters.scheduler or OWN),
            self.step_cache: parameters.step_cache or CACHES[0],
        }
        if parameters.num_inference_steps is not None:
            updates[self.steps] = parameters.num_inference_steps
        if parameters.guidance_scale is not None:
            updates[self.guidance] = parameters.guidance_scale
        adapters = [*(parameters.lora or {}).items(), *[("none", 1.0)] * SLOTS]
        for (name, weight), (chosen, by) in zip(self.slots, adapters, strict=False):
            updates[name], updates[weight] = chosen, by
        return updates

    def read(self, values: Values, card: ModelCard) -> PictureParameters:
        """What the fields say, as far as this model takes it, with the seed of the first picture.

        Raises:
            InvalidRequest: the prompt is empty.
        """
        prompt = (values[self.prompt] or "").strip()
        if not prompt:
            raise InvalidRequest("Prompt: say what to draw")
        scheduler, cache, size = (
            values[self.scheduler], values[self.step_cache], values[self.size]
        )  # fmt: skip
        width, _, height = ("", "", "") if size in (None, NATIVE) else size.partition("x")
        larger = values[self.larger]
        times, _, upscaler = ("", "", "") if larger in (None, AS_DRAWN) else larger.partition(" ")
        lora = {
            values[name]: float(values[weight])
            for name, weight in self.slots
            if values[name] not in (None, "none")
        }
        return PictureParameters(
            model=card.name,
            prompt=prompt,
            negative_prompt=(values[self.negative] or "").strip() or None
            if card.takes("negative_prompt")
            else None,
            num_inference_steps=int(values[self.steps])
            if card.takes("num_inference_steps")
            else None,
            guidance_scale=float(values[self.guidance]) if card.takes("guidance_scale") else None,
            width=int(width) if width else None,
            height=int(height) if height else None,
            upscale=int(times) if times else None,
            upscaler=upscaler or None,
            seed=self._seed(values),
            scheduler=None if scheduler in (None, OWN) else scheduler,
            step_cache=None if cache in (None, CACHES[0]) else cache,
            lora=lora or None,
        )

    def _seed(self, values: Values) -> int:
        """The seed of this click: drawn, the field's, or the one after it."""
        mode, field = values[self.seed_mode], int(values[self.seed] or 0)
        if mode == "random":
            return secrets.randbelow(LARGEST_SEED)
        return field + 1 if mode == "next" else field
