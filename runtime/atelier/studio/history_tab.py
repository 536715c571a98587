"""The tab of what this browser drew. The browser keeps it; the server only reads what a dropped
file holds, and sets the form when something is to be drawn again."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import gradio as gr
from pydantic import ValidationError

from atelier.errors import AtelierError, InvalidRequest
from atelier.studio import views
from atelier.studio.draw_tab import DrawTab
from atelier.studio.page import read_asset
from atelier.studio.parameters import PictureParameters, read_parameters

IMPORT = "() => studio.history.keep(document.querySelector('#imported'))"


class HistoryTab:
    """The grid, which the page's script fills, and where saved files are read."""

    def __init__(self) -> None:
        self.imported = gr.HTML(elem_id="imported", apply_default_css=False)
        gr.HTML(
            html_template=read_asset("importer.html"),
            js_on_load="studio.importer(element)",
            elem_id="history",
            apply_default_css=False,
        )

    def wire(self, draw: DrawTab, tabs: gr.Tabs) -> None:
        """Connect what the page's script tells with the form of the draw tab."""
        told = gr.HTML(
            "",
            js_on_load="studio.tell = (what) => trigger('select', what)",
            elem_id="told",
        )
        form = draw.form

        def again(event: gr.EventData) -> dict[Any, Any]:
            """Fill the draw tab with a picture's parameters, or read a file."""
            if event.file:
                return {self.imported: _imported(event.file)}
            try:
                parameters = PictureParameters.model_validate_json(event.again)
            except ValidationError as error:
                raise gr.Error(f"these parameters cannot be read: {error}") from None
            return {tabs: gr.Tabs(selected="draw"), **form.filled(parameters)}

        told.select(
            again,
            None,
            [tabs, self.imported, *form.components],
            show_progress="hidden",
            concurrency_limit=None,
        ).then(None, js=IMPORT)


def _imported(source: str) -> str:
    """A dropped file as a picture that the history takes, or what is wrong with it."""
    try:
        try:
            png = base64.b64decode(source.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise InvalidRequest(f"this is no PNG picture: {error}") from None
        parameters = read_parameters(png)
    except AtelierError as error:
        return views.problem(error.message)
    return views.figure(png, parameters.prompt, parameters.json_text(), parameters.caption())
