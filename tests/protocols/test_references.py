"""Edits from several pictures: in order, by every route, and the same picture by each of them."""

from __future__ import annotations

import base64
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from diffusers import DiffusionPipeline
from openai import OpenAI
from PIL import Image

from atelier.images.arguments import side_by_side
from tests.conftest import Server, StartServer
from tests.gallery import difference, draw_bare, pixels
from tests.images.test_controls import drawn
from tests.protocols.pictures import encoded, striped
from tests.tiny_flux import FAMILIES

PROMPT = "the first beside the second"
FIELDS = {"seed": 5, "num_inference_steps": 2, "width": 64, "height": 64}
ONE, TWO = striped(), encoded((220, 40, 60), (64, 64))
OWN = {"flux-2-klein": {"max_sequence_length": 64}, "flux-kontext": {"_auto_resize": False}}


@dataclass(frozen=True)
class Editor:
    """A served family that edits from several pictures."""

    family: str
    checkpoint: Path
    server: Server

    @property
    def fields(self) -> dict[str, Any]:
        return FIELDS | OWN[self.family]

    def predict(self, *pictures: bytes) -> bytes:
        texts = [base64.b64encode(one).decode() for one in pictures]
        body = {"instances": [{"prompt": PROMPT, "image": texts, **self.fields}]}
        answer = httpx.post(f"{self.server.url}/v1/models/tiny:predict", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        return base64.b64decode(answer.json()["predictions"][0]["image"]["b64"])

    def edit(self, *pictures: bytes) -> bytes:
        """A form with `image[]`, as OpenAI's client sends it; JSON where a field is no text."""
        if self.family == "flux-kontext":
            images = [part(one)["image_url"]["url"] for one in pictures]
            body = {"prompt": PROMPT, "images": [{"image_url": one} for one in images]}
            told = httpx.post(f"{self.server.url}/v1/images/edits", json=body | self.fields)
            return base64.b64decode(told.json()["data"][0]["b64_json"])
        client = OpenAI(base_url=f"{self.server.url}/v1", api_key="none")
        extra = {name: json.dumps(value) for name, value in self.fields.items()}
        answer = client.images.edit(
            image=[(f"{place}.png", one) for place, one in enumerate(pictures)],
            prompt=PROMPT,
            extra_body=extra,
        )
        assert answer.data and answer.data[0].b64_json
        return base64.b64decode(answer.data[0].b64_json)

    def chat(self, *pictures: bytes, stream: bool = False) -> bytes:
        client = OpenAI(base_url=f"{self.server.url}/v1", api_key="none")
        content: list[Any] = [{"type": "text", "text": PROMPT}, *map(part, pictures)]
        messages: Any = [{"role": "user", "content": content}]
        if stream:
            chunks = list(
                client.chat.completions.create(
                    model="tiny", messages=messages, extra_body=self.fields, stream=True
                )
            )
            assert chunks[-1].choices[0].finish_reason == "stop"
            return from_url(chunks[0].choices[0].delta.images[0]["image_url"]["url"])  # type: ignore[attr-defined]
        answer = client.chat.completions.create(
            model="tiny", messages=messages, extra_body=self.fields, temperature=0.5
        )
        assert answer.choices[0].finish_reason == "stop"
        assert "temperature" in answer.warnings[0]  # type: ignore[attr-defined]
        return from_url(answer.choices[0].message.images[0]["image_url"]["url"])  # type: ignore[attr-defined]


def part(picture: bytes) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def from_url(url: str) -> bytes:
    head, _, text = url.partition(",")
    assert head == "data:image/png;base64"
    return base64.b64decode(text)


@pytest.fixture(scope="module", params=OWN)
def editor(
    request: pytest.FixtureRequest,
    start_server: StartServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Editor]:
    checkpoint = FAMILIES[request.param](tmp_path_factory.mktemp("editor"))
    with start_server(model_id=str(checkpoint), dtype="float32", warmup="off") as server:
        yield Editor(request.param, checkpoint, server)


def test_every_route_makes_the_same_edit_of_several_pictures(editor: Editor) -> None:
    wanted = editor.predict(ONE, TWO)
    assert editor.edit(ONE, TWO) == wanted
    assert editor.chat(ONE, TWO) == wanted
    assert editor.chat(ONE, TWO, stream=True) == wanted
    for other in (editor.predict(TWO, ONE), editor.predict(ONE)):
        assert difference(pixels(other), pixels(wanted)) > 1  # the order and the number matter


def test_it_is_the_edit_that_diffusers_makes(editor: Editor) -> None:
    bare: Any = DiffusionPipeline.from_pretrained(editor.checkpoint)
    bare.set_progress_bar_config(disable=True)
    pictures: Any = [pixels(one) for one in (ONE, TWO)]
    pictures = [Image.fromarray(one) for one in pictures]
    arguments = editor.fields | {"prompt": PROMPT}
    if editor.family == "flux-kontext":
        pictures = side_by_side(pictures)
    if "max_area" in inspect.signature(type(bare).__call__).parameters:
        arguments["max_area"] = 64 * 64
    wanted = draw_bare(bare, **arguments, image=pictures)
    assert difference(pixels(editor.predict(ONE, TWO)), wanted) <= 1


@pytest.mark.parametrize("editor", ["flux-2-klein"], indirect=True)
def test_a_conversation_goes_on_from_what_it_drew(editor: Editor) -> None:
    """The picture of the last answer is edited, unless the message has one of its own."""

    def asked(messages: list[dict[str, Any]], **fields: Any) -> httpx.Response:
        body = {"messages": messages} | editor.fields | fields
        return httpx.post(f"{editor.server.url}/v1/chat/completions", json=body, timeout=120)

    answer = {"role": "assistant", "content": "", "images": [part(ONE)]}
    before = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "a cat"}]
    then = {"role": "user", "content": PROMPT}
    drawn_on = asked([*before, answer, then]).json()["choices"][0]["message"]["images"][0]
    assert from_url(drawn_on["image_url"]["url"]) == editor.predict(ONE)
    assert drawn_on["seed"] == 5
    own = {"role": "user", "content": [{"type": "text", "text": PROMPT}, part(TWO)]}
    drawn_own = asked([*before, answer, own]).json()["choices"][0]["message"]["images"][0]
    assert from_url(drawn_own["image_url"]["url"]) == editor.predict(TWO)
    for messages, told in (
        ([], "messages: it must be a list of 1"),
        ([{"role": "assistant", "content": "x"}], "there is none of the user"),
        ([{"role": "user", "content": [part(ONE)]}], "it has no text that says what to draw"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "is neither a text nor an"),
        ([{"role": "user", "content": 3}], "it must be text or a list of parts"),
    ):
        refused = asked(messages)
        assert refused.status_code == 400 and told in refused.json()["error"]["message"]
    tools = asked([then], tools=[{"type": "function"}])
    assert tools.status_code == 400 and "tools" in tools.json()["error"]["message"]


def test_pictures_side_by_side_have_one_height() -> None:
    row = side_by_side([drawn("rows", 64), drawn("slope").resize((16, 32))])
    assert row.size == (64 + 32, 64)
    assert side_by_side([drawn("rows")]).size == (32, 32)
