"""The tab where a picture is changed: all of it, what a mask covers, or room added around it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import gradio as gr

from atelier.errors import AtelierError, InvalidRequest
from atelier.studio import views
from atelier.studio.board import Board, Tile
from atelier.studio.draw_tab import KEEP
from atelier.studio.form import PictureForm, Values
from atelier.studio.page import read_asset
from atelier.studio.workshop import Workshop

PAYLOAD = "() => (window.studio.canvas ? studio.canvas.payload() : null)"
"""Picture and mask as the canvas has them now."""


class EditTab:
    """Canvas and form on the left, before and after on the right."""

    def __init__(self, workshop: Workshop, keys: list[Any]) -> None:
        self._workshop = workshop
        self._keys = keys
        with gr.Row(elem_classes="sides"):
            with gr.Column(scale=5, min_width=300):
                gr.HTML(
                    html_template=read_asset("painter.html"),
                    js_on_load="studio.painter(element)",
                    elem_id="painter",
                    apply_default_css=False,
                )
                self.form = PictureForm("Edit", False, "what the picture shows when it is done")
                self.strength = gr.Slider(
                    0.05, 1, 0.8, step=0.05, label="Strength", buttons=[],
                    info="How far the result may leave the picture; 1 paints anew under the mask.",
                )  # fmt: skip
                self.form.more()
            with gr.Column(scale=6, min_width=300):
                self.progress = gr.HTML(elem_id="edit-progress", apply_default_css=False)
                self.stage = gr.HTML(
                    views.hint("Before and after appear here."),
                    elem_id="edit-stage",
                    apply_default_css=False,
                )
        self.payload = gr.JSON(visible=False)
        self._wire()

    def _wire(self) -> None:
        given = {*self.form.components, self.strength, self.payload, *self._keys}
        shown = [self.progress, self.stage, self.form.seed]
        quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}
        self.form.go.click(None, None, self.payload, js=PAYLOAD).then(
            self._edited, given, shown, **quiet
        ).then(None, js=KEEP)
        self.form.cancel.click(self._cancel, None, None, **quiet)

    async def _cancel(self, request: gr.Request) -> None:
        await self._workshop.boards.cancel(str(request.session_hash))

    async def _edited(self, values: Values, request: gr.Request) -> AsyncGenerator[Any]:
        try:
            payload = values[self.payload]
            if not payload:
                raise InvalidRequest("open a picture first, or take one from the history")
            endpoint, card = await self._workshop.choose("pictures", values[self.form.model])
            base = self.form.read(values, card)
            changes = {"strength": float(values[self.strength]), "width": None, "height": None}
            extra = {"image": payload["picture"]}
            if payload["mask"]:
                extra["mask_image"] = payload["mask"]
            key = self._workshop.key(card.url, [values[one] for one in self._keys])
            board = Board([Tile(base.model_copy(update=changes), extra)], endpoint, key)
        except AtelierError as error:
            yield "", views.problem(error.message), gr.skip()
            return
        async with aclosing(self._workshop.boards.run(str(request.session_hash), board)) as looks:
            async for _ in looks:
                yield views.progress(board), views.tiles(board), base.seed
        yield views.finished(board), views.tiles(board, ended=True), base.seed
