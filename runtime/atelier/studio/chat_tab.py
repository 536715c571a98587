"""The tab where a language model is talked to, and where what it says can be drawn."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import gradio as gr

from atelier.errors import AtelierError
from atelier.studio import chat_view, views
from atelier.studio.board import Board, Tile
from atelier.studio.conversation import ChatAnswer, answered, tool_result
from atelier.studio.draw_tab import KEEP
from atelier.studio.form import LARGEST_SEED
from atelier.studio.parameters import PictureParameters
from atelier.studio.workshop import Workshop

ROUNDS = 4
"""Answers to one message: a model that goes on calling its tool is stopped there."""

SECONDS_BETWEEN = 0.1
"""Least time between two paints of an answer that streams."""


class ChatTab:
    """The dialogue lives in the page; the server has it only while it answers. What is shown is in
    two parts, so that an answer that grows does not send the pictures before it again."""

    def __init__(self, workshop: Workshop, keys: list[Any]) -> None:
        self._workshop = workshop
        self._keys = keys
        self.notice = gr.HTML(
            views.hint("No endpoint of this studio serves a language model."),
            apply_default_css=False,
        )
        with gr.Column(elem_classes="chat"):
            with gr.Column(elem_classes="log"), gr.Column():
                gr.HTML(
                    views.hint("Say what you wish to see, such as: something round and red"),
                    js_on_load="studio.log(element.closest('.log'))",
                    apply_default_css=False,
                )
                self.past = gr.HTML("", apply_default_css=False)
                self.now = gr.HTML("", apply_default_css=False)
            with gr.Row(elem_classes="compose"):
                self.text = gr.Textbox(
                    label="Message", lines=1, max_lines=6, scale=6, min_width=200,
                    placeholder="Please draw a red circle above a blue square.",
                )  # fmt: skip
                self.send = gr.Button("Send", variant="primary", scale=1, min_width=90)
            with gr.Row(elem_classes="compose"):
                self.model = gr.Dropdown([], label="Model", visible=False, min_width=200)
                self.draws = gr.Checkbox(True, label="The model may draw", min_width=180)
                self.draw_it = gr.Button("Draw it", size="md", min_width=90)
                self.stop = gr.Button("Stop", size="md", min_width=90)
                self.clear = gr.Button("New chat", size="md", min_width=90)
        self.dialogue = gr.JSON([], visible=False)
        self._wire()

    def _wire(self) -> None:
        shown = [self.text, self.past, self.now, self.dialogue]
        given = [*shown, self.model, self.draws, *self._keys]
        quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}
        said = gr.on([self.send.click, self.text.submit], self._say, given, shown, **quiet)
        said.then(None, js=KEEP)
        drawn = self.draw_it.click(self._draw_last, [*shown, *self._keys], shown, **quiet)
        drawn.then(None, js=KEEP)
        self.stop.click(self._stop, None, None, cancels=[said, drawn], **quiet)
        emptied = [self.past, self.now, self.dialogue]
        self.clear.click(lambda: ("", "", []), None, emptied, **quiet)

    async def _stop(self, request: gr.Request) -> None:
        await self._workshop.boards.cancel(str(request.session_hash))

    async def _say(
        self,
        text: str,
        past: str,
        now: str,
        dialogue: list[dict[str, Any]],
        model: str,
        draws: bool,
        request: gr.Request,
        *keys: str,
    ) -> AsyncGenerator[Any]:
        """One message, its answer, and what the answer has drawn."""
        if not text.strip():
            return
        dialogue = [*dialogue, {"role": "user", "content": text}]
        yield "", past + now + chat_view.asked(text), "", dialogue
        now = ""
        try:
            endpoint, card = await self._workshop.choose("language", model)
            key = self._workshop.key(card.url, keys)
            draws = draws and bool(await self._workshop.of_kind("pictures"))
            for _ in range(ROUNDS):
                answer, painted = ChatAnswer(), 0.0
                talk = answered(endpoint, card.name, dialogue, key, draws)
                async with aclosing(talk) as growing:
                    async for answer in growing:
                        if time.monotonic() - painted > SECONDS_BETWEEN:
                            painted = time.monotonic()
                            look = chat_view.answer(answer, ended=False)
                            yield gr.skip(), gr.skip(), now + look, gr.skip()
                now += chat_view.answer(answer, ended=True)
                dialogue = [*dialogue, answer.message()]
                yield gr.skip(), gr.skip(), now, dialogue
                if not answer.calls:
                    return
                for call in answer.calls:
                    result = f"there is no tool {call.name}, or its prompt is missing"
                    if prompt := call.prompt():
                        async with aclosing(self._drawn(prompt, keys, request)) as looks:
                            async for drawn in looks:
                                yield gr.skip(), gr.skip(), now + drawn[0], gr.skip()
                        now, result = now + drawn[0], drawn[1]
                    dialogue = [*dialogue, tool_result(call, result)]
                yield gr.skip(), gr.skip(), now, dialogue
        except AtelierError as error:
            told = chat_view.shown(views.problem(error.message))
            yield gr.skip(), gr.skip(), now + told, dialogue

    async def _draw_last(
        self,
        text: str,
        past: str,
        now: str,
        dialogue: list[dict[str, Any]],
        request: gr.Request,
        *keys: str,
    ) -> AsyncGenerator[Any]:
        """Draw what the model said last, or else what stands in the message field."""
        said = [one["content"] for one in dialogue if one["role"] == "assistant"]
        prompt = next((words for words in reversed(said) if words), text.strip())
        nothing = chat_view.shown(views.hint("There is nothing to draw yet: send a message first."))
        yield gr.skip(), past + now, "" if prompt else nothing, gr.skip()
        if not prompt:
            return
        async with aclosing(self._drawn(prompt, keys, request)) as looks:
            async for look, _ in looks:
                yield gr.skip(), gr.skip(), look, gr.skip()

    async def _drawn(
        self, prompt: str, keys: tuple[str, ...], request: gr.Request
    ) -> AsyncGenerator[tuple[str, str]]:
        """A picture of the prompt on the first picture endpoint: what is shown as it changes, and
        what the model is told of it."""
        try:
            endpoint, card = await self._workshop.choose("pictures", None)
        except AtelierError as error:
            yield chat_view.shown(views.problem(error.message)), error.message
            return
        seed = secrets.randbelow(LARGEST_SEED)
        tile = Tile(PictureParameters(model=card.name, prompt=prompt, seed=seed))
        board = Board([tile], endpoint, self._workshop.key(card.url, keys))
        async with aclosing(self._workshop.boards.run(str(request.session_hash), board)) as looks:
            async for _ in looks:
                look = views.progress(board) + views.tiles(board)
                yield chat_view.shown(look), "being drawn"
        told = {"error": tile.problem} if tile.problem else {"status": "ok", "seed": seed}
        yield chat_view.shown(views.tiles(board, ended=True)), json.dumps(told)
