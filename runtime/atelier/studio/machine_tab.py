"""The tab that shows the machines while they work."""

from __future__ import annotations

import asyncio
from typing import Any

import gradio as gr

from atelier.studio.client import EndpointError
from atelier.studio.machine_view import machine
from atelier.studio.readings import Readings
from atelier.studio.workshop import Workshop

SECONDS = 2.0


class MachineTab:
    """A panel for each endpoint, renewed while the tab is open."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        self._readings = {one.url: Readings(one) for one in workshop.endpoints}
        self.panels = gr.HTML(elem_id="machines", apply_default_css=False)
        self.timer = gr.Timer(SECONDS, active=False)
        quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}
        self.timer.tick(self.look, None, self.panels, **quiet)

    async def look(self) -> str:
        """All panels as of now."""
        cards = await self._workshop.cards()
        return "".join(await asyncio.gather(*(self._panel(card) for card in cards)))

    async def _panel(self, card: Any) -> str:
        readings, problem = self._readings[card.url], ""
        try:
            await readings.take()
        except EndpointError as error:
            problem = error.message
        return machine(card, readings, problem)
