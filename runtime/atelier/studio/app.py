"""The page: tabs, endpoints with their keys, and the application that serves it under /studio."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

# Read when Gradio is imported: it must report nothing and keep no files but uploads.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import JSONResponse, RedirectResponse

from atelier.studio import views
from atelier.studio.card import ModelCard
from atelier.studio.chat_tab import ChatTab
from atelier.studio.client import EndpointClient
from atelier.studio.draw_tab import DrawTab
from atelier.studio.edit_tab import EditTab
from atelier.studio.history_tab import HistoryTab
from atelier.studio.machine_tab import MachineTab
from atelier.studio.page import read_asset
from atelier.studio.workshop import Workshop

PATH = "/studio"
SECONDS = 3.0
"""Between two looks at the endpoints."""

SCRIPTS = ("history.js", "painter.js", "picker.js", "page.js")
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "monospace"]


class StudioPage:
    """The Blocks of one studio."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        with gr.Blocks(title="Atelier", analytics_enabled=False, fill_width=True) as self.blocks:
            gr.HTML(
                '<header class="bar"><h1>Atelier</h1><button type="button" data-do="scheme">'
                "Light or dark</button></header>",
                elem_id="top",
                apply_default_css=False,
            )
            with gr.Accordion("Endpoints", open=False, elem_id="endpoints") as self._endpoints:
                self._states = gr.HTML(views.hint("Asking the endpoints."), apply_default_css=False)
                with gr.Row():
                    self._keys = [self._key(one) for one in workshop.endpoints]
            with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as tabs:
                with gr.Tab("Draw", id="draw", elem_id="draw-tab"):
                    self._draw = DrawTab(workshop, self._keys)
                with gr.Tab("Edit", id="edit", elem_id="edit-tab"):
                    self._edit = EditTab(workshop, self._keys)
                with gr.Tab("Chat", id="chat", elem_id="chat-tab"):
                    self._chat = ChatTab(workshop, self._keys)
                with gr.Tab("History", id="history", elem_id="history-tab") as history_tab:
                    history = HistoryTab()
                with gr.Tab("Machine", id="machine", elem_id="machine-tab") as machine_tab:
                    machine = MachineTab(workshop)
            history.wire(self._draw, tabs)
            self._seen = gr.State("")
            self._wire(tabs, machine_tab, machine, history_tab)

    @staticmethod
    def _key(endpoint: EndpointClient) -> gr.Textbox:
        return gr.Textbox(
            label=f"API key for {endpoint.url}", type="password", max_lines=1, min_width=220,
            info="Needed if the server has API_KEYS; kept in this browser tab.",
        )  # fmt: skip

    def _wire(
        self, tabs: gr.Tabs, machine_tab: gr.Tab, machine: MachineTab, history: gr.Tab
    ) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}
        keys, count = self._keys, len(self._keys)
        self.blocks.load(None, None, keys, js=f"() => (studio.start(), studio.storedKeys({count}))")
        for key in keys:
            key.change(None, keys, None, js="(...keys) => studio.storeKeys(...keys)")
        outputs = [self._states, self._endpoints, self._seen, self._chat.notice, self._chat.model]
        outputs += [*self._draw.components, self._draw.count, *self._edit.form.components]
        outputs.append(self._edit.strength)
        timer = gr.Timer(SECONDS)
        for trigger in (self.blocks.load, timer.tick):
            trigger(self._look, self._seen, outputs, **quiet)
        draw, edit = self._draw, self._edit.form
        for model, offered, components in (
            (draw.form.model, draw.offered, draw.components),
            (edit.model, edit.offered, edit.components),
        ):
            model.input(self._chosen(offered), model, components, **quiet)
        history.select(None, None, None, js="() => studio.history.show()")
        machine_tab.select(machine.look, None, machine.panels, **quiet)
        tabs.select(self._turned, None, machine.timer, **quiet)
        self.blocks.unload(self._gone)

    async def _look(self, seen: str) -> dict[Any, Any]:
        """The endpoints' states; and the forms, if other models are there than before."""
        cards = await self._workshop.cards()
        updates: dict[Any, Any] = {
            self._states: views.endpoints(cards),
            self._endpoints: gr.update(label=views.tally(cards)),
        }
        now = repr([(card.url, card.name, card.kind, bool(card.properties)) for card in cards])
        if now == seen:
            return updates
        updates[self._seen] = now
        pictures = [card for card in cards if card.kind == "pictures"]
        if pictures:
            for offered in (self._draw.offered, self._edit.form.offered):
                updates |= offered(pictures[0], pictures)
            most = pictures[0].limit("max_images_per_request", 8)
            updates[self._draw.count] = gr.update(maximum=most)
        language = [(card.label, card.url) for card in cards if card.kind == "language"]
        updates[self._chat.notice] = gr.update(visible=not language)
        updates[self._chat.model] = gr.update(
            choices=language, value=language[0][1] if language else None, visible=len(language) > 1
        )
        return updates

    @staticmethod
    def _turned(event: gr.SelectData) -> gr.Timer:
        """The machines are asked only while they are looked at."""
        return gr.Timer(active=event.value == "Machine")

    def _chosen(self, offer: Callable[[ModelCard, list[ModelCard]], dict[Any, Any]]) -> Any:
        """What a form shows when another model is chosen in it."""

        async def offered(url: str) -> dict[Any, Any]:
            pictures = await self._workshop.of_kind("pictures")
            card = next((one for one in pictures if one.url == url), None)
            return offer(card, pictures) if card else {}

        return offered

    async def _gone(self, request: gr.Request) -> None:
        """A page that was closed draws nothing any more."""
        await self._workshop.boards.cancel(str(request.session_hash))


def theme() -> gr.themes.Base:
    """Colours and spacing; fonts are those of the reader's machine, so nothing is fetched."""
    return gr.themes.Default(
        primary_hue="indigo", neutral_hue="zinc", radius_size="md", font=FONTS, font_mono=MONO
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_text_color="white",
    )


def studio_app(endpoints: Sequence[EndpointClient], max_upload_bytes: int) -> FastAPI:
    """The application: the page under /studio, / leads there, /health is for probes."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ready"})

    @app.get("/")
    @app.get(PATH)
    async def lead() -> RedirectResponse:
        return RedirectResponse(f"{PATH}/", 307)

    page = StudioPage(Workshop(endpoints))
    page.blocks.queue(default_concurrency_limit=None, api_open=False)
    scripts = "\n".join(f"<script>{read_asset(name)}</script>" for name in SCRIPTS)
    icon = f'<link rel="icon" href="data:image/svg+xml,{quote(read_asset("icon.svg"))}">'
    gr.mount_gradio_app(
        app, page.blocks, PATH, footer_links=[], run_history=False, ssr_mode=False, theme=theme(),
        css=read_asset("studio.css"), head=icon + scripts, show_error=True,
        max_file_size=max_upload_bytes,
    )  # fmt: skip
    return app
