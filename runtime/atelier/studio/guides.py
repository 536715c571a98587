"""The part of the draw tab with pictures to draw by: controls say where things lie, image prompts
what they look like. What is on offer is what the model's metadata names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from atelier.studio.card import ModelCard
from atelier.studio.page import read_asset

SLOTS = 2
"""Pictures of each kind that one click may draw by here."""

READINGS = [
    ("as it is", ""),
    ("its edges (canny)", "canny"),
    ("blurred", "blur"),
    ("coarse (tile)", "tile"),
]
"""What a server makes of a control's picture before it is read."""

PICKED = "() => window.studio.picked || {}"
"""The pictures as the page has them now, by the label of their slot."""


@dataclass(frozen=True)
class GuideSlot:
    """One picture: who reads it, how much it counts, and for controls how it is read and until
    which share of the steps."""

    label: str
    panel: gr.Column
    name: gr.Dropdown
    weight: gr.Slider
    reading: gr.Dropdown | None = None
    until: gr.Slider | None = None

    @property
    def components(self) -> list[Any]:
        return [one for one in (self.name, self.weight, self.reading, self.until) if one]

    def entry(self, values: Mapping[Any, Any], picture: str) -> dict[str, Any]:
        """As a request has it."""
        entry = {
            "name": values[self.name],
            "image": picture,
            "weight": float(values[self.weight]),
        }
        if self.reading is not None and values[self.reading]:
            entry["preprocess"] = values[self.reading]
        if self.until is not None:
            entry["end"] = float(values[self.until])
        return entry


class Guides:
    """The components, made inside the Blocks that are open."""

    def __init__(self) -> None:
        with gr.Accordion("Pictures to draw by", open=False, visible=False) as self.panel:
            self._controls = [self._slot("Control", number, True) for number in range(1, SLOTS + 1)]
            self._looks = [
                self._slot("Image prompt", number, False) for number in range(1, SLOTS + 1)
            ]
        self.picked = gr.JSON(visible=False)

    @staticmethod
    def _slot(kind: str, number: int, control: bool) -> GuideSlot:
        label = f"{kind} {number}"
        with gr.Column(visible=False, elem_classes="guide") as panel:
            name = gr.Dropdown([], label=label, min_width=120)
            gr.HTML(
                html_template=read_asset("picker.html"),
                js_on_load=f"studio.picker(element, '{label}')",
                apply_default_css=False,
            )
            reading = until = None
            if control:
                reading = gr.Dropdown(READINGS, value="", label=f"{label} reads the picture")
            with gr.Row():
                weight = gr.Slider(
                    0, 2, 1, step=0.05, label=f"{label}: weight", min_width=200, buttons=[]
                )
                if control:
                    until = gr.Slider(
                        0.05, 1, 1, step=0.05, label=f"{label}: until", min_width=200, buttons=[],
                        info="A share of the steps.",
                    )  # fmt: skip
        return GuideSlot(label, panel, name, weight, reading, until)

    @property
    def _slots(self) -> list[GuideSlot]:
        return [*self._controls, *self._looks]

    @property
    def fields(self) -> list[Any]:
        """What a click reads."""
        return [self.picked, *(one for slot in self._slots for one in slot.components)]

    @property
    def components(self) -> list[Any]:
        """What `offered` sets."""
        panels = [one for slot in self._slots for one in (slot.panel, slot.name)]
        return [self.panel, *panels]

    def offered(self, card: ModelCard) -> dict[Any, Any]:
        """As many slots as the model has controls and image prompts, at most `SLOTS` of each."""
        updates: dict[Any, Any] = {
            self.panel: gr.update(visible=bool(card.controls or card.image_prompts))
        }
        for slots, names in self._kinds(card):
            for index, slot in enumerate(slots):
                shown = index < len(names)
                updates[slot.panel] = gr.update(visible=shown)
                updates[slot.name] = gr.update(choices=names, value=names[index] if shown else None)
        return updates

    def read(self, values: Mapping[Any, Any], card: ModelCard) -> dict[str, Any]:
        """The fields `control` and `image_prompt` of a request: an entry for each slot that has a
        picture."""
        picked = values[self.picked] or {}
        found = {}
        for field, (slots, names) in zip(
            ("control", "image_prompt"), self._kinds(card), strict=True
        ):
            entries = [
                slot.entry(values, picked[slot.label])
                for slot in slots[: len(names)]
                if picked.get(slot.label)
            ]
            if entries:
                found[field] = entries
        return found

    def _kinds(self, card: ModelCard) -> Sequence[tuple[list[GuideSlot], list[str]]]:
        return (self._controls, card.controls), (self._looks, card.image_prompts)
