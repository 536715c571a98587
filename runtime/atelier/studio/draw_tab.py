"""The tab where pictures are drawn from words: one, several, or a contact sheet over one or two
axes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import gradio as gr
from pydantic import ValidationError

from atelier.errors import AtelierError, InvalidRequest
from atelier.studio import views
from atelier.studio.axes import KINDS, NOTHING, SheetAxis, tiles
from atelier.studio.board import Board, Tile
from atelier.studio.card import ModelCard
from atelier.studio.contact_sheet import contact_sheet
from atelier.studio.form import PictureForm, Values
from atelier.studio.guides import PICKED, Guides
from atelier.studio.workshop import Workshop

KEEP = "() => studio.history.keep(document)"
"""Put what was drawn into the browser's history."""

EXAMPLE = (
    f"kind => ({json.dumps({name: kind.example for name, kind in KINDS.items()})})[kind] || ''"
)
"""Values to begin with, when an axis is chosen."""


class DrawTab:
    """Form on the left, what is drawn on the right."""

    def __init__(self, workshop: Workshop, keys: list[Any]) -> None:
        self._workshop = workshop
        self._keys = keys
        with gr.Row(elem_classes="sides"):
            with gr.Column(scale=5, min_width=300):
                self.form = PictureForm("Draw", True, "a red circle above a blue square")
                self.count = gr.Slider(1, 8, 1, step=1, label="Pictures", buttons=[])
                self.guides = Guides()
                self.form.more()
                self._sheet_fields()
            with gr.Column(scale=7, min_width=300):
                self.progress = gr.HTML(elem_id="draw-progress", apply_default_css=False)
                self.stage = gr.HTML(
                    views.hint("What you draw appears here."),
                    elem_id="draw-stage",
                    apply_default_css=False,
                )
        self._wire()

    def _sheet_fields(self) -> None:
        kinds = [NOTHING, *KINDS]
        with gr.Accordion("Contact sheet", open=False):
            with gr.Row():
                self.columns = gr.Dropdown(kinds, value="seed", label="Columns", min_width=120)
                self.column_values = gr.Textbox("1, 2, 3, 4", label="Values across", min_width=140)
            with gr.Row():
                self.rows = gr.Dropdown(kinds, value=NOTHING, label="Rows", min_width=120)
                self.row_values = gr.Textbox("", label="Values down", min_width=140)
            self.sheet = gr.Button("Draw the sheet", elem_classes="reveals")
        for kind, values in ((self.columns, self.column_values), (self.rows, self.row_values)):
            kind.input(None, kind, values, js=EXAMPLE)

    @property
    def components(self) -> list[Any]:
        """What `offered` sets."""
        return [*self.form.components, *self.guides.components]

    def offered(self, card: ModelCard, models: list[ModelCard]) -> dict[Any, Any]:
        """The fields as this model takes them."""
        return self.form.offered(card, models) | self.guides.offered(card)

    def _wire(self) -> None:
        given = {*self.form.components, *self.guides.fields, self.count, *self._keys}
        shown = [self.progress, self.stage, self.form.seed]
        quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}
        axes = {self.columns, self.column_values, self.rows, self.row_values}
        for triggers, draw, fields in (
            ([self.form.go.click, self.form.prompt.submit], self._pictures, given),
            ([self.sheet.click], self._sheet, given | axes),
        ):
            gr.on(triggers, None, None, self.guides.picked, js=PICKED).then(
                draw, fields, shown, **quiet
            ).then(None, js=KEEP)
        self.form.cancel.click(self._cancel, None, None, **quiet)

    async def _cancel(self, request: gr.Request) -> None:
        await self._workshop.boards.cancel(str(request.session_hash))

    async def _pictures(self, values: Values, request: gr.Request) -> AsyncGenerator[Any]:
        """One prompt, `count` pictures with seeds that follow each other."""

        def made(base: Any) -> list[Tile]:
            return [
                Tile(base.model_copy(update={"seed": base.seed + index}))
                for index in range(int(values[self.count]))
            ]

        async with aclosing(self._drawn(values, request, made)) as looks:
            async for _, look in looks:
                yield look

    async def _sheet(self, values: Values, request: gr.Request) -> AsyncGenerator[Any]:
        """A page of pictures over the axes, and below it each picture by itself."""
        rows = columns = SheetAxis("", (("", {}),))

        def made(base: Any) -> list[Tile]:
            nonlocal rows, columns
            columns = SheetAxis.parse(values[self.columns], values[self.column_values] or "")
            rows = SheetAxis.parse(values[self.rows], values[self.row_values] or "")
            return tiles(base, rows, columns)

        async with aclosing(self._drawn(values, request, made)) as looks:
            async for seen in looks:
                yield seen[1]
        board, look = seen
        if board is None or not any(tile.png for tile in board.tiles):
            return
        title = values[self.form.prompt].strip()
        png = await asyncio.to_thread(contact_sheet, title, rows, columns, board.tiles)
        axes = " by ".join(axis.label for axis in (rows, columns) if axis.label)
        page = views.figure(png, f"Contact sheet: {title}", "", f"{title}: {axes or 'one picture'}")
        yield look[0], f'<div class="tiles one">{page}</div>' + look[1], look[2]

    async def _drawn(
        self, values: Values, request: gr.Request, made: Callable[[Any], list[Tile]]
    ) -> AsyncGenerator[tuple[Board | None, tuple[Any, Any, Any]]]:
        """Draw the tiles that `made` makes of the form's parameters; every look is the board, and
        what the page shows of it. An error is shown in the API's words."""
        try:
            endpoint, card = await self._workshop.choose("pictures", values[self.form.model])
            extra = self.guides.read(values, card)
            board = Board(
                [replace(tile, extra=extra) for tile in made(self.form.read(values, card))],
                endpoint,
                self._workshop.key(card.url, [values[key] for key in self._keys]),
            )
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            told = InvalidRequest(f"{fault['loc'][0]}: {fault['input']!r}: {fault['msg']}")
            yield None, ("", views.problem(told.message), gr.skip())
            return
        except AtelierError as error:
            yield None, ("", views.problem(error.message), gr.skip())
            return
        seed = board.tiles[-1].parameters.seed
        async with aclosing(self._workshop.boards.run(str(request.session_hash), board)) as looks:
            async for _ in looks:
                yield board, (views.progress(board), views.tiles(board), seed)
        yield board, (views.finished(board), views.tiles(board, ended=True), seed)
